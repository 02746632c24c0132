"""Dirty blocks and the block cache against the simplest models of them."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from bftfs.filesystem.block_memory import BlockCache, DirtyBlock, part, united, without
from bftfs.identifiers import ObjectId

SIZE = 200
writes = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=40)), max_size=150
)


@given(writes, st.binary(max_size=SIZE), st.integers(0, SIZE), st.data())
def test_a_dirty_block_is_what_was_written_over_its_base(
    written: list[tuple[int, bytes]], base: bytes, cut: int, data: st.DataObject
) -> None:
    block = DirtyBlock()
    model: list[int | None] = [None] * (SIZE + 40)
    cost = 0
    for start, piece in written:
        cost += block.write(start, piece)
        model[start : start + len(piece)] = piece
    if data.draw(st.booleans()):
        cost += block.cut(cut)
        model[cut:] = [None] * (len(model) - cut)
    if data.draw(st.booleans()):
        first = data.draw(st.integers(0, SIZE))
        last = data.draw(st.integers(first, SIZE + 40))
        cost += block.remove(first, last)
        model[first:last] = [None] * (last - first)
    if data.draw(st.booleans()):
        before = block.cost
        later = block.split(cut)
        cost += block.cost - before
        expected = bytes(byte or 0 for byte in model[cut:])
        assert bytes(later.read(b"", cut, len(model))) == expected
        model[cut:] = [None] * (len(model) - cut)
    assert cost == block.cost
    dirty = [at for at, byte in enumerate(model) if byte is not None]
    assert block.stop == (dirty[-1] + 1 if dirty else 0)
    assert [at for start, stop in block.extents() for at in range(start, stop)] == dirty
    assert all(
        one[1] < other[0] for one, other in zip(block.extents(), block.extents()[1:], strict=False)
    )
    length = max(block.stop, len(base))
    padded = base.ljust(len(model), b"\0")
    whole = bytes(padded[at] if byte is None else byte for at, byte in enumerate(model))
    assert bytes(block.over(base)) == whole[:length]
    start = data.draw(st.integers(0, SIZE))
    stop = data.draw(st.integers(start, SIZE + 40))
    assert bytes(block.read(base, start, stop)) == whole[start:stop]
    assert block.covers(start, stop) == (None not in model[start:stop])
    assert bytes(part(base, start, stop)) == padded[start:stop]


extents = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda each: (each[0], sum(each))),
    max_size=6,
)


@given(extents, extents)
def test_extents_without_others(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def within(each: Iterable[tuple[int, int]]) -> set[int]:
        return {at for start, stop in each for at in range(start, stop)}

    left = without(united(some), others)
    assert within(left) == within(some) - within(others)
    assert all(start < stop for start, stop in left)


operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "drop", "drop_from"]),
        st.sampled_from([ObjectId(b"a" * 16), ObjectId(b"b" * 16)]),
        st.integers(0, 5),
        st.integers(0, 300),
    ),
    max_size=60,
)


@given(operations)
def test_a_cache_holds_what_was_put_last_and_no_more_than_it_may(
    done: list[tuple[str, ObjectId, int, int]],
) -> None:
    cache = BlockCache(1_500)
    model: dict[tuple[ObjectId, int], bytes] = {}
    for operation, inode, number, size in done:
        if operation == "put":
            cache.put(inode, number, bytes(size))
            model[inode, number] = bytes(size)
        elif operation == "drop":
            cache.drop(inode, number)
            model.pop((inode, number), None)
        elif operation == "drop_from":
            cache.drop_from(inode, number)
            for key in [key for key in model if key[0] == inode and key[1] >= number]:
                del model[key]
        found = {
            key: block for key, expected in model.items() if (block := cache.get(*key)) is not None
        }
        assert all(model[key] == block for key, block in found.items())
        assert sum(map(len, found.values())) + 256 * len(found) <= 1_500
        if operation == "put" and size + 256 <= 1_500:
            assert (inode, number) in found
        model = found
    assert cache.get(ObjectId(b"c" * 16), 0) is None
