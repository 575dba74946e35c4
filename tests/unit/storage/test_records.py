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
    decode_channel,
    decode_patch,
    decode_record,
    encode_channel,
    encode_patch,
    encode_record,
)

TAG = RequestTag((1 << 63) - 1, 2, 3)


def version(number: int, slot: Slot | None, length: int = BLOCK_SIZE + 1, **more: bool) -> StoredVersion:
    return StoredVersion(number, 4, length, b"c" * 4 * -(-length // BLOCK_SIZE), TAG, slot=slot, **more)


def placed(found: StoredVersion | None) -> tuple[int, int] | None:
    assert found is not None
    return (found.slot.shift, found.slot.number) if found.slot is not None else None


def test_both_versions() -> None:
    value = encode_record(version(7, Slot(17, 5)), version(8, Slot(20, 6), patched=True))
    record = decode_record(value)
    assert record.committed is not None and record.pending is not None
    assert (record.committed.number, record.committed.length, record.committed.checksums) == (7, BLOCK_SIZE + 1, b"c" * 8)
    assert record.committed.tag == TAG
    assert not record.committed.patched and record.pending.patched
    assert placed(record.committed) == (17, 5)
    assert placed(record.pending) == (20, 6)


def test_a_shared_slot_stays_shared() -> None:
    slot = Slot(17, 5)
    record = decode_record(encode_record(version(7, slot), version(8, slot)))
    assert record.committed is not None and record.pending is not None
    assert record.committed.slot is record.pending.slot


def test_one_version() -> None:
    record = decode_record(encode_record(None, version(1, None, 0, removed=True)))
    assert record.committed is None
    assert record.pending is not None and record.pending.removed and record.pending.slot is None
    record = decode_record(encode_record(version(1, Slot(16, 0)), None))
    assert record.pending is None and placed(record.committed) == (16, 0)


def test_a_damaged_record_is_noticed() -> None:
    value = encode_record(version(7, None, 0), None)
    with pytest.raises(AssertionError):
        decode_record(value + b"x")


def test_patches_and_channels() -> None:
    assert decode_patch(encode_patch(9, Patch(77, b"data"))) == (9, Patch(77, b"data"))
    result = UpdateResult(0, 5, 100, 0xFFFFFFFF)
    assert decode_channel(channel_key(TAG.client, TAG.channel), encode_channel(3, result)) == (TAG, result)


def test_keys_sort_as_chunks_do() -> None:
    chunks = [ChunkId(1, 255), ChunkId(1, 256), ChunkId(255, 0), ChunkId(256, 0), ChunkId(1 << 40, 3)]
    assert sorted(chunks, key=chunk_key) == chunks
