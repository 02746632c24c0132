"""Neither repairs nor histories tell anybody what is in a directory that he may not read.

A client that finishes what another has begun needs its request, which has names and values in it.
Servers give it to those only who may read that anyway; others use barriers and copies.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from itertools import combinations
from operator import attrgetter
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.credentials import Grant
from bftfs.crypto.digest import operation_digest
from bftfs.errors import FileSystemError
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.directory import Creation, Listing
from bftfs.filesystem.file_history import Change, History
from bftfs.filesystem.inode import ExtendedSetting
from bftfs.filesystem.registry import READ_DIRECTORY, SET_EXTENDED
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, kind_of
from bftfs.query_update import server
from bftfs.query_update.history import (
    Conditioned,
    ConditionedKind,
    Known,
    LogicalTimestamp,
    ObjectHistorySet,
    assemble,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    DeduceReply,
    DeduceRequest,
    FetchReply,
    FetchRequest,
    PastVersion,
    Query,
    QueryReply,
    Status,
    Verdict,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.object_type import encode_record
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.replica import Replica
from bftfs.query_update.server import QueryUpdateServer
from bftfs.restoration.telling import said
from bftfs.wire.codec import encode
from tests.seams.world import (
    ROOT,
    STRANGER,
    STRANGERS_GRANT,
    SUPERUSER,
    VOLUME,
    Hand,
    User,
    World,
    refused,
)

EVERYONE = range(6)
SECRET = b"wages of all of us"


class House:
    """A directory of root's, in which there is a file."""

    def __init__(self, mode: int = 0o700) -> None:
        self.world = World(verifying=False)
        self.root: User = self.world.user("root")
        self.root.format()
        self.directory: ObjectId = self.root.run(self._make(mode))
        self.spy: Hand = self.world.hand("spy", grant=STRANGERS_GRANT)

    async def _make(self, mode: int) -> ObjectId:
        files, who = self.root.files, self.root.who
        found = await files.make_directory(ROOT, b"house", mode, who)
        kind = stat.S_IFREG | 0o644
        _, file = await files.create(found.identifier, SECRET, kind, who, flags=os.O_WRONLY)
        await files.release(file)
        return found.identifier

    @property
    def latest(self) -> LogicalTimestamp:
        """The version that the file's creation has made."""
        return Replica(self.world.nodes[0].disk, self.directory).history.latest

    def fetched(self, hand: Hand, who: Any) -> list[bytes]:
        replies = hand.ask_all(FetchRequest(self.latest, *who))
        return [each.conditioned for each in replies.values() if isinstance(each, FetchReply)]

    def listed(self, version: LogicalTimestamp) -> dict[int, Any]:
        """The directory's entries in that version, as servers tell the spy."""
        question = encode_record(Listing(0, 4096))
        versions = (version,)
        return self.spy.ask_all(
            Query(
                (self.directory,), READ_DIRECTORY, question, *STRANGER, NodeId(0), False, versions
            )
        )


def test_requests_are_told_to_those_who_may_read() -> None:
    assert House().fetched(House().spy, STRANGER) == [b""] * 6
    house = House()
    assert house.fetched(house.spy, STRANGER) == [b""] * 6
    members = house.fetched(house.world.hand("admin", grant=Grant(uids=(0,))), SUPERUSER)
    assert any(SECRET in each for each in members)
    house = House(mode=0o755)
    assert any(SECRET in each for each in house.fetched(house.spy, STRANGER))


def test_nobody_asks_for_them_in_anothers_name() -> None:
    house = House()
    replies = house.spy.ask_all(FetchRequest(house.latest, *SUPERUSER))
    assert set(refused(replies).values()) == {errno.EPERM}
    assert all(isinstance(each, Refused) or not each.conditioned for each in replies.values())


def test_must_fail_servers_that_tell_them_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueryUpdateServer, "_may_know", lambda *_: True)
    house = House()
    assert any(SECRET in each for each in house.fetched(house.spy, STRANGER))


