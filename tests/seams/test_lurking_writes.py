"""A version that was planted at few nodes while it was permitted must not appear later.

Nobody sees it: it is incomplete, readers pass over it. The vouchers of those that host it prove for
ever that its author wrote it; with them anybody may send the other nodes their fragments, as the
repair of a write that was cut short. That changes nothing: a version is part of a file only since
an update of its author's has named it. (docs/threat-model.md, G4)
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

import pytest

from bftfs import limits
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import NO_CHANGES
from bftfs.filesystem.block_names import covered, name_blocks
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.contents import KnownNames
from bftfs.filesystem.file_history import History
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import ObjectId
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.messages import Status
from bftfs.query_update.past_reading import PastReader
from bftfs.restoration.changes import ChangeLog, read_changes
from bftfs.restoration.undo import Undo
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.simulation.world import SECOND_US
from tests.seams.world import (
    BLOCK_BYTES,
    READERS_GRANT,
    ROOT,
    STRANGER,
    STRANGERS_GRANT,
    Hand,
    User,
    Version,
    World,
    latest_complete,
)

MINE, EVIL = "what root wrote", "EVIL!!"
SETTLED_US = 3_600 * SECOND_US

# Correct nodes that the stranger plants the version at, lying nodes that host it in silence, and
# whether the first of the former is down from then on until somebody finishes the version.
HIDDEN = [((0, 3), 1, False), ((0, 1, 3), 0, True)]
# More than b hosts, and fewer than QC - t: too few vouchers for anybody, at any time.
DEAD = [((0, 3), 0, False), ((0,), 1, False)]
# A reader that hears of so many repairs it at once.
SEEN = [((0, 1, 3), 0, False), ((0, 1, 3), 1, False)]

everywhere = pytest.mark.parametrize(("nodes", "liars", "away"), [*HIDDEN, *DEAD, *SEEN])


class Planted(NamedTuple):
    """What the stranger has prepared."""

    world: World
    root: User
    stranger: Hand
    identifier: ObjectId
    version: Version
    vouchers: tuple[Any, ...]
    since_us: int


def plant(nodes: tuple[int, ...], liars: int, away: bool = False) -> Planted:
    """A stranger may write to a file. He writes to some nodes, and collects their vouchers.

    A node that lies hosts the version as well, and says so to nobody but him.
    """
    world = World()
    root = world.user("root")
    root.format()
    identifier = root.make("shared", MINE, mode=0o666)
    world.run_for(605 * SECOND_US)
    root.put(identifier, MINE)
    found = root.attributes(identifier)
    assert found.layout is not None
    since_us = found.contents - SECOND_US
    world.run_for(10 * SECOND_US)
    stranger = world.hand("stranger", grant=STRANGERS_GRANT, allies=(5,) * liars)
    version = stranger.version(found.layout.block(identifier, 0), EVIL, found.contents)
    stranger.write(version, nodes)
    vouchers = stranger.vouchers(version)
    assert len(vouchers) == len(nodes) + liars > world.sizes.read_write.b
    if away:
        world.nodes[nodes[0]].crash(down_us=None)
    return Planted(world, root, stranger, identifier, version, vouchers, since_us)


def finish(case: Planted) -> None:
    """A client that may only read sends all nodes their fragments, with the vouchers."""
    for node in case.world.nodes:
        node.start()
    accomplice = case.world.hand("accomplice", grant=READERS_GRANT)
    accomplice.finish(case.version, case.vouchers)


def read(case: Planted) -> str:
    """What somebody reads who has read nothing before."""
    return case.world.user(f"reader at {case.world.now_us}").read(case.identifier).rstrip("\0")


@everywhere
def test_what_is_closed_stays_as_it_was(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """Root closes the file; an hour later the version is finished."""
    case = plant(nodes, liars, away)
    case.root.chmod(case.identifier, 0o400)
    case.world.run_for(SETTLED_US)
    before = read(case)
    finish(case)
    assert read(case) == before


@everywhere
def test_a_writer_that_was_revoked_changes_nothing(
    nodes: tuple[int, ...], liars: int, away: bool
) -> None:
    """No node knows the stranger any more; a reader, who still is a client, finishes for him."""
    case = plant(nodes, liars, away)
    del case.world.deployment._senders[case.stranger.host.endpoint]
    case.world.run_for(SETTLED_US)
    before = read(case)
    finish(case)
    assert read(case) == before


@everywhere
def test_the_past_stays_as_it_was_read(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """Root has written again since: the version could show in the past alone."""
    case = plant(nodes, liars, away)
    world, then_us = case.world, case.version.timestamp.time
    case.root.put(case.identifier, "later")
    world.run_for(SETTLED_US)
    before = read_past(case, "reader", then_us)
    finish(case)
    assert read_past(case, "later reader", then_us) == before


def read_past(case: Planted, name: str, time_us: int) -> bytes:
    """The file as it was then, to somebody who has read nothing before."""
    user = case.world.user(name)
    contents: bytes = user.run(viewpoint(user, case.world).contents(case.identifier, time_us))
    return contents


@pytest.mark.parametrize("moment_s", [0, 599, 601, 660])
@pytest.mark.parametrize(("nodes", "liars", "away"), HIDDEN + DEAD + SEEN)
def test_nothing_comes_and_goes(
    nodes: tuple[int, ...], liars: int, away: bool, moment_s: int
) -> None:
    """Somebody finishes the version, one node after the other."""
    case = plant(nodes, liars, away)
    world = case.world
    case.root.chmod(case.identifier, 0o400)
    world.run_for(moment_s * SECOND_US)
    accomplice = world.hand("accomplice", grant=READERS_GRANT)
    seen = [read(case)]
    for node in (1, 2, 4, 5, 0):
        accomplice.write(case.version, (node,), vouchers=case.vouchers)
        world.run_for(SECOND_US)
        seen.append(read(case))
    for node in world.nodes:
        node.start()
    world.run_for(SETTLED_US)
    seen.append(read(case))
    assert seen == [MINE] * len(seen)


def test_must_fail_readers_that_go_by_what_nodes_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest complete version is shown, or as of a time: whoever has completed it, and when."""
    monkeypatch.setattr(BlockReader, "_shown", latest_complete)
    for nodes, liars, away in HIDDEN:
        for test in (
            test_what_is_closed_stays_as_it_was,
            test_a_writer_that_was_revoked_changes_nothing,
            test_undo_ends_what_is_incomplete,
        ):
            with pytest.raises(AssertionError, match="EVIL"):
                test(nodes, liars, away)


