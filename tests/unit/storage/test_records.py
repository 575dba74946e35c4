from __future__ import annotations

import pytest

from fs3.api.storage import UpdateResult
from fs3.checksum import BLOCK_SIZE
from fs3.ids import ChunkId, RequestTag
from storage.records import (
    Patch,
    Slot,
    StoredVersion,
    channel_key,
    chunk_key,
    committed_length,
    decode_channel,
    decode_patch,
    decode_record,
    encode_channel,
    encode_patch,
    encode_record,
    patch_key,
    placed_slot,
    record_meta,
)

TAG = RequestTag((1 << 63) - 1, 2, 3)
C1 = ChunkId(7, 8)


def version(
    number: int, slot: Slot | None, length: int = BLOCK_SIZE + 1, *, last_patch: int = 0, **more: bool
) -> StoredVersion:
    sums = b"c" * 4 * -(-length // BLOCK_SIZE)
    return StoredVersion(number, 4, length, sums, TAG, slot=slot, last_patch=last_patch, **more)


def placed(found: StoredVersion | None) -> tuple[int, int] | None:
    assert found is not None
    return (found.slot.shift, found.slot.number) if found.slot is not None else None


def test_all_versions() -> None:
    value = encode_record(
        version(7, Slot(17, 5), stable=False), version(8, Slot(20, 6), last_patch=9), version(3, Slot(18, 7))
    )
    record = decode_record(value)
    assert record.committed is not None and record.pending is not None and record.fallback is not None
    assert (record.committed.number, record.committed.length, record.committed.checksums) == (7, BLOCK_SIZE + 1, b"c" * 8)
    assert record.committed.tag == TAG and record.committed.chain_version == 4
    assert (record.committed.last_patch, record.pending.last_patch) == (0, 9)
    assert (record.committed.stable, record.pending.stable, record.fallback.stable) == (False, True, True)
    assert placed(record.committed) == (17, 5)
    assert placed(record.pending) == (20, 6)
    assert placed(record.fallback) == (18, 7)
    assert placed_slot(value) is None
    assert committed_length(value) == BLOCK_SIZE + 1


def test_a_shared_slot_stays_shared() -> None:
    slot = Slot(17, 5)
    slot.damaged = True
    record = decode_record(encode_record(version(7, slot), version(8, slot, length=5 * BLOCK_SIZE, stable=False)))
    assert record.committed is not None and record.pending is not None
    found = record.committed.slot
    assert found is not None and found is record.pending.slot
    assert found.damaged and record.damaged
    assert found.stable and found.guard == BLOCK_SIZE + 1, "what is stable stays as it is"


def test_one_version() -> None:
    value = encode_record(None, version(1, None, 0, removed=True))
    record = decode_record(value)
    assert record.committed is None and committed_length(value) is None
    assert record.pending is not None and record.pending.removed and record.pending.slot is None
    value = encode_record(version(1, Slot(16, 3)), None)
    record = decode_record(value)
    assert record.pending is None and placed(record.committed) == (16, 3) == placed_slot(value)
    assert placed_slot(encode_record(version(1, Slot(16, 3), stable=False), None)) is None


def test_what_is_lost_is_damaged() -> None:
    value = encode_record(version(2, None, 100), None)
    meta = record_meta(C1, value)
    assert (meta.version, meta.length, meta.damaged) == (2, 100, True)
    assert not record_meta(C1, encode_record(version(2, None, 0), None)).damaged


def test_another_shape_is_noticed() -> None:
    value = encode_record(version(7, None, 0), None)
    for other in (value + b"x", value[:-1], b"\x08" + value[1:], b"\x03" + value[1:]):
        with pytest.raises(ValueError, match="shape"):
            decode_record(other)
    with pytest.raises(ValueError, match="length"):
        decode_patch(patch_key(C1, 1), encode_patch(Slot(16, 1), Patch(1, 0, 9, b"123")))
    with pytest.raises(ValueError, match="shape"):
        decode_channel(channel_key(1, 2), b"short")


def test_patches_and_channels() -> None:
    for patch in (Patch(9, 77, 81, b"data"), Patch(10, 0, BLOCK_SIZE, b"")):
        assert decode_patch(patch_key(C1, patch.id), encode_patch(Slot(17, 5), patch)) == (C1, (17, 5), patch)
    result = UpdateResult(0, 5, 100, 0xFFFFFFFF)
    key = channel_key(TAG.client, TAG.channel)
    assert decode_channel(key, encode_channel(3, result, C1)) == (TAG, result, C1)


def test_keys_sort_as_chunks_do() -> None:
    chunks = [ChunkId(1, 255), ChunkId(1, 256), ChunkId(255, 0), ChunkId(256, 0), ChunkId(1 << 40, 3)]
    assert sorted(chunks, key=chunk_key) == chunks