def answers(house: House) -> set[bytes]:
    """What the creation was answered, as servers tell the spy."""
    at = house.latest
    replies = house.spy.ask_all(DeduceRequest(at, (house.directory,), at))
    established = [
        each
        for each in replies.values()
        if isinstance(each, DeduceReply) and each.verdict is Verdict.ESTABLISHED
    ]
    assert established or set(refused(replies).values()) == {errno.EPERM}
    return {each.answer for each in established}


def test_answers_are_told_to_authors() -> None:
    assert answers(House()) == set()


def test_must_fail_servers_that_tell_answers_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_is_author", lambda *_: True)
    assert max(answers(House()))


def test_the_version_of_before_is_closed_as_well() -> None:
    """Also for a query that names the version."""
    assert what_was_listed() == {errno.EACCES}


def what_was_listed() -> set[int]:
    house = House(mode=0o755)
    version = house.latest
    change = house.root.files.change_attributes(house.directory, Changes(mode=0o700), SUPERUSER)
    house.root.run(change)
    replies = [each for each in house.listed(version).values() if isinstance(each, QueryReply)]
    assert any(each.answered for each in replies)
    return {each.error for each in replies if each.answered and house.latest != version}


def test_must_fail_where_it_is_judged_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueryUpdateServer, "_forbidden_now", lambda *_: 0)
    assert 0 in what_was_listed()


@pytest.mark.parametrize("accepting", [3, 4])
def test_who_may_not_know_goes_on_all_the_same(accepting: int) -> None:
    """In a directory where he may make files, and not list any, root has left something."""
    house = House(mode=0o733)
    hand = house.world.hand("root's other", grant=Grant(uids=(0,), gids=(0,)))
    note = ExtendedSetting(b"user.note", SECRET, 0)
    asked = range(accepting)
    statuses = hand.update(house.directory, SET_EXTENDED, note, SUPERUSER, asked=asked)
    assert statuses == [Status.SUCCESS] * accepting
    stranger = house.world.user("stranger", STRANGER, grant=STRANGERS_GRANT)

    async def create() -> ObjectId:
        kind = stat.S_IFREG | 0o600
        found, file = await stranger.files.create(
            house.directory, b"mine", kind, STRANGER, flags=os.O_WRONLY
        )
        await stranger.files.release(file)
        return found.identifier

    identifier = stranger.run(create())
    found = house.root.run(house.root.files.lookup(house.directory, b"mine", SUPERUSER))
    assert found.identifier == identifier


# --- histories of objects that he may read --------------------------------------------------------


def pages(
    hand: Hand, name: ObjectId, who: Any = STRANGER, prefixes: tuple[bytes, ...] = ()
) -> list[bytes]:
    """The history of an object, as each server tells it."""
    latest = Replica(hand.world.nodes[0].disk, name).history.latest
    asked = (*who, limits.VERSIONS_IN_REPLY, prefixes)
    told = []
    for node in EVERYONE:
        request = VersionsRequest(name, latest, *asked, NodeId(node))
        reply = hand.ask({node: (request, b"")})[node]
        told += [reply.page] if isinstance(reply, VersionsReply) and reply.found else []
    assert told
    return told


def of_a_file(house: House) -> ObjectId:
    """The file in the house, which everybody may read who knows its id."""
    find = house.root.files.lookup(house.directory, SECRET, SUPERUSER)
    identifier: ObjectId = house.root.run(find).identifier
    return identifier


def of_the_volume(house: House) -> ObjectId:
    """The volume, in which a directory in the house was moved."""
    move_out(house)
    return VOLUME


def of_the_moved(house: House) -> ObjectId:
    """A directory that was made in the house and moved."""
    return move_out(house)


def move_out(house: House, mode: int = 0o700) -> ObjectId:
    """Make a directory in the house, and move it to another one."""
    files, who = house.root.files, SUPERUSER

    async def move() -> ObjectId:
        target = await files.make_directory(ROOT, b"there", mode, who)
        moved = await files.make_directory(house.directory, SECRET + b"?", 0o755, who)
        await files.rename(house.directory, SECRET + b"?", target.identifier, b"moved", who)
        return moved.identifier

    identifier: ObjectId = house.root.run(move())
    return identifier


HISTORIES = [of_a_file, of_the_volume, of_the_moved]