@everywhere
def test_nobody_else_covers_it(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """Neither root, whose update comes later, nor an accomplice who may write the file."""
    case = plant(nodes, liars, away)
    finish(case)
    case.root.put(case.identifier, "r", offset=len(EVIL))
    mixed = MINE[: len(EVIL)] + "r" + MINE[len(EVIL) + 1 :]
    assert read(case) == mixed
    accomplice = case.world.user("other stranger", STRANGER)
    found = accomplice.attributes(case.identifier)
    stolen = covered(0, case.version.timestamp)
    writing = Writing(1, found.layout.newest, 0, NO_CHANGES, (stolen,))
    with pytest.raises(AdmissionRefused, match="too few nodes host"):
        accomplice.run(accomplice.objects.update((case.identifier,), WRITE, writing, STRANGER))
    assert read(case) == mixed


# --- what is named -------------------------------------------------------------------------------


def name(case: Planted, claims: tuple[Any, ...] = ()) -> list[Status]:
    """The stranger, who may write the file, names what he has planted."""
    attributes = case.root.attributes(case.identifier)
    assert attributes.layout is not None
    blocks = (covered(0, case.version.timestamp),)
    writing = Writing(0, attributes.layout.newest, 0, NO_CHANGES, blocks)
    return case.stranger.update(case.identifier, WRITE, writing, STRANGER, claims=claims)


@pytest.mark.parametrize(("nodes", "liars", "away"), HIDDEN)
def test_what_is_planted_cannot_be_named(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """So that nothing turns from unreadable to readable when somebody finishes it."""
    case = plant(nodes, liars, away)
    for claims in ((), case.vouchers, case.stranger.claims([case.version])):
        said = name(case, claims)
        assert said.count(Status.UNVOUCHED) >= case.world.sizes.n - liars - away
    assert read(case) == MINE
    finish(case)
    assert read(case) == MINE
    case.world.run_for(SETTLED_US)
    assert read(case) == MINE


def test_must_fail_where_nodes_ask_for_no_vouchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accepting, "_require_hosts", lambda *_: None)
    case = plant((0, 3), 1)
    assert name(case).count(Status.SUCCESS) >= 5
    with pytest.raises(FileSystemError):
        read(case)
    for node in case.world.nodes:
        node.start()
    case.stranger.finish(case.version, case.vouchers)
    assert read(case) == EVIL


def test_what_every_node_but_one_hosts_can_be_named() -> None:
    case = plant((0, 1, 2, 3), 1)
    claims = case.stranger.claims([case.version])
    assert len(claims) == 5
    assert Status.UNVOUCHED not in name(case, claims)
    assert read(case) == EVIL


# --- behind the end of the file -------------------------------------------------------------------

BEHIND = "E" * BLOCK_BYTES


def grown(number: int, *, by_truncation: bool) -> bytes:
    """A stranger leaves bytes behind the end of a file. Root closes it, undoes, and lets it grow.

    The file has one block, of which a few bytes count. What is read of it then.
    """
    case = plant((0, 3), 0)
    root, world = case.root, case.world
    layout = root.attributes(case.identifier).layout
    assert layout is not None
    contents = MINE + BEHIND[len(MINE) :] if number == 0 else BEHIND
    block = layout.block(case.identifier, number)
    version = case.stranger.version(block, contents, world.now_us)
    case.stranger.write(version, range(world.sizes.n))
    writing = Writing(0, layout.newest, 0, NO_CHANGES, (covered(number, version.timestamp),))
    claims = case.stranger.claims([version])
    case.stranger.update(case.identifier, WRITE, writing, STRANGER, claims=claims)
    root.chmod(case.identifier, 0o400)
    undo(case)
    size = (number + 2) * BLOCK_BYTES
    mount = root.filesystem(Options())

    async def grow() -> bytes:
        file = await mount.open(case.identifier, os.O_RDWR, root.who)
        if by_truncation:
            await mount.truncate(case.identifier, size, root.who)
        else:
            mount.write(file, size - 1, b"\0", now_ns=world.now_us * 1000)
            await mount.flush(file)
        seen = bytes(await mount.read(file, 0, size))
        await mount.release(file)
        return seen

    seen: bytes = root.run(grow())
    other = world.user("reader").filesystem(Options())
    reader = world.user("another reader")

    async def read() -> bytes:
        file = await other.open(case.identifier, os.O_RDONLY, reader.who)
        found = bytes(await other.read(file, 0, size))
        await other.release(file)
        return found

    assert reader.run(read()) == seen
    return seen


behind_the_end = pytest.mark.parametrize("number", [0, 1, 5])


@pytest.mark.parametrize("by_truncation", [False, True])
@behind_the_end
def test_what_lies_behind_the_end_does_not_show(number: int, by_truncation: bool) -> None:
    """Undo compares bytes up to the end. Whoever lets the file grow gets zeros there."""
    size = (number + 2) * BLOCK_BYTES
    assert grown(number, by_truncation=by_truncation) == MINE.encode().ljust(size, b"\0")


@behind_the_end
def test_must_fail_where_blocks_are_shown_whole(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number:
        named = partial(name_blocks, size=limits.FILE_BYTES)
        monkeypatch.setattr(inode, "name_blocks", lambda *those, **_: named(*those))
    else:
        monkeypatch.setattr(inode, "grow", lambda *_: None)
        monkeypatch.setattr(KnownNames, "limit", lambda *_: None)
    assert b"E" in grown(number, by_truncation=False)


# --- audit and undo ------------------------------------------------------------------------------


def viewpoint(user: User, world: World) -> Viewpoint:
    history = History(
        user.files,
        user.objects,
        PastReader(user.objects),
        user.blocks,
    )
    return Viewpoint(user.files, history, user.who, world.now_us)


def audit(case: Planted, seen: Viewpoint) -> ChangeLog:
    """What the stranger has done since the intrusion began."""
    log: ChangeLog = case.root.run(
        read_changes(seen, ROOT, path="", client=case.stranger.host.client, since_us=case.since_us)
    )
    return log


def undo(case: Planted) -> None:
    seen = viewpoint(case.root, case.world)
    log = audit(case, seen)
    for step in case.root.run(Undo(seen, log, label="K").steps()):
        if step.perform is not None:
            case.root.run(step.perform())


@pytest.mark.parametrize(
    ("nodes", "liars", "away"), [case for case in HIDDEN + DEAD + SEEN if len(case[0]) > 1]
)
def test_audit_lists_what_is_incomplete(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """As what no update has covered, and not as a change of the file. More than t nodes host it."""
    case = plant(nodes, liars, away)
    log = audit(case, viewpoint(case.root, case.world))
    (version,) = log.uncovered[case.identifier]
    assert version.block == case.version.block
    assert log.touched() == []


@everywhere
def test_undo_ends_what_is_incomplete(nodes: tuple[int, ...], liars: int, away: bool) -> None:
    """Root undoes what the stranger did; whatever happens later, his bytes are not read again."""
    case = plant(nodes, liars, away)
    undo(case)
    assert read(case) == MINE
    finish(case)
    assert read(case) == MINE
    case.world.run_for(SETTLED_US)
    finish(case)
    assert read(case) == MINE
