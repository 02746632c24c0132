"""The file system as its users see it: caches, guesses that were wrong, listings, access times."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from bftfs.conversation import Pause, Together
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes, inode_number
from bftfs.filesystem.directory import RENAME_EXCHANGE
from bftfs.filesystem.metadata import OpenDirectory
from bftfs.filesystem.operations import ACCESSES_AT_ONCE, FileSystem
from bftfs.identifiers import ObjectId, placement_of
from tests.unit.filesystem.test_acl import acl
from tests.unit.filesystem.test_contents import create, refused, write
from tests.unit.filesystem.world import ALICE, BOB, CAROL, ROOT, ROOT_ID, START_US, World

HOUR_US = 3_600_000_000


@pytest.fixture
def world() -> World:
    return World()


def make(world: World, mount: FileSystem, name: bytes, directory: ObjectId = ROOT_ID) -> ObjectId:
    form = stat.S_IFIFO | 0o644
    return world.run(mount.make_node(directory, name, form, ALICE)).identifier


def mkdir(world: World, mount: FileSystem, name: bytes, directory: ObjectId = ROOT_ID) -> ObjectId:
    return world.run(mount.make_directory(directory, name, 0o755, ALICE)).identifier


def once_before(world: World, method: str, interfere: Callable[[], Any]) -> None:
    """Let another mount do something right before the next invocation of `method`."""

    def before(invoked: str, _: tuple[ObjectId, ...]) -> None:
        if invoked == method:
            world.objects.before = lambda *_: None
            outcome = world.host.start(interfere())
            assert outcome, "it had to wait"
            assert not isinstance(outcome[0], BaseException), outcome[0]

    world.objects.before = before


# --- names -----------------------------------------------------------------------------------


def test_names_and_attributes_are_believed_for_a_while(world: World) -> None:
    mount = world.mount(attribute_timeout_us=1_000_000, entry_timeout_us=2_000_000)
    file = make(world, world.mount(), b"file")
    assert world.run(mount.lookup(ROOT_ID, b"file", ALICE)).identifier == file
    world.objects.calls.clear()
    world.pass_time(999_999)
    world.run(mount.lookup(ROOT_ID, b"file", ALICE))
    world.run(mount.attributes(file, ALICE))
    assert not world.objects.calls
    world.pass_time(1)
    world.run(mount.lookup(ROOT_ID, b"file", ALICE))
    assert world.objects.calls == {registry.GET_ATTRIBUTES: 1}
    world.pass_time(1_000_000)
    world.run(mount.lookup(ROOT_ID, b"file", ALICE))
    assert world.objects.calls == {registry.GET_ATTRIBUTES: 2, registry.LOOKUP: 1}


def test_that_a_name_is_free_is_believed_as_well(world: World) -> None:
    mount = world.mount(absence_timeout_us=300_000)
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"x", ALICE))
    world.objects.calls.clear()
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"x", ALICE))
    assert not world.objects.calls
    make(world, world.mount(), b"x")
    world.pass_time(300_000)
    world.run(mount.lookup(ROOT_ID, b"x", ALICE))


def test_a_clock_that_is_set_back_makes_nothing_young_again(world: World) -> None:
    mount = world.mount(attribute_timeout_us=1_000_000, entry_timeout_us=1_000_000)
    other = world.mount()
    file = make(world, other, b"file")
    world.run(mount.lookup(ROOT_ID, b"file", ALICE))
    world.pass_time(-60_000_000)
    world.run(other.rename(ROOT_ID, b"file", ROOT_ID, b"moved", ALICE))
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"file", ALICE))
    world.run(mount.attributes(file, ALICE))
    world.objects.calls.clear()
    world.pass_time(60_500_000)  # now the clock shows what it showed when that was heard of
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"file", ALICE))
    world.run(mount.attributes(file, ALICE))
    assert world.objects.calls


def test_a_refusal_ends_the_belief_that_it_contradicts(world: World) -> None:
    """A program that is told of a file with `mkdir`, and does not find it, is told nonsense."""
    mount, other = world.mount(absence_timeout_us=300_000), world.mount()
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"d", ALICE))
    mkdir(world, other, b"d")
    refused(errno.EEXIST, world, mount.make_directory(ROOT_ID, b"d", 0o755, ALICE))
    world.run(mount.lookup(ROOT_ID, b"d", ALICE))
    world.run(other.remove_directory(ROOT_ID, b"d", ALICE))
    refused(errno.ENOENT, world, mount.remove_directory(ROOT_ID, b"d", ALICE))
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"d", ALICE))


def test_a_name_that_cannot_be_is_refused_for_what_it_is(world: World) -> None:
    """Also where it is known that nothing in the directory is called so."""
    mount = world.mount(entry_timeout_us=0)
    directory = mkdir(world, mount, b"d")
    refused(errno.ENAMETOOLONG, world, mount.lookup(directory, b"x" * 256, ALICE))
    refused(errno.ENOENT, world, mount.lookup(directory, b"x" * 255, ALICE))


def test_names_stay_cached_while_only_this_mount_changes(world: World) -> None:
    """Making a tree costs one update for each thing in it, and no question."""
    mount = world.mount(entry_timeout_us=0)
    directory = mkdir(world, mount, b"d")
    world.objects.calls.clear()
    for number in range(10):
        refused(errno.ENOENT, world, mount.lookup(directory, b"%d" % number, ALICE))
        make(world, mount, b"%d" % number, directory)
        world.run(mount.lookup(directory, b"%d" % number, ALICE))
        if number % 3 == 0:
            world.run(mount.unlink(directory, b"%d" % number, ALICE))
            refused(errno.ENOENT, world, mount.lookup(directory, b"%d" % number, ALICE))
        if number % 3 == 1:
            new = b"%d'" % number
            world.run(mount.rename(directory, b"%d" % number, directory, new, ALICE))
        world.run(mount.change_attributes(directory, Changes(mode=0o700 + number), ALICE))
    assert not {registry.LOOKUP, registry.GET_ATTRIBUTES} & set(world.objects.calls)


def test_what_another_mount_changes_ends_that_knowledge(world: World) -> None:
    mount, other = world.mount(entry_timeout_us=0), world.mount()
    directory = mkdir(world, mount, b"d")
    make(world, other, b"theirs", directory)
    make(world, mount, b"mine", directory)  # shows that somebody else was there
    world.run(mount.lookup(directory, b"theirs", ALICE))
    refused(errno.ENOENT, world, mount.lookup(directory, b"x", ALICE))
    assert world.objects.calls[registry.LOOKUP] == 2


def test_cached_names_expire_with_the_directorys_attributes(world: World) -> None:
    mount, other = world.mount(attribute_timeout_us=1_000_000), world.mount()
    directory = mkdir(world, mount, b"d")
    make(world, other, b"theirs", directory)
    refused(errno.ENOENT, world, mount.lookup(directory, b"theirs", ALICE))
    world.pass_time(500_000)  # for so long it is believed that there is no such name
    world.run(mount.lookup(directory, b"theirs", ALICE))
    assert world.objects.calls[registry.LOOKUP] == 1


def test_one_query_of_a_directory_serves_all_its_names(world: World) -> None:
    mount, other = world.mount(entry_timeout_us=0), world.mount()
    for number in range(10):
        make(world, other, b"%d" % number)
    listing(world, mount)
    world.pass_time(1_000_000)  # the attributes have expired, too
    world.objects.calls.clear()
    for number in range(10):
        world.run(mount.lookup(ROOT_ID, b"%d" % number, ALICE))
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"x", ALICE))
    assert world.objects.calls == {registry.LOOKUP: 1, registry.GET_ATTRIBUTES: 1}
    assert world.objects.bundles[1:] == [9]  # from the second one on, after the listing's


def test_strict_mounts_believe_nothing(world: World) -> None:
    mount = world.mount(strict=True)
    file = make(world, mount, b"file")
    world.objects.calls.clear()
    world.run(mount.lookup(ROOT_ID, b"file", ALICE))
    world.run(mount.attributes(file, ALICE))
    assert world.objects.calls == {registry.LOOKUP: 1, registry.GET_ATTRIBUTES: 2}


def test_own_changes_are_known_without_asking(world: World) -> None:
    mount = world.mount()
    file = make(world, mount, b"a")
    directory = mkdir(world, mount, b"d")
    world.run(mount.link(file, directory, b"b", ALICE))
    world.run(mount.rename(ROOT_ID, b"a", directory, b"c", ALICE))
    world.objects.calls.clear()
    assert world.run(mount.lookup(directory, b"b", ALICE)).attributes.links == 2
    assert world.run(mount.lookup(directory, b"c", ALICE)).identifier == file
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"a", ALICE))
    assert world.run(mount.attributes(ROOT_ID, ALICE)).links == 3
    assert not world.objects.calls
    world.run(mount.unlink(directory, b"b", ALICE))
    world.run(mount.unlink(directory, b"c", ALICE))
    assert world.run(mount.remove_directory(ROOT_ID, b"d", ALICE)).attributes.links == 0
    assert set(world.objects.calls) == {registry.UNLINK, registry.REMOVE_DIRECTORY}


def test_a_lookup_overtaken_by_an_own_change_is_not_cached(world: World) -> None:
    mount = world.mount()
    world.run(mount.attributes(ROOT_ID, ALICE))
    world.objects.latency = lambda: 100
    looking = world.host.start(mount.lookup(ROOT_ID, b"x", ALICE))
    world.host.step()  # the nodes have answered: there is no such name
    world.objects.latency = lambda: 0
    file = make(world, mount, b"x")
    world.host.settle()
    assert isinstance(looking[0], FileSystemError)
    assert world.run(mount.lookup(ROOT_ID, b"x", ALICE)).identifier == file


def test_attributes_never_go_back(world: World) -> None:
    mount = world.mount()
    file = make(world, mount, b"x")
    world.pass_time(HOUR_US)
    world.objects.latency = lambda: 100
    asking = world.host.start(mount.attributes(file, ALICE))
    world.host.step()  # the nodes have answered
    world.objects.latency = lambda: 0
    world.run(mount.change_attributes(file, Changes(mode=0o600), ALICE))
    world.host.settle()
    assert asking[0].mode & 0o777 == 0o600
    assert world.run(mount.attributes(file, ALICE)).mode & 0o777 == 0o600


@pytest.mark.parametrize("operation", ["unlink", "rename", "rename onto", "exchange"])
def test_a_guess_that_was_wrong_does_no_harm(world: World, operation: str) -> None:
    mount, other = world.mount(entry_timeout_us=HOUR_US), world.mount()
    make(world, mount, b"a")
    kept = make(world, mount, b"b")
    world.run(other.unlink(ROOT_ID, b"a", ALICE))
    replacement = make(world, other, b"a")
    if operation == "unlink":
        gone = world.run(mount.unlink(ROOT_ID, b"a", ALICE))
        assert gone.identifier == replacement
        world.pass_time(HOUR_US)
        refused(errno.ENOENT, world, other.lookup(ROOT_ID, b"a", ALICE))
        return
    if operation == "rename":
        world.run(mount.rename(ROOT_ID, b"a", ROOT_ID, b"c", ALICE))
        assert world.run(other.lookup(ROOT_ID, b"c", ALICE)).identifier == replacement
    elif operation == "rename onto":
        world.run(mount.rename(ROOT_ID, b"b", ROOT_ID, b"a", ALICE))
        world.pass_time(HOUR_US)
        assert world.run(other.attributes(replacement, ALICE)).links == 0
        assert world.run(other.lookup(ROOT_ID, b"a", ALICE)).identifier == kept
    else:
        world.run(mount.rename(ROOT_ID, b"b", ROOT_ID, b"a", ALICE, flags=RENAME_EXCHANGE))
        world.pass_time(HOUR_US)
        assert world.run(other.lookup(ROOT_ID, b"a", ALICE)).identifier == kept
        assert world.run(other.lookup(ROOT_ID, b"b", ALICE)).identifier == replacement


def test_what_is_in_doubt_is_asked_for_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that nodes refuse for want of room may be finished by others, later."""
    mount = world.mount(
        entry_timeout_us=HOUR_US, attribute_timeout_us=HOUR_US, absence_timeout_us=HOUR_US
    )
    moved = make(world, mount, b"here")
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"there", ALICE))
    perform = world.objects.perform

    def perform_and_fail(method: str, *arguments: Any) -> None:
        perform(method, *arguments)
        raise AdmissionRefused(code=errno.ENOSPC, reason="the disk is full")

    with monkeypatch.context() as doubtful:
        doubtful.setattr(world.objects, "perform", perform_and_fail)
        with pytest.raises(AdmissionRefused):
            world.run(mount.rename(ROOT_ID, b"here", ROOT_ID, b"there", ALICE))
    assert world.run(mount.lookup(ROOT_ID, b"there", ALICE)).identifier == moved
    refused(errno.ENOENT, world, mount.lookup(ROOT_ID, b"here", ALICE))
    world.run(mount.rename(ROOT_ID, b"there", ROOT_ID, b"here", ALICE))