@pytest.mark.parametrize("history", HISTORIES)
def test_histories_tell_no_names_in_other_objects(history: Any) -> None:
    house = House()
    name = history(house)
    told = pages(house.spy, name)
    assert not any(SECRET in page for page in told)
    assert any(b"directory.create" in page or b"directory.relocate" in page for page in told)
    admin = house.world.hand("admin", grant=Grant(uids=(0,)))
    assert any(SECRET in page for page in pages(admin, name, SUPERUSER))


@pytest.mark.parametrize("history", HISTORIES)
def test_must_fail_histories_that_tell_all_names(
    history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueryUpdateServer, "_names_told", lambda *arguments: arguments[-1])
    house = House()
    assert any(SECRET in page for page in pages(house.spy, history(house)))


def test_a_directory_tells_its_own_names_and_no_others() -> None:
    house = House(mode=0o755)
    assert any(SECRET in page for page in pages(house.spy, house.directory))
    move_out(house)
    find = house.root.files.lookup(ROOT, b"there", SUPERUSER)
    there = house.root.run(find).identifier
    assert set(refusals(house.spy, there)) == {errno.EACCES}
    assert not any(b"moved" in page for page in pages(house.spy, house.directory))
    house.root.chmod(there, 0o755)
    told = pages(house.spy, there)
    assert any(b"moved" in page for page in told)
    assert not any(SECRET in page for page in told)


def test_what_is_opened_tells_its_history() -> None:
    """Also of the time when it was closed; but nobody lists it as it was then."""
    house = House()
    closed = house.latest
    house.root.run(house.root.files.unlink(house.directory, SECRET, house.root.who))
    assert not any(SECRET in each for each in pages_if_permitted(house))
    house.root.chmod(house.directory, 0o755)
    assert any(SECRET in each for each in pages_if_permitted(house))
    replies = [each for each in house.listed(closed).values() if isinstance(each, QueryReply)]
    assert {each.error for each in replies if each.answered} == {errno.EACCES}


def pages_if_permitted(house: House) -> list[bytes]:
    return pages(house.spy, house.directory, prefixes=(b"e",))


def refusals(hand: Hand, name: ObjectId) -> list[int]:
    """With what servers refuse the stranger an object's history."""
    latest = Replica(hand.world.nodes[0].disk, name).history.latest
    request = VersionsRequest(name, latest, *STRANGER, 1, (), NodeId(0))
    replies = hand.ask_all(request).values()
    return [each.error for each in replies if isinstance(each, VersionsReply) and each.found]


def of_strangers_own(house: House) -> ObjectId:
    """A file that the stranger has made in a directory which he may not read."""
    house.root.chmod(house.directory, 0o733)
    stranger = house.world.user("stranger", STRANGER, grant=STRANGERS_GRANT)

    async def create() -> ObjectId:
        kind = stat.S_IFREG | 0o644
        found, file = await stranger.files.create(
            house.directory, b"my own", kind, STRANGER, flags=os.O_WRONLY
        )
        await stranger.files.release(file)
        return found.identifier

    identifier: ObjectId = stranger.run(create())
    return identifier


def test_who_has_made_a_name_is_told_it() -> None:
    """Also by another client of the same user, and nobody else is."""
    house = House()
    name = of_strangers_own(house)
    assert any(b"my own" in page for page in pages(house.spy, name))
    other = STRANGER._replace(uid=4243)
    grant = Grant(uids=(other.uid,), gids=(other.gid,))
    assert not any(
        b"my own" in page for page in pages(house.world.hand("x", grant=grant), name, other)
    )


def test_nobody_has_names_told_in_anothers_name() -> None:
    house = House()
    latest = Replica(house.world.nodes[0].disk, of_a_file(house)).history.latest
    request = VersionsRequest(of_a_file(house), latest, *SUPERUSER, 1, (), NodeId(0))
    assert set(refused(house.spy.ask_all(request)).values()) == {errno.EPERM}


