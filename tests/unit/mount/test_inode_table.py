"""mount.kernel_numbers"""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.errors import FileSystemError
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from mount.kernel_numbers import (
    LAST_NUMBER,
    ROOT_NUMBER,
    InodeTable,
    KernelInode,
    KernelNames,
    Name,
)

ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))


def inode(last: int, *, placement: int = 0) -> ObjectId:
    """An inode whose number is determined by `last`; its placement is no part of that."""
    return object_id(
        ObjectKind.INODE, placement=placement, unique=bytes(6) + last.to_bytes(8, "big")
    )


A = inode(84)
TWIN_OF_A = inode(84, placement=1)
THIRD_OF_A = inode(84, placement=2)
NEXT_TO_A = inode(86)


@pytest.fixture
def table() -> InodeTable:
    return InodeTable(ROOT)


def test_the_root_is_number_one_and_never_forgotten(table: InodeTable):
    assert table.number(ROOT) == ROOT_NUMBER
    table.remember(ROOT)
    assert table.forget(ROOT_NUMBER, 1000) is None
    assert table.identifier(ROOT_NUMBER) == ROOT


def test_a_number_is_the_same_in_every_table(table: InodeTable):
    other = InodeTable(ROOT)
    assert table.remember(A) == other.remember(A) == other.number(A) == 42


def test_all_names_of_an_object_share_its_number(table: InodeTable):
    assert table.remember(A) == table.remember(A)
    assert len(table) == 2


def test_an_object_is_known_until_its_last_lookup_goes(table: InodeTable):
    number = table.remember(A)
    table.remember(A)
    table.remember(A)
    assert table.forget(number, 2) is None
    assert table.identifier(number) == A
    assert table.forget(number, 1) == A
    with pytest.raises(FileSystemError) as caught:
        table.identifier(number)
    assert caught.value.code == errno.ESTALE


def test_an_unknown_number_may_be_forgotten_without_harm(table: InodeTable):
    assert table.forget(4711, 1) is None


def test_of_two_that_collide_the_later_gets_the_next_number(table: InodeTable):
    first, second = table.remember(A), table.remember(TWIN_OF_A)
    assert (first, second) == (42, 43)
    assert table.identifier(first) == A
    assert table.identifier(second) == TWIN_OF_A


def test_a_displaced_object_keeps_its_number(table: InodeTable):
    first, second = table.remember(A), table.remember(TWIN_OF_A)
    table.forget(first, 1)
    assert table.number(TWIN_OF_A) == second
    assert table.remember(TWIN_OF_A) == second
    assert table.number(A) == first
    table.forget(second, 2)
    assert table.number(TWIN_OF_A) == first


def test_a_displaced_object_displaces_whom_it_sits_on(table: InodeTable):
    table.remember(A)
    table.remember(TWIN_OF_A)
    assert table.remember(NEXT_TO_A) == 44
    assert table.remember(THIRD_OF_A) == 45


def test_the_number_of_the_root_is_not_given_away(table: InodeTable):
    assert table.remember(inode(0)) > ROOT_NUMBER
    assert table.remember(inode(2)) > ROOT_NUMBER


def test_numbers_wrap_around_within_63_bits(table: InodeTable):
    last = inode((1 << 64) - 1)
    twin = inode((1 << 64) - 1, placement=1)
    assert table.remember(last) == LAST_NUMBER
    assert ROOT_NUMBER < table.remember(twin) < LAST_NUMBER


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3), st.integers(1, 3)),
        max_size=60,
    )
)
def test_the_table_counts_like_the_kernel(steps: list[tuple[bool, int, int, int]]):
    """The kernel's side: a number that it holds always means the object that it was given for."""
    table = InodeTable(ROOT)
    held: dict[int, tuple[ObjectId, int]] = {}
    for learn, last, placement, lookups in steps:
        if learn:
            identifier = inode(last, placement=placement)
            number = table.remember(identifier)
            known, count = held.get(number, (identifier, 0))
            assert known == identifier
            held[number] = (identifier, count + 1)
        elif held:
            number = sorted(held)[last % len(held)]
            identifier, count = held[number]
            dropped = min(lookups, count)
            forgotten = table.forget(number, dropped)
            if dropped == count:
                assert forgotten == identifier
                del held[number]
            else:
                assert forgotten is None
                held[number] = (identifier, count - dropped)
        for number, (identifier, _) in held.items():
            assert table.identifier(number) == identifier
            assert table.number(identifier) == number
    assert len(table) == len(held) + 1