def test_a_directory_that_became_a_file_meanwhile(world: World) -> None:
    mount, other = world.mount(entry_timeout_us=HOUR_US), world.mount()
    mkdir(world, mount, b"x")
    world.run(other.remove_directory(ROOT_ID, b"x", ALICE))
    make(world, other, b"x")
    refused(errno.ENOTDIR, world, mount.remove_directory(ROOT_ID, b"x", ALICE))
    mkdir(world, mount, b"y")
    world.run(other.remove_directory(ROOT_ID, b"y", ALICE))
    make(world, other, b"y")
    world.run(mount.unlink(ROOT_ID, b"y", ALICE))


def test_a_loop_is_not_made_by_two_renames_at_once(world: World) -> None:
    one, other = world.mount(), world.mount()
    a, b = mkdir(world, one, b"a"), mkdir(world, one, b"b")
    once_before(world, registry.RELOCATE, lambda: other.rename(ROOT_ID, b"b", a, b"b", ALICE))
    refused(errno.EINVAL, world, one.rename(ROOT_ID, b"a", b, b"a", ALICE))
    assert world.run(other.parent(b, ALICE)).identifier == a
    assert world.run(other.parent(a, ALICE)).identifier == ROOT_ID


def test_a_directory_does_not_move_below_itself(world: World) -> None:
    mount = world.mount()
    top = mkdir(world, mount, b"top")
    middle = mkdir(world, mount, b"middle", top)
    bottom = mkdir(world, mount, b"bottom", middle)
    refused(errno.EINVAL, world, mount.rename(ROOT_ID, b"top", bottom, b"x", ALICE))
    refused(
        errno.EINVAL,
        world,
        mount.rename(middle, b"bottom", ROOT_ID, b"top", ALICE, flags=RENAME_EXCHANGE),
    )
    world.run(mount.rename(middle, b"bottom", ROOT_ID, b"bottom", ALICE))
    world.run(mount.rename(ROOT_ID, b"top", bottom, b"top", ALICE))
    assert world.run(mount.parent(top, ALICE)).identifier == bottom