def told_while_one_is_behind() -> set[bytes]:
    """A file's history, as servers tell it; one has not heard that a directory is closed."""
    house = House(mode=0o755)
    name = of_a_file(house)
    behind = house.world.nodes[5].endpoint
    house.world.ways.hold(lambda _source, target, _kind, _message: target == behind)
    house.root.chmod(house.directory, 0o700)
    house.world.ways.release(lambda *_: False)
    house.world.ways.hold(lambda *_: False)
    return {page for page in pages(house.spy, name) if len(page) > 32}


def test_what_is_withheld_goes_by_nothing_that_servers_may_lack() -> None:
    """All servers that list a version list it alike, so that readers find enough that agree."""
    assert len(told_while_one_is_behind()) == 1


def test_must_fail_where_what_is_withheld_goes_by_the_directories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    versions = QueryUpdateServer._versions

    def note(self: Any, view: Any, sender: Any, message: Any, now_us: int) -> Any:
        asked[:] = [view, sender]
        return versions(self, view, sender, message, now_us)

    def names_told(self: Any, claim: Any, _name: Any, operation: Any) -> Any:
        if self._may_know(*asked, claim, operation):
            return operation
        return msgspec.structs.replace(operation, arguments=b"")

    monkeypatch.setattr(QueryUpdateServer, "_versions", note)
    monkeypatch.setattr(QueryUpdateServer, "_names_told", names_told)
    assert len(told_while_one_is_behind()) == 2


def guessed(house: House, guesses: Iterable[bytes]) -> bytes | None:
    """Which guess at the name of a file that root makes now is right, as the spy can see.

    He knows the directory's replica histories, for which anybody may ask, and what the history of
    the file tells of the operation. The timestamp has the digest of all that and of the name.
    """
    replies = house.spy.ask_all(Query((house.directory,), "", b"", *STRANGER, NodeId(0)))
    before = {node: each for node, each in replies.items() if isinstance(each, QueryReply)}

    async def make() -> ObjectId:
        files, kind = house.root.files, stat.S_IFREG | 0o644
        found, file = await files.create(
            house.directory, b"layoffs", kind, SUPERUSER, flags=os.O_WRONLY
        )
        await files.release(file)
        return found.identifier

    name = house.root.run(make())
    page = max(pages(house.spy, name), key=len)
    (version,) = msgspec.msgpack.decode(page, type=tuple[PastVersion, ...])
    assert version.operation is not None
    arguments = msgspec.msgpack.decode(version.operation.arguments, type=Creation)
    for guess in guesses:
        whole = encode_record(msgspec.structs.replace(arguments, name=guess))
        operation = msgspec.structs.replace(version.operation, arguments=whole)
        for count in range(len(before) + 1):
            for nodes in combinations(before, count):
                heard = {node: Known(before[node].histories[0], b"") for node in nodes}
                sets = [assemble(house.directory, heard)[0], ObjectHistorySet(name)]
                sets.sort(key=attrgetter("object"))
                at_us = time_of(version.timestamp)
                conditioned = Conditioned(ConditionedKind.METHOD, operation, at_us, tuple(sets))
                if version.timestamp.endswith(operation_digest(encode(conditioned))):
                    return guess
    return None


def ids_in(house: House) -> set[ObjectId]:
    """What the spy learns of the objects in a directory that is closed to him."""
    replies = house.spy.ask_all(Query((house.directory,), "", b"", *STRANGER, NodeId(0))).values()
    histories = {each.histories[0] for each in replies if isinstance(each, QueryReply)}
    candidates = [each for history in histories for each in parse_history(history).candidates]
    return {name for each in candidates for name in each.objects} - {house.directory}


def test_ids_are_handles_which_replica_histories_tell() -> None:
    """Not promised: that a directory above a file keeps it from who has a client's key.

    The file's own permission does.
    """
    house = House()
    (name,) = (each for each in ids_in(house) if kind_of(each) == ObjectKind.INODE)
    house.root.put(name, "for members")
    stranger = house.world.user("stranger", STRANGER, grant=STRANGERS_GRANT)
    assert stranger.read(name) == "for members"
    house.root.chmod(name, 0o600)
    with pytest.raises(FileSystemError, match="EACCES"):
        house.world.user("another", STRANGER, grant=STRANGERS_GRANT).read(name)


GUESSES = b"party", b"layoffs", b"raises"