def told(*sizes: int) -> KernelInode:
    known = KernelInode(ObjectId(bytes(16)), 1)
    for size in sizes:
        known.told(size)
    return known


@pytest.mark.parametrize("may_be_mapped", [True, False])
def test_the_kernel_may_not_have_heard_of_a_size(may_be_mapped: bool) -> None:
    """Where it appends tells which one it has."""
    known = told(10, 5000, 7000)
    starts = (0, 9, 10, 5000, 7000, 8000)
    found = [at for at in starts if known.is_append(at, at + 20, may_be_mapped=may_be_mapped)]
    assert found == [0, 10, 5000, 7000]
    known = told(*range(1, 100))
    assert not known.is_append(1, 20, may_be_mapped=may_be_mapped)
    assert known.is_append(90, 200, may_be_mapped=may_be_mapped)


def test_the_rest_of_a_line_is_appended_as_well() -> None:
    """The kernel passes it on from the next page on; others' bytes may be there by then."""
    known = told(3000, 4096, 9000)
    for may_be_mapped in (True, False):
        assert known.is_append(4096, 6000, may_be_mapped=may_be_mapped)


@pytest.mark.parametrize("stop", [8192, 9000, 4096 + 4096 * 3])
def test_a_page_that_is_mapped_is_written_where_it_is(stop: int) -> None:
    known = told(3000, 4096, 9000, 20_000)
    assert not known.is_append(4096, stop, may_be_mapped=True)
    assert known.is_append(4096, stop, may_be_mapped=False)


# --- names that the kernel knows ---------------------------------------------------------------

PLACES: list[Name] = [(directory, name) for directory in (1, 2) for name in (b"a", b"b", b"c")]


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Name, Name, int]:
    kind = draw(st.sampled_from(("file", "directory", "gone", "moved", "exchanged", "forgotten")))
    places = st.sampled_from(PLACES)
    return kind, draw(places), draw(places), draw(st.integers(10, 15))


@given(st.lists(steps(), max_size=40), st.integers(0, 6), st.sets(st.integers(10, 15)))
def test_names_that_the_kernel_is_asked_to_forget_are_those_of_files(
    history: list[tuple[str, Name, Name, int]], most: int, opened: set[int]
) -> None:
    """Whatever happens to names, none of a directory, of an open file, or of before is given."""
    names = KernelNames()
    there: dict[Name, int | None] = {}  # None: a directory
    for kind, place, other, number in history:
        if kind == "file":
            names.found(place, number, is_directory=False)
            there[place] = number
        elif kind == "directory":
            names.found(place, number, is_directory=True)
            there[place] = None
        elif kind == "gone":
            names.gone(place)
            there.pop(place, None)
        elif kind == "forgotten":
            names.forgotten(number)
            there = {each: of for each, of in there.items() if of != number}
        elif place != other:
            names.moved(place, other, exchanged=kind == "exchanged")
            one, two = (there.pop(each, 0) for each in (place, other))
            if one != 0:
                there[other] = one
            if two != 0 and kind == "exchanged":
                there[place] = two
    known = {*names._names}
    taken = names.take_surplus(most, but=opened)
    assert all(there.get(name) not in {None, 0, *opened} for name in taken)
    assert len(taken) == min(max(0, len(known) - most), len(known - opened))
    assert len(names) == len(known) - len(taken)