def test_flags_of_rename(world: World) -> None:
    mount = world.mount()
    make(world, mount, b"a")
    for flags in (3, 4, 8):
        refused(errno.EINVAL, world, mount.rename(ROOT_ID, b"a", ROOT_ID, b"b", ALICE, flags=flags))


def test_children_of_the_root_are_spread_over_quorums(world: World) -> None:
    mount = world.mount()
    directories = [mkdir(world, mount, b"%d" % number) for number in range(20)]
    assert len({placement_of(directory) for directory in directories}) > 10
    for directory in directories:
        assert placement_of(make(world, mount, b"x", directory)) == placement_of(directory)
        assert placement_of(mkdir(world, mount, b"d", directory)) == placement_of(directory)
    numbers = {inode_number(directory) for directory in directories}
    assert len(numbers) == 20
    assert all(0 < number < 1 << 63 for number in numbers)


# --- create ----------------------------------------------------------------------------------


def test_create_opens_what_is_there_unless_told_not_to(world: World) -> None:
    one, other = world.mount(), world.mount()
    file = create(world, one)
    write(world, one, file, 0, b"there")
    world.run(one.flush(file))
    refused(errno.EEXIST, world, other.create(ROOT_ID, b"file", 0o644, ALICE, flags=os.O_EXCL))
    found, opened = world.run(other.create(ROOT_ID, b"file", 0o600, ALICE))
    assert found.identifier == opened.identifier == file.identifier
    assert found.attributes.mode & 0o777 == 0o644
    assert bytes(world.run(other.read(opened, 0, 10))) == b"there"
    _, opened = world.run(
        other.create(ROOT_ID, b"file", 0o600, ALICE, flags=os.O_RDWR | os.O_TRUNC)
    )
    assert bytes(world.run(other.read(opened, 0, 10))) == b""