def test_nobody_sees_that_he_has_guessed_a_name() -> None:
    assert guessed(House(), GUESSES) is None


def test_must_fail_where_what_nobody_can_guess_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server,
        "_untold",
        lambda operation, arguments: msgspec.structs.replace(operation, arguments=arguments),
    )
    assert guessed(House(), GUESSES) == b"layoffs"


def lines(house: House, name: ObjectId) -> list[str]:
    """What `bftfs log` says of an object's versions to the stranger, the earliest first."""
    stranger = house.world.user("reader", STRANGER, grant=STRANGERS_GRANT)
    history = History(
        stranger.files, stranger.objects, PastReader(stranger.objects), stranger.blocks
    )

    async def read() -> list[str]:
        changes = await history.changes(name, STRANGER)
        return [said(await history.with_names(each, STRANGER)) for each in reversed(changes)]

    found: list[str] = stranger.run(read())
    return found


def test_readers_are_told_the_names_of_directories_that_they_may_read() -> None:
    """Their programs ask the directories' histories."""
    hidden = "(a name that is not shown to this user)"
    house = House()
    assert lines(house, of_a_file(house)) == [f"create {hidden}"]
    moved = move_out(house)
    assert lines(house, moved) == [f"mkdir {hidden}", f"move {hidden} to {hidden}"]
    house.root.chmod(house.directory, 0o755)
    assert lines(house, of_a_file(house)) == [f"create '{SECRET.decode()}'"]
    secret = f"'{SECRET.decode()}?'"
    assert lines(house, moved) == [f"mkdir {secret}", f"move {secret} to {hidden}"]
    find = house.root.files.lookup(ROOT, b"there", SUPERUSER)
    house.root.chmod(house.root.run(find).identifier, 0o755)
    assert lines(house, moved) == [f"mkdir {secret}", f"move {secret} to moved"]


def test_what_is_withheld_is_said_to_be() -> None:
    house = House()
    name = of_a_file(house)
    note = ExtendedSetting(b"trusted.note", b"for root", 0)
    house.root.run(house.root.objects.update((name,), SET_EXTENDED, note, SUPERUSER))
    page = next(each for each in pages(house.spy, name) if len(each) > 32)
    versions = msgspec.msgpack.decode(page, type=tuple[PastVersion, ...])
    operations = [each.operation for each in versions if each.operation is not None]
    changes = [
        Change(each.timestamp, each.objects, operation, None, ())
        for each, operation in zip(versions, operations, strict=True)
    ]
    assert [said(each) for each in changes] == [
        "set (the details are not shown to this user)",
        "create (a name that is not shown to this user)",
    ]


PREFIXES = [(b"x",), (b"xuser.", b"xtrusted.n"), (b"xtrusted.note",)]


def of_the_superuser(prefixes: tuple[bytes, ...], who: Any = STRANGER) -> bool:
    """Whether anybody tells an attribute for the superuser alone, of a file that all may read."""
    house = House()
    name = of_a_file(house)
    note = ExtendedSetting(b"trusted.note", b"for root", 0)
    house.root.run(house.root.objects.update((name,), SET_EXTENDED, note, SUPERUSER))
    hand = house.spy if who == STRANGER else house.world.hand("admin", grant=Grant(uids=(0,)))
    latest = Replica(house.world.nodes[0].disk, name).history.latest
    replies = hand.ask_all(FetchRequest(latest, *who)).values()
    told = [each.conditioned for each in replies if isinstance(each, FetchReply)]
    told += pages(hand, name, who, prefixes)
    return any(b"for root" in each for each in told)


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_what_is_for_the_superuser_is_told_to_no_reader(prefixes: tuple[bytes, ...]) -> None:
    assert not of_the_superuser(prefixes)
    assert of_the_superuser(prefixes, SUPERUSER)


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_must_fail_histories_with_changes_of_all_keys(
    prefixes: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inode, "_may_show_trusted", lambda _: False)
    assert of_the_superuser(prefixes)


def test_must_fail_where_a_request_is_judged_by_its_object_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(QueryUpdateServer, "_forbidden_now", lambda *_: 0)
    assert of_the_superuser(())
