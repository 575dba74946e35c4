from __future__ import annotations

from random import Random

from fs3.ids import U64_MAX, ChunkId
from storage.index import PAGE_MAX, ChunkIndex


def test_like_a_dict_in_order() -> None:
    random = Random(3)
    index, model = ChunkIndex(), {}
    for step in range(30_000):
        chunk = ChunkId(random.choice((1, 2, random.randrange(3, 300), U64_MAX)), random.randrange(40))
        if random.random() < 0.7 - step / 60_000:
            index.put(chunk, b"%d" % step)
            model[chunk] = b"%d" % step
        elif chunk in model:
            index.delete(chunk)
            del model[chunk]
        assert index.find(chunk) == model.get(chunk)
        if step % 5000 == 0:
            assert list(index.items()) == sorted(model.items()) and len(index) == len(model)
            after = ChunkId(random.randrange(300), random.randrange(40))
            found = list(index.items(after.inode, after.index))
            assert found == [item for item in sorted(model.items()) if item[0] >= after]
    for chunk in sorted(model):
        index.delete(chunk)
    assert len(index) == 0 and list(index.items()) == [] and index.find(ChunkId(1, 1)) is None


def test_in_order_pages_are_full() -> None:
    index = ChunkIndex()
    for number in range(10 * PAGE_MAX):
        index.put(ChunkId(5, number), b"x")
    assert [len(page.values) for page in index._pages] == [PAGE_MAX] * 10