def test_create_makes_what_somebody_removed_in_that_moment(world: World) -> None:
    one, other = world.mount(), world.mount()
    first = create(world, one).identifier
    once_before(world, registry.LOOKUP, lambda: one.unlink(ROOT_ID, b"file", ALICE))
    found, _ = world.run(other.create(ROOT_ID, b"file", 0o644, ALICE))
    assert found.identifier != first


def test_only_files_are_opened(world: World) -> None:
    mount = world.mount()
    refused(errno.EISDIR, world, mount.open(ROOT_ID, os.O_RDONLY, ALICE))
    refused(errno.EISDIR, world, mount.truncate(ROOT_ID, 0, ALICE))
    refused(errno.EINVAL, world, mount.open(make(world, mount, b"fifo"), os.O_RDONLY, ALICE))
    refused(errno.ENOTDIR, world, mount.open_directory(make(world, mount, b"x"), ALICE))
    refused(errno.EPERM, world, mount.link(mkdir(world, mount, b"d"), ROOT_ID, b"l", ALICE))


# --- listings --------------------------------------------------------------------------------


def listing(
    world: World,
    mount: FileSystem,
    *,
    count: int = 10,
    between: Callable[[int], Any] = lambda position: None,
    directory: ObjectId = ROOT_ID,
) -> list[bytes]:
    opened = world.run(mount.open_directory(directory, ALICE))
    names: list[bytes] = []
    after = 0
    while entries := world.run(mount.read_directory(opened, after, count=count)):
        names += [entry.name for entry in entries]
        after = entries[-1].cookie
        between(len(names))
    return names


@pytest.mark.parametrize("page_bytes", [4096, 1 << 17])
def test_entries_that_stay_are_listed_exactly_once(
    world: World, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    monkeypatch.setattr("bftfs.filesystem.metadata.PAGE_BYTES", page_bytes)
    mount, other = world.mount(), world.mount()
    staying = [b"stay %03d" % number for number in range(150)]
    going = [b"go %03d" % number for number in range(150)]
    for stay, go in zip(staying, going, strict=True):
        make(world, mount, stay)
        make(world, mount, go)

    def change(position: int) -> None:
        make(world, other, b"new %d" % position)
        world.run(other.unlink(ROOT_ID, going.pop(0), ALICE))
        world.run(other.unlink(ROOT_ID, going.pop(), ALICE))
        # Something else takes the place of a name that stays.
        world.run(other.rename(ROOT_ID, going.pop(), ROOT_ID, staying[position % 150], ALICE))

    names = listing(world, mount, between=change)
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith(b"stay")] == staying
    assert not [name for name in names if name.startswith(b"new")]


def test_renaming_entries_while_listing_them_ends(world: World) -> None:
    mount = world.mount()
    for number in range(50):
        make(world, mount, b"%d" % number)
    names: list[bytes] = []
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    after = 0
    while entries := world.run(mount.read_directory(opened, after, count=1)):
        (entry,) = entries
        names.append(entry.name)
        assert len(names) <= 50
        world.run(mount.rename(ROOT_ID, entry.name, ROOT_ID, entry.name + b"'", ALICE))
        make(world, mount, b"%s new" % entry.name)
        after = entry.cookie
    assert sorted(names) == sorted(b"%d" % number for number in range(50))


def test_a_listing_from_the_beginning_shows_what_is_new(world: World) -> None:
    mount = world.mount()
    make(world, mount, b"a")
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    assert len(world.run(mount.read_directory(opened, 0))) == 1
    make(world, mount, b"b")
    (entry,) = world.run(mount.read_directory(opened, 0, count=1))
    assert [e.name for e in world.run(mount.read_directory(opened, entry.cookie))] == [b"b"]
    assert [e.name for e in world.run(mount.read_directory(opened, 0))] == [b"a", b"b"]


def test_a_listing_goes_on_after_any_cookie(world: World) -> None:
    """telldir and seekdir, and a kernel whose buffer was too small for all that it was given."""
    mount = world.mount()
    names = [b"%03d" % number for number in range(30)]
    for name in names:
        make(world, mount, name)
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    cookies = [0, *(entry.cookie for entry in world.run(mount.read_directory(opened, 0)))]
    for position in (29, 3, 30, 0, 17):
        found = world.run(mount.read_directory(opened, cookies[position]))
        assert [entry.name for entry in found] == names[position:]
    assert world.run(mount.read_directory(opened, 1 << 62)) == ()


def test_listing_caches_attributes_and_names(world: World) -> None:
    maker, mount = world.mount(), world.mount()
    for number in range(10):
        make(world, maker, b"%d" % number)
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    world.objects.calls.clear()
    entries = world.run(mount.read_directory(opened, 0))
    assert world.objects.calls == {registry.READ_DIRECTORY: 1}
    assert world.objects.bundles == [10]
    world.objects.calls.clear()
    for entry in entries:
        assert world.run(mount.lookup(ROOT_ID, entry.name, ALICE)).attributes == entry.attributes
    assert not world.objects.calls
    world.objects.calls.clear()
    at_hand = world.run(mount.read_directory(opened, 0, with_attributes=False))
    assert [entry.attributes for entry in at_hand] == [entry.attributes for entry in entries]
    assert world.objects.calls == {registry.READ_DIRECTORY: 1}


def listed(
    world: World, count: int, **options: Any
) -> tuple[FileSystem, list[ObjectId], OpenDirectory]:
    """A mount that has listed so many files of another one, without attributes; and the files."""
    maker, mount = world.mount(), world.mount(**options)
    files = [make(world, maker, b"%d" % number) for number in range(count)]
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    world.run(mount.read_directory(opened, 0, with_attributes=False))
    return mount, files, opened


def test_listing_asks_for_no_attributes_that_are_not_wanted(world: World) -> None:
    maker, mount = world.mount(), world.mount()
    for number in range(10):
        make(world, maker, b"%d" % number)
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    plain = world.run(mount.read_directory(opened, 0, with_attributes=False))
    assert all(entry.attributes is None for entry in plain)
    assert [entry.file_type for entry in plain] == [stat.S_IFIFO >> 12] * 10
    assert not world.objects.calls[registry.GET_ATTRIBUTES]


def looks_in_order(world: World, mount: FileSystem, names: Iterable[int]) -> None:
    for number in names:
        world.run(mount.lookup(ROOT_ID, b"%d" % number, ALICE))


def test_who_looks_in_the_order_of_the_listing_gets_the_attributes_of_the_next(
    world: World,
) -> None:
    mount, *_ = listed(world, 250)
    world.objects.calls.clear()
    looks_in_order(world, mount, range(250))
    assert world.objects.calls == {registry.GET_ATTRIBUTES: 1}
    assert world.objects.bundles == [100, 100, 49]


def test_who_looks_here_and_there_gets_what_he_asks_for(world: World) -> None:
    mount, *_ = listed(world, 200)
    looks_in_order(world, mount, (100, 20, 150, 60, 199, 0))
    assert world.objects.calls[registry.GET_ATTRIBUTES] == 6
    assert not world.objects.bundles


def test_who_looks_at_one_file_again_and_again_asks_for_that_one(world: World) -> None:
    mount, *_ = listed(world, 200, attribute_timeout_us=1_000_000)
    looks_in_order(world, mount, range(3))
    world.objects.bundles.clear()
    for _ in range(10):
        world.pass_time(1_000_000)
        looks_in_order(world, mount, (7,))
    assert not world.objects.bundles


def test_who_is_interrupted_wakes_those_who_wait_for_his_bundle(world: World) -> None:
    mount, *_ = listed(world, 40)
    looks_in_order(world, mount, (0,))
    world.objects.latency = lambda: 1_000_000
    asking = world.host.engine.start(mount.lookup(ROOT_ID, b"1", ALICE), lambda *_: None)
    waiting = world.host.start(mount.lookup(ROOT_ID, b"2", ALICE))
    assert world.objects.bundles
    asking.cancel()
    world.host.settle()
    (found,) = waiting
    assert not isinstance(found, BaseException)
    assert not mount._metadata._coming


def test_several_who_look_at_once_share_a_bundle(world: World) -> None:
    mount, *_ = listed(world, 40)
    world.objects.latency = lambda: 1_000
    looks = [partial(mount.lookup, ROOT_ID, b"%d" % number, ALICE) for number in range(16)]

    async def all_at_once() -> None:
        await Together(tuple(looks))

    world.run(all_at_once())
    assert world.objects.calls[registry.GET_ATTRIBUTES] == 1
    assert world.objects.bundles == [39]


def test_a_directory_that_was_looked_through_is_listed_with_attributes(world: World) -> None:
    mount, _, opened = listed(world, 10)
    looks_in_order(world, mount, range(10))
    world.pass_time(2_000_000)
    world.objects.bundles.clear()
    again = world.run(mount.read_directory(opened, 0, with_attributes=False))
    assert all(entry.attributes is not None for entry in again)
    assert world.objects.bundles == [10]


def test_several_names_of_one_file_are_listed_and_looked_at(world: World) -> None:
    maker, mount = world.mount(), world.mount()
    files = [make(world, maker, b"%d" % number) for number in range(10)]
    for number in range(10, 20):
        world.run(maker.link(files[number % 2], ROOT_ID, b"%d" % number, ALICE))
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    assert len(world.run(mount.read_directory(opened, 0, with_attributes=False))) == 20
    looks_in_order(world, mount, range(20))
    world.pass_time(2_000_000)
    again = world.run(mount.read_directory(opened, 0))
    links = [entry.attributes and entry.attributes.links for entry in again]
    assert links == [6, 6, *[1] * 8, *[6] * 10]


def test_what_a_bundle_leaves_out_is_asked_for_by_itself(world: World) -> None:
    mount, *_ = listed(world, 10)
    world.objects.bundled = False
    looks_in_order(world, mount, range(10))
    assert world.objects.calls[registry.GET_ATTRIBUTES] == 10


def test_a_bundle_never_brings_an_older_version_back(world: World) -> None:
    """The answers of a bundle that was asked for before this mount's own change come after it."""
    mount, files, _ = listed(world, 10)

    async def change() -> None:
        world.objects.bundled_hook = None
        await mount.change_attributes(files[5], Changes(mode=0o600), ALICE)

    world.objects.bundled_hook = change
    looks_in_order(world, mount, range(3))
    assert world.run(mount.attributes(files[5], ALICE)).mode & 0o777 == 0o600


def test_attributes_of_a_slow_bundle_are_believed_no_longer_than_others(world: World) -> None:
    """A bundle is over when its slowest round is: answers of the other rounds are older."""
    maker, mount = world.mount(), world.mount(attribute_timeout_us=1_000_000)
    files = [make(world, maker, b"%d" % number) for number in range(10)]
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    world.run(mount.read_directory(opened, 0, with_attributes=False))

    async def change() -> None:
        world.objects.bundled_hook = None
        await maker.change_attributes(files[5], Changes(mode=0o600), ALICE)
        await Pause(900_000)

    world.objects.bundled_hook = change
    looks_in_order(world, mount, range(3))
    assert world.objects.bundles
    world.pass_time(200_000)
    assert world.run(mount.attributes(files[5], ALICE)).mode & 0o777 == 0o600


def test_a_slow_bundle_makes_nothing_older_that_was_heard_meanwhile(world: World) -> None:
    mount, files, _ = listed(world, 10, attribute_timeout_us=1_000_000)

    async def look() -> None:
        world.objects.bundled_hook = None
        await Pause(900_000)
        await mount._metadata.latest(files[5], ALICE)

    world.objects.bundled_hook = look
    looks_in_order(world, mount, range(3))
    world.pass_time(200_000)
    world.objects.calls.clear()
    world.run(mount.attributes(files[5], ALICE))
    assert not world.objects.calls


def test_who_caches_no_attributes_bundles_nothing(world: World) -> None:
    mount = world.mount(attribute_timeout_us=0)
    make(world, mount, b"x")
    assert listing(world, mount)
    assert not world.objects.bundles


def test_strict_mounts_bundle_nothing(world: World) -> None:
    mount, *_ = listed(world, 10, strict=True)
    looks_in_order(world, mount, range(10))
    assert world.objects.calls[registry.GET_ATTRIBUTES] == 10
    assert not world.objects.bundles


def test_an_entry_that_is_gone_is_listed_without_attributes(world: World) -> None:
    mount = world.mount()
    make(world, mount, b"x")
    opened = world.run(mount.open_directory(ROOT_ID, ALICE))
    world.pass_time(HOUR_US)
    world.objects.before = lambda method, _: fail_if(method == registry.GET_ATTRIBUTES)
    world.objects.bundled = False
    (entry,) = world.run(mount.read_directory(opened, 0))
    assert entry.attributes is None


def fail_if(condition: bool) -> None:
    if condition:
        raise FileSystemError(errno.ESTALE)


def test_who_may_not_read_a_directory_does_not_list_it(world: World) -> None:
    mount = world.mount()
    directory = mkdir(world, mount, b"d")
    world.run(mount.change_attributes(directory, Changes(mode=0o711), ALICE))
    opened = world.run(mount.open_directory(directory, BOB))
    refused(errno.EACCES, world, mount.read_directory(opened, 0))


# --- attributes, symlinks, extended attributes -----------------------------------------------


def test_symlink_targets_are_asked_for_once(world: World) -> None:
    mount, other = world.mount(), world.mount()
    link = world.run(mount.make_symlink(ROOT_ID, b"l", b"/some/where", ALICE)).identifier
    assert world.run(mount.read_link(link, ALICE)) == b"/some/where"
    assert world.run(other.read_link(link, ALICE)) == b"/some/where"
    assert world.run(other.read_link(link, ALICE)) == b"/some/where"
    assert world.objects.calls[registry.READ_LINK] == 1
    refused(errno.ENAMETOOLONG, world, mount.make_symlink(ROOT_ID, b"m", b"x" * 4096, ALICE))


def test_attributes_that_nobody_set_are_not_asked_for(world: World) -> None:
    mount = world.mount()
    file = create(world, mount).identifier
    world.objects.calls.clear()
    for name in (b"user.x", b"security.capability", b"system.posix_acl_access"):
        refused(errno.ENODATA, world, mount.get_extended(file, name, ALICE))
    refused(errno.EOPNOTSUPP, world, mount.get_extended(file, b"unheard.of", ALICE))
    assert world.run(mount.list_extended(file, ALICE)) == ()
    assert not world.objects.calls
    world.run(mount.set_extended(file, b"user.x", b"1", ALICE))
    assert world.run(mount.get_extended(file, b"user.x", ALICE)) == b"1"
    assert world.run(mount.list_extended(file, ALICE)) == (b"user.x",)
    refused(errno.EINVAL, world, mount.set_extended(file, b"user.x", b"", ALICE, flags=4))
    refused(errno.E2BIG, world, mount.set_extended(file, b"user.x", bytes(70_000), ALICE))
    world.run(mount.remove_extended(file, b"user.x", ALICE))
    refused(errno.ENODATA, world, mount.get_extended(file, b"user.x", ALICE))


def test_access(world: World) -> None:
    mount = world.mount()
    file = create(world, mount, mode=0o640).identifier
    world.run(mount.access(file, os.R_OK | os.W_OK, ALICE))
    refused(errno.EACCES, world, mount.access(file, os.X_OK, ALICE))
    refused(errno.EACCES, world, mount.access(file, os.R_OK, BOB))
    listed = acl("u::rw-,u:1001:r--,g::---,m::r--,o::---").encode()
    world.run(mount.set_extended(file, b"system.posix_acl_access", listed, ALICE))
    world.run(mount.access(file, os.R_OK, BOB))
    refused(errno.EACCES, world, mount.access(file, os.R_OK, CAROL))


def test_statistics_and_formatting_again(world: World) -> None:
    mount = world.mount()
    world.run(mount.format(BOB, block_bytes=1 << 20))
    statistics = world.run(mount.statistics(ALICE))
    assert statistics.block_bytes == 4096
    assert (statistics.capacity_bytes, statistics.free_bytes) == (8 << 40, 5 << 40)
    assert statistics.capacity_inodes - statistics.free_inodes == 7
    assert statistics.name_bytes == 255
    world.run(mount.statistics(BOB))
    assert world.rooms.asked == 1
    world.pass_time(1_000_000)
    world.run(mount.statistics(BOB))
    assert world.rooms.asked == 2


# --- access times ----------------------------------------------------------------------------


def atime_us(world: World, mount: FileSystem, identifier: ObjectId) -> int:
    return world.run(mount.attributes(identifier, ALICE)).atime_ns // 1_000


def test_access_times_show_at_once_and_are_recorded_later(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"x")
    world.run(mount.release(file))
    world.pass_time(5_000_000)
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    world.run(mount.read(opened, 0, 1))
    read_at = world.host.clock_us
    assert atime_us(world, mount, file.identifier) == read_at
    assert atime_us(world, world.mount(), file.identifier) < read_at
    world.run(mount.write_back(older_than_us=5_000_000))
    assert world.objects.calls[registry.ACCESSED] == 0
    world.pass_time(30_000_000)
    world.run(mount.write_back(older_than_us=5_000_000))
    assert atime_us(world, world.mount(), file.identifier) == read_at
    # Read again, nothing changed since: not worth recording.
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    world.run(mount.read(opened, 0, 1))
    world.run(mount.record_accesses())
    assert world.objects.calls[registry.ACCESSED] == 1


def test_many_access_times_are_recorded_a_few_at_a_time(world: World) -> None:
    """Reading a large tree must not slow down what is done half a minute later."""
    mount = world.mount()
    for number in range(ACCESSES_AT_ONCE + 3):
        file = create(world, mount, b"%d" % number)
        write(world, mount, file, 0, b"x")
        world.run(mount.release(file))
        world.pass_time(1_000)
        opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
        world.run(mount.read(opened, 0, 1))
    world.pass_time(60_000_000)
    for recorded in (ACCESSES_AT_ONCE, ACCESSES_AT_ONCE + 3, ACCESSES_AT_ONCE + 3):
        world.run(mount.write_back(older_than_us=5_000_000))
        assert world.objects.calls[registry.ACCESSED] == recorded


def test_listing_a_directory_is_an_access(world: World) -> None:
    mount = world.mount()
    directory = mkdir(world, mount, b"d")
    make(world, mount, b"x", directory)
    world.pass_time(1_000_000)
    listing(world, mount, directory=directory)
    world.run(mount.record_accesses())
    assert atime_us(world, world.mount(), directory) == START_US + 1_000_000


@pytest.mark.parametrize("options", [{"access_times": False}, {"read_only": True}])
def test_mounts_that_record_no_accesses(world: World, options: dict[str, bool]) -> None:
    file = create(world, world.mount()).identifier
    world.pass_time(1_000_000)
    mount = world.mount(**options)
    opened = world.run(mount.open(file, os.O_RDONLY, ALICE))
    world.run(mount.read(opened, 0, 1))
    world.run(mount.record_accesses())
    assert world.objects.calls[registry.ACCESSED] == 0


def test_setting_the_access_time_is_the_last_word(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    world.pass_time(1_000_000)
    world.run(mount.read(file, 0, 1))
    world.run(mount.change_attributes(file.identifier, Changes(atime_ns=7_000), ALICE))
    assert atime_us(world, mount, file.identifier) == 7
    world.run(mount.record_accesses())
    assert atime_us(world, world.mount(), file.identifier) == 7


def test_strict_mounts_record_accesses_at_once(world: World) -> None:
    mount = world.mount(strict=True)
    file = create(world, mount)
    world.pass_time(1_000_000)
    world.run(mount.read(file, 0, 1))
    assert atime_us(world, world.mount(), file.identifier) == START_US + 1_000_000


def test_permissions_are_the_methods_business(world: World) -> None:
    """The client adds no right of its own: it asks with its user's credentials."""
    mount = world.mount()
    directory = mkdir(world, mount, b"d")
    for conversation in (
        mount.make_node(directory, b"x", stat.S_IFREG | 0o644, BOB),
        mount.make_directory(directory, b"x", 0o755, BOB),
        mount.make_symlink(directory, b"x", b"t", BOB),
        mount.create(directory, b"x", 0o644, BOB),
    ):
        refused(errno.EACCES, world, conversation)
    world.run(mount.make_node(directory, b"x", stat.S_IFREG | 0o644, ROOT))
