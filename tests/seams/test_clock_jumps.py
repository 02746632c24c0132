"""All clocks jump ahead together, and back: a bad time server, a machine that was restored.

Nobody can notice that while it lasts: all agree. What was written meanwhile must not be frozen
until the clocks have come to that time again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.conversation import Now
from bftfs.envelope import ClockReply, ClockRequest
from bftfs.errors import AdmissionRefused, FileSystemError, PastUnknown
from bftfs.filesystem import block_writing
from bftfs.filesystem.block_rewriting import BlockRewriter
from bftfs.filesystem.block_versions import VersionWriter
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import PERMIT_WRITING
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    assemble,
    history_of,
    logical_timestamp,
    time_of,
)
from bftfs.query_update.messages import Status, Update
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.replica import Replica
from bftfs.read_write.messages import WriteRequest
from bftfs.read_write.writing import WriteRound
from bftfs.server.own_clock import OwnClock
from bftfs.simulation import deployment
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import SimulatedNode
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
from bftfs.wire.codec import encode
from tests.seams.world import (
    BLOCK_BYTES,
    READERS_GRANT,
    ROOT,
    STRANGER,
    VOLUME,
    User,
    World,
    accepted,
)

COUNTER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
YEAR_S = 365 * 24 * 3_600
JUMPS_S = [200, 900, YEAR_S]


def jump(world: World, users: list[User], by_s: int) -> None:
    """Set all clocks."""
    for host in (*world.nodes, *(user.host for user in users)):
        host.skew_us += by_s * SECOND_US


def done(world: World, user: User, conversation: Any) -> Any:
    """What comes of it within a minute."""
    ended = world.start(user.host, conversation)
    world.run_for(60 * SECOND_US)
    assert ended, "it waits"
    assert not isinstance(ended[0], AdmissionRefused), str(ended[0])
    return ended[0]


def incrementing(user: User) -> Any:
    """An update of the counter."""
    return user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_an_object_is_not_frozen(jump_s: int) -> None:
    """A counter is incremented during the jump, and again after it, and by somebody else."""
    world = World()
    user, other = world.user("user"), world.user("other")

    def increment(who: User) -> int:
        value: int = done(world, who, incrementing(who)).answer.value
        return value

    assert increment(user) == 1
    jump(world, [user, other], jump_s)
    assert increment(user) == 2
    jump(world, [user, other], -jump_s)
    fetched = other.objects.query((COUNTER,), "counter.fetch", Fetch(), other.who)
    assert done(world, other, fetched).answer.value == 2
    assert increment(user) == 3
    assert increment(other) == 4


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_file_is_not_frozen(jump_s: int) -> None:
    """A file is written during the jump, and again after it: its blocks and its inode."""
    world, user, other, identifier = after_a_jump(jump_s)
    assert other.read(identifier).rstrip("\0") == "during"
    done(world, other, other.putting(identifier, "after!"))
    assert user.read(identifier).rstrip("\0") == "after!"


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("jump_s", [*JUMPS_S, 2 * 24 * 3_600])
def test_a_file_whose_mode_was_changed_is_not_frozen(jump_s: int, is_strict: bool) -> None:
    """The inode is ahead, its contents are not: nodes would take new blocks for days old."""
    world = World()
    user, other = world.user("user"), world.user("other")
    other.files = other.filesystem(Options(strict=is_strict, access_times=False))
    user.format()
    identifier = user.make("file", "before")
    jump(world, [user, other], jump_s)
    user.chmod(identifier, 0o640)
    jump(world, [user, other], -jump_s)
    for contents in ("after!", "again!"):
        assert done(world, other, other.putting(identifier, contents)) is None
        assert user.read(identifier).rstrip("\0") == contents


def test_must_fail_where_contents_stay_behind_their_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay(*_: Any) -> None:
        return None

    monkeypatch.setattr(VersionWriter, "move_on", stay)
    with pytest.raises(AssertionError):
        test_a_file_whose_mode_was_changed_is_not_frozen(YEAR_S, is_strict=False)


def in_the_middle_of_an_update() -> tuple[World, User, User]:
    """All clocks are ahead. A client's update has reached one server, and goes no further."""
    world = World(verifying=False, compares_clocks=True)
    user, other = world.user("user"), world.user("other")
    done(world, user, incrementing(user))
    jump(world, [user, other], YEAR_S)
    world.run_for(90 * SECOND_US)
    done(world, user, incrementing(user))
    world.ways.hold(lambda _source, target, *_: target != world.nodes[2].endpoint)
    world.start(user.host, incrementing(user))
    world.run_for(SECOND_US)
    return world, user, other


def after_an_incomplete_update() -> tuple[World, User]:
    """A client stopped in the middle of an update while all clocks were ahead."""
    world, user, other = in_the_middle_of_an_update()
    world.ways.hold(lambda *_: False)
    jump(world, [user, other], -YEAR_S)
    return world, other


@pytest.mark.parametrize(("restarts", "late_s"), [(False, 0), (True, 0), (False, 3_000)])
def test_an_object_with_an_incomplete_update_is_not_frozen(restarts: bool, late_s: int) -> None:
    """A client stops in the middle of an update at the end of the jump; then a node is down."""
    world, other = after_an_incomplete_update()
    if restarts:
        for node in world.nodes:
            node.crash(down_us=None)
        for node in world.nodes:
            node.start()
    world.nodes[5].crash(down_us=None)
    world.run_for((late_s + 90) * SECOND_US)
    assert done(world, other, incrementing(other)).answer.value in {3, 4}
    done(world, other, incrementing(other))


@pytest.mark.parametrize("jump_s", [3_600, 3_660])
def test_what_a_fast_clock_took_in_a_jump_is_not_frozen(jump_s: int) -> None:
    """A server is nearly five minutes ahead of those that confirm its clock, and the author of an
    incomplete update as much ahead of that. What they tell is hardly rounded up at these jumps."""
    world = World(verifying=False, compares_clocks=True)
    user, other = world.user("user"), world.user("other")
    done(world, user, incrementing(user))
    fast = world.nodes[2]
    fast.skew_us = 290 * SECOND_US
    jump(world, [user, other], jump_s)
    world.run_for(90 * SECOND_US)
    done(world, user, incrementing(user))
    user.host.skew_us += 585 * SECOND_US
    world.ways.hold(lambda _source, target, *_: target != fast.endpoint)
    world.start(user.host, incrementing(user))
    world.run_for(SECOND_US)
    world.ways.hold(lambda *_: False)
    user.host.crash()
    jump(world, [other], -jump_s)
    fast.skew_us = 0
    latest = Replica(fast.disk, COUNTER).history.latest
    assert time_of(latest) - world.now_us > (jump_s + 580) * SECOND_US
    world.nodes[5].crash(down_us=None)
    world.run_for(90 * SECOND_US)
    done(world, other, incrementing(other))


def test_what_was_left_in_a_jump_is_not_frozen_by_another_one() -> None:
    """The clocks are right for a minute, and then ahead by less than before."""
    world, user, other = in_the_middle_of_an_update()
    user.host.crash()
    world.ways.hold(lambda *_: False)
    world.nodes[5].crash(down_us=None)
    for by_s in (-YEAR_S, YEAR_S // 4, -YEAR_S // 4):
        jump(world, [other], by_s)
        world.run_for(90 * SECOND_US)
    done(world, other, incrementing(other))


def test_must_fail_where_a_jump_counts_as_time_that_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = OwnClock._note

    def note_nothing_else(clock: OwnClock, now_us: int) -> None:
        clock._noted_us = now_us
        note(clock, now_us)

    monkeypatch.setattr(OwnClock, "_note", note_nothing_else)
    with pytest.raises(AssertionError, match="it waits"):
        test_what_was_left_in_a_jump_is_not_frozen_by_another_one()


def test_must_fail_where_nodes_bear_with_no_more_than_others_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BORNE_BEYOND_US", 0)
    with pytest.raises(AssertionError, match="it waits"):
        test_what_a_fast_clock_took_in_a_jump_is_not_frozen(3_600)


def test_must_fail_where_nodes_forget_what_time_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnClock, "before_us", lambda *_: 0)
    with pytest.raises(AssertionError):
        test_an_object_with_an_incomplete_update_is_not_frozen(restarts=False, late_s=0)


def test_must_fail_where_nodes_forget_it_with_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnClock, "recall", lambda *_: None)
    with pytest.raises(AssertionError):
        test_an_object_with_an_incomplete_update_is_not_frozen(restarts=True, late_s=0)


def left_where_nodes_had_just_started(*, compares: bool) -> tuple[World, User, list[int]]:
    """All start while the clocks are ahead, a client leaves an update at one; soon all go back.

    None has compared its clock but this one, and this only if it `compares`; and they remember
    nothing of before. Which nodes have taken the update is told as well.
    """
    world = World(verifying=False, compares_clocks=True)
    user, other = world.user("user"), world.user("other")
    done(world, user, incrementing(user))

    def restart() -> None:
        for node in world.nodes:
            node.crash(down_us=None)
        for node in world.nodes:
            node.start()

    def is_held(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        one = world.nodes[2].endpoint
        if isinstance(message, ClockRequest):
            return not compares or source != one
        return kind is Kind.REQUEST and target != one

    jump(world, [user, other], YEAR_S)
    world.ways.hold(is_held)
    for node in world.nodes:
        node.disk.lose(Table.META, b"clock")
    restart()
    world.start(user.host, incrementing(user))
    world.run_for(SECOND_US // 10)
    limit_us = world.now_us + SECOND_US
    left = [
        int(node.node)
        for node in world.nodes
        if time_of(Replica(node.disk, COUNTER).history.latest) > limit_us
    ]
    user.host.crash()
    world.ways.hold(lambda *_: False)
    jump(world, [user, other], -YEAR_S)
    restart()
    world.nodes[5].crash(down_us=None)
    world.run_for(90 * SECOND_US)
    return world, other, left


@pytest.mark.parametrize("compares", [False, True])
def test_nodes_that_start_while_the_clocks_are_ahead_freeze_nothing(compares: bool) -> None:
    """One takes nothing before others agree; and these remember what they told it."""
    world, other, left = left_where_nodes_had_just_started(compares=compares)
    assert left == ([2] if compares else [])
    done(world, other, incrementing(other))


def test_must_fail_where_a_node_trusts_its_clock_when_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "OwnClock", lambda t, **_: OwnClock(t))
    world, other, _ = left_where_nodes_had_just_started(compares=False)
    with pytest.raises(AssertionError, match="it waits"):
        done(world, other, incrementing(other))


def test_must_fail_where_nodes_forget_what_they_told_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OwnClock, "is_stored", lambda *_: True)
    with pytest.raises(AssertionError, match="it waits"):
        test_nodes_that_start_while_the_clocks_are_ahead_freeze_nothing(compares=True)


def left_where_just_enough_have_confirmed_it(t: int, b: int) -> tuple[World, User]:
    """One server takes an update in a jump, when just enough others have confirmed its clock.

    All have just started, and start again soon: who has told nobody the time remembers nothing of
    the jump. When the clocks are right, t of those that have confirmed the server's are down.
    """
    world = World(t, b, verifying=False, compares_clocks=True)
    user, other = world.user("user"), world.user("other")
    done(world, user, incrementing(user))
    clocks, one, others = world.deployment.clocks, world.nodes[0], world.nodes[1:]
    enough = 0
    while not clocks[one.node].is_confirmed_by({other.node: 0 for other in others[:enough]}):
        enough += 1
    confirming = [other.endpoint for other in others[:enough]]

    def restart(nodes: list[SimulatedNode]) -> None:
        for node in nodes:
            node.crash(down_us=None)
        for node in nodes:
            node.start()

    def is_held(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if isinstance(message, ClockRequest):
            return source != one.endpoint or target not in confirming
        return kind is Kind.REQUEST and target != one.endpoint

    jump(world, [user, other], YEAR_S)
    world.ways.hold(is_held)
    for node in world.nodes:
        node.disk.lose(Table.META, b"clock")
    restart(world.nodes)
    world.start(user.host, incrementing(user))
    for _ in range(3):
        world.run_for(SECOND_US // 5)
        restart(others)
    assert time_of(Replica(one.disk, COUNTER).history.latest) > world.now_us + SECOND_US
    user.host.crash()
    world.ways.hold(lambda *_: False)
    jump(world, [user, other], -YEAR_S)
    restart(world.nodes)
    for node in others[:t]:
        node.crash(down_us=None)
    world.run_for(90 * SECOND_US)
    return world, other


@pytest.mark.parametrize(("t", "b"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_those_that_have_confirmed_a_clock_may_fail_later(t: int, b: int) -> None:
    world, other = left_where_just_enough_have_confirmed_it(t, b)
    done(world, other, incrementing(other))


def test_must_fail_where_nobody_counts_those_that_fail_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_confirmed_by(_clock: OwnClock, differences: dict[NodeId, int]) -> bool:
        t, b = 2, 1
        return len(differences) >= t + 2 * b

    monkeypatch.setattr(OwnClock, "is_confirmed_by", is_confirmed_by)
    with pytest.raises(AssertionError, match="it waits"):
        test_those_that_have_confirmed_a_clock_may_fail_later(2, 1)


@pytest.mark.parametrize(
    ("late_s", "beyond_us", "taken"),
    [(0, 0, True), (3_000, 0, True), (0, 1, False), (3_800, 0, False)],
)
def test_one_server_moves_an_objects_time_no_further_than_clocks_were(
    late_s: int, beyond_us: int, taken: bool
) -> None:
    """And only for a while after they were set back."""
    world, _ = after_an_incomplete_update()
    world.run_for((late_s + 1) * SECOND_US)
    hand = world.hand("hand", grant=READERS_GRANT, allies=[0])
    clocks = world.deployment.clocks
    befores_us = {clocks[node.node].before_us(node.wall_clock_us()) for node in world.nodes}
    before_us = befores_us.pop() or world.now_us + YEAR_S * SECOND_US
    assert not befores_us, "they differ"
    assert before_us - world.now_us + 4_000 * SECOND_US >= YEAR_S * SECOND_US
    assert before_us - world.now_us <= 1.5 * YEAR_S * SECOND_US
    time_us = before_us + limits.CLOCK_SKEW_US + beyond_us - 1
    told = logical_timestamp(time_us=time_us, barrier=True, client=hand.client, digest=bytes(32))
    known = hand.forged(0, COUNTER, history_of([Candidate(told, ZERO)], initial=True))
    history_set, authenticators, _ = assemble(COUNTER, {NodeId(0): known})
    conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (history_set,))
    replies = hand.ask_all(Update(encode(conditioned), (authenticators,), (), NodeId(0)))
    assert [reply.status is Status.SUCCESS for reply in replies.values()] == [taken] * 6


def told_by_a_liar() -> tuple[int, int]:
    """One correct server's clock is a year ahead for minutes. Later a liar tells what it bore.

    How far a client with a key for reading can push an object then, with the liar; and what the
    clock had borne, from now.
    """
    world = World(compares_clocks=True)
    user = world.user("user")
    done(world, user, incrementing(user))
    world.run_for(130 * SECOND_US)
    wrong, clocks = world.nodes[3], world.deployment.clocks
    wrong.skew_us += YEAR_S * SECOND_US
    world.run_for(150 * SECOND_US)
    wrong.skew_us -= YEAR_S * SECOND_US
    world.run_for(10 * SECOND_US)
    borne_us = clocks[wrong.node].borne_us(wrong.wall_clock_us())
    assert borne_us > world.now_us + YEAR_S // 2 * SECOND_US

    class Telling:
        def __init__(self, honest: Any) -> None:
            self._honest = honest

        def step(self, *arguments: Any) -> Any:
            ready = self._honest.step(*arguments)
            if isinstance(ready.reply, ClockReply):
                ready.reply = ClockReply(ready.reply.now_us, borne_us)
            return ready

    def servers() -> Any:
        honest = world.deployment.servers(world.nodes[0].node)
        for kind, server in honest.items():
            honest[kind] = Telling(server)  # type: ignore[index]
        return honest

    world.nodes[0].become(servers)
    world.run_for(130 * SECOND_US)
    hand = world.hand("hand", grant=READERS_GRANT, allies=[0])
    told = logical_timestamp(time_us=borne_us, barrier=True, client=hand.client, digest=bytes(32))
    known = hand.forged(0, COUNTER, history_of([Candidate(told, ZERO)], initial=True))
    history_set, authenticators, _ = assemble(COUNTER, {NodeId(0): known})
    conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (history_set,))
    hand.ask_all(Update(encode(conditioned), (authenticators,), (), NodeId(0)))
    done(world, user, incrementing(user))
    latest = max(Replica(node.disk, COUNTER).history.latest for node in world.nodes[1:])
    return time_of(latest) - world.now_us, borne_us - world.now_us


def test_a_single_clock_that_was_wrong_is_of_no_use_to_a_liar() -> None:
    ahead_us, _ = told_by_a_liar()
    assert ahead_us <= limits.CLOCK_SKEW_US


def test_must_fail_where_liars_are_counted_among_those_that_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(t: int, *, b: int, compared: bool) -> OwnClock:
        return OwnClock(t, b=b - b, compared=compared)

    monkeypatch.setattr(deployment, "OwnClock", trusting)
    ahead_us, borne_us = told_by_a_liar()
    assert ahead_us >= borne_us


# --- files ---------------------------------------------------------------------------------------


def after_a_jump(jump_s: int = YEAR_S) -> tuple[World, User, User, ObjectId]:
    """A world in which a file was written while the clocks were ahead."""
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "before")
    jump(world, [user, other], jump_s)
    user.put(identifier, "during")
    jump(world, [user, other], -jump_s)
    return world, user, other, identifier


def test_a_large_file_in_a_directory_that_is_ahead() -> None:
    """Each batch of its blocks would have a later time, if the mount went by its clock."""
    world, user, other, _ = after_a_jump()
    options = Options(access_times=False, batch_bytes=BLOCK_BYTES)
    user.files = user.filesystem(options)

    async def write() -> ObjectId:
        found, file = await user.files.create(
            ROOT, b"large", stat.S_IFREG | 0o600, user.who, flags=os.O_WRONLY
        )
        for number in range(2 * limits.STEPS_AHEAD_US):
            data = b"%04d" % number * (BLOCK_BYTES // 4)
            user.files.write(file, number * BLOCK_BYTES, data, now_ns=await Now() * 1000)
        await user.files.release(file)
        return found.identifier

    identifier = done(world, user, write())
    assert other.attributes(identifier).size == 2 * limits.STEPS_AHEAD_US * BLOCK_BYTES
    assert other.read(identifier).startswith("0000")


def test_what_a_writer_leaves_as_far_ahead_as_nodes_take_it_stops_nobody() -> None:
    """And no further: see `test_a_version_follows_the_time_of_its_file_by_a_few_steps`."""
    world, user, other, identifier = after_a_jump()
    user.chmod(identifier, 0o666)
    world.run_for(SECOND_US)
    hand = world.hand("hand")
    attributes = user.attributes(identifier)
    assert attributes.layout is not None
    block = attributes.layout.block(identifier, 0)
    know = [0, 1, 2, 3, 4]  # the file as it is now
    for step, nodes in ((limits.STEPS_AHEAD_US, know), (limits.STEPS_AHEAD_US + 1, [])):
        left = hand.version(block, "left", attributes.contents + step)
        assert accepted(hand.write(left, range(6))) == nodes
    done(world, other, other.putting(identifier, "after!"))
    assert user.read(identifier).rstrip("\0") == "after!"


def test_a_block_that_nobody_covered_is_not_frozen() -> None:
    """Its writer died during the jump, a while after the file was written last."""
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "before")
    user.chmod(identifier, 0o666)
    jump(world, [user, other], YEAR_S)
    user.put(identifier, "during")
    world.run_for(10 * SECOND_US)
    hand = world.hand("hand")
    layout = user.attributes(identifier).layout
    assert layout is not None
    left = hand.version(layout.block(identifier, 0), "left", world.now_us + YEAR_S * SECOND_US)
    assert len(accepted(hand.write(left, range(6)))) == 6
    jump(world, [user, other], -YEAR_S)
    done(world, other, other.putting(identifier, "after!"))
    assert user.read(identifier).rstrip("\0") == "after!"


@pytest.mark.parametrize("jump_s", JUMPS_S)
@pytest.mark.parametrize("covers", [False, True])
def test_a_writer_that_is_at_work_when_the_clocks_go_back(jump_s: int, covers: bool) -> None:
    """Its blocks have times that nodes do not take any more: it writes them again."""
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "before" + "." * 3 * BLOCK_BYTES)
    jump(world, [user, other], jump_s)
    file = user.run(user.files.open(identifier, os.O_WRONLY, user.who))
    store = user.files._contents
    store.write(file, BLOCK_BYTES, b"first", now_ns=0)
    user.run(store._writer.push(file.contents, tuple(file.contents.dirty)))
    if covers:
        user.run(store._writer.cover(file.contents))
        world.run_for(SECOND_US)
        store.write(file, 4 * BLOCK_BYTES, b"second", now_ns=0)
        user.run(store._writer.push(file.contents, tuple(file.contents.dirty)))
    jump(world, [user, other], -jump_s)
    store.write(file, 0, b"after!", now_ns=0)
    done(world, user, user.files.release(file))
    assert other.read(identifier)[:7] == "after!."

    async def read() -> bytes:
        found = await other.files.open(identifier, os.O_RDONLY, other.who)
        contents = bytes(await other.files.read(found, 0, 5 * BLOCK_BYTES))
        await other.files.release(found)
        return contents

    contents = other.run(read())
    assert contents[BLOCK_BYTES:][:6] == b"first."
    assert contents[4 * BLOCK_BYTES :] == (b"second" if covers else b"")
    done(world, other, other.putting(identifier, "again!"))
    assert user.read(identifier)[:7] == "again!."


def written_while_the_clocks_go_back(jump_s: int) -> list[Any]:
    """A node is down, and one hears of a block when all clocks are back; the others had taken it.

    What comes of the write in ten minutes.
    """
    world = World()
    user = world.user("user")
    user.format()
    identifier = user.make("file", "before")
    world.nodes[0].crash(down_us=None)
    jump(world, [user], jump_s)
    world.ways.hold(
        lambda _source, target, _kind, message: (
            isinstance(message, WriteRequest) and target == world.nodes[5].endpoint
        )
    )
    ended = world.start(user.host, user.putting(identifier, "after!"))
    world.run_for(SECOND_US // 10)
    jump(world, [user], -jump_s)
    world.ways.flow()
    world.ways.release()
    world.run_for(600 * SECOND_US)
    assert not ended or user.read(identifier) == "after!"
    return ended


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_write_that_some_nodes_have_taken_waits_for_no_node_that_is_down(jump_s: int) -> None:
    assert written_while_the_clocks_go_back(jump_s) == [None]


def test_must_fail_where_a_time_that_few_refuse_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = WriteRound.__init__

    def patient(self: WriteRound, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        self._is_authors = False

    monkeypatch.setattr(WriteRound, "__init__", patient)
    assert written_while_the_clocks_go_back(YEAR_S) == []


def changed_after_an_update_that_shows_nowhere(asked: int, *, cuts: bool = False) -> Any:
    """What comes of a change of a file that is ahead by no change of its attributes.

    In the jump somebody asked so many nodes whether writing is permitted.
    """
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "before", mode=0o666)
    hand = world.hand("hand")
    everybody: list[Any] = [user, other, hand]
    jump(world, everybody, YEAR_S)
    hand.update(identifier, PERMIT_WRITING, NoArguments(), STRANGER, asked=range(asked))
    jump(world, everybody, -YEAR_S)
    world.run_for(SECOND_US)
    files, who = other.files, other.who
    change = files.truncate(identifier, 3, who) if cuts else other.putting(identifier, "after!")
    ended = world.start(other.host, change)  # type: ignore[arg-type]
    world.run_for(600 * SECOND_US)
    if isinstance(ended[0], FileSystemError):
        return ended[0].code
    user.put(identifier, "f", 3)
    return user.read(identifier)


@pytest.mark.parametrize("asked", [1, 2, 3, 5])
def test_a_file_that_is_ahead_by_what_its_attributes_do_not_tell_is_not_frozen(asked: int) -> None:
    assert changed_after_an_update_that_shows_nowhere(asked) == "aftfr!"
    assert changed_after_an_update_that_shows_nowhere(asked, cuts=True) == "beff"


@pytest.mark.parametrize("cuts", [False, True])
def test_must_fail_where_contents_are_brought_up_to_attributes_alone(
    cuts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refresh(self: Any, contents: Any, _: int, who: Any, number: int = 0) -> None:
        await self.reader.refresh(contents, who, number)

    monkeypatch.setattr(BlockRewriter, "look_again", refresh)
    assert changed_after_an_update_that_shows_nowhere(2, cuts=cuts) == errno.EAGAIN


def written_again_when_the_clocks_go_back() -> str:
    """A new file's bytes are written once more, since others have changed it; then all clocks jump.

    What another user reads when they are covered.
    """
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "")
    jump(world, [user, other], YEAR_S)
    file = user.run(user.files.open(identifier, os.O_WRONLY, user.who))
    store = user.files._contents
    store.write(file, 0, b"bytes", now_ns=0)
    user.run(store._writer.push(file.contents, tuple(file.contents.dirty)))
    file.contents.must_ask(tuple(file.contents.uncovered))
    jump(world, [user, other], -YEAR_S)
    done(world, user, store._writer.cover(file.contents))
    return other.read(identifier)


def test_what_is_to_be_written_again_is_not_shown_as_zeros() -> None:
    assert written_again_when_the_clocks_go_back() == "bytes"


def test_must_fail_writers_that_let_the_file_grow_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing, "_held_before", lambda _: frozenset())
    assert written_again_when_the_clocks_go_back() == "\0" * 5


def test_must_fail_where_writers_stay_in_the_incarnation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up(_writer: Any, _contents: Any, refused: AdmissionRefused) -> None:
        raise refused

    monkeypatch.setattr(BlockRewriter, "leave_behind", give_up)
    with pytest.raises(AssertionError, match=r"the time is|too far from"):
        test_a_writer_that_is_at_work_when_the_clocks_go_back(YEAR_S, covers=False)
    with pytest.raises(AssertionError, match="the time is"):
        test_a_block_that_nobody_covered_is_not_frozen()


def test_nodes_count_and_name_what_is_ahead() -> None:
    """The file. One that was not asked when it was written has healed by the second pass."""
    world, _, _, identifier = after_a_jump()
    healers = [objects for objects, _ in world.deployment.healers.values()]
    for _ in range(2):
        for healer in healers:
            healer.throttle.hurry()
        world.run_for(10 * SECOND_US)
    assert [healer.tally.ahead for healer in healers] == [1] * 6
    assert {healer.tally.ahead_names for healer in healers} == {(identifier,)}


# --- clocks that differ --------------------------------------------------------------------------


def apart(count: int, *, compares_clocks: bool = True) -> tuple[World, User, ObjectId]:
    """A world in which the clocks of some nodes jump ahead by a year; and a file."""
    world = World(compares_clocks=compares_clocks)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "before", mode=0o666)
    world.run_for(90 * SECOND_US)
    for node in world.nodes[:count]:
        node.skew_us += YEAR_S * SECOND_US
    world.run_for(90 * SECOND_US)
    return world, user, identifier


def taken_ahead(world: World, user: User, identifier: ObjectId) -> list[int]:
    """The nodes that take a version whose author dates it by the clocks that are ahead."""
    layout = user.attributes(identifier).layout
    assert layout is not None
    hand = world.hand("hand")
    ahead_us = world.now_us + YEAR_S * SECOND_US
    return accepted(hand.write(hand.version(layout.block(identifier, 0), "a", ahead_us), range(6)))


def test_a_node_whose_clock_is_wrong_takes_nothing_by_it() -> None:
    """And the others go on with users whose clocks are right."""
    world, user, identifier = apart(1)
    assert taken_ahead(world, user, identifier) == []
    done(world, user, user.putting(identifier, "after!"))
    assert world.user("other").read(identifier).rstrip("\0") == "after!"


def test_must_fail_where_nodes_do_not_compare_their_clocks() -> None:
    world, user, identifier = apart(1, compares_clocks=False)
    assert taken_ahead(world, user, identifier) == [0]


def test_while_too_many_clocks_differ_writers_wait_and_readers_do_not() -> None:
    world, user, identifier = apart(2)
    written = world.start(user.host, user.putting(identifier, "after!"))
    world.run_for(90 * SECOND_US)
    assert not written
    other = world.user("other")
    assert other.read(identifier).rstrip("\0") == "before"
    assert taken_ahead(world, user, identifier) == []
    for node in world.nodes:
        node.skew_us = 0
    world.run_for(90 * SECOND_US)
    assert written == [None]
    assert other.read(identifier).rstrip("\0") == "after!"


def past_after_an_incomplete_update(skew_us: int) -> Any:
    """A reader of the past; an object's first update was left at one server, another is down."""
    world = World(verifying=False)
    user, reader = world.user("user"), world.user("reader", skew_us=skew_us)
    world.ways.hold(lambda _source, target, _kind, _message: target != world.nodes[2].endpoint)
    world.start(user.host, incrementing(user))
    world.run_for(SECOND_US)
    world.ways.hold(lambda *_: False)
    user.host.crash()
    world.nodes[5].crash(down_us=None)
    past = PastReader(reader.objects)
    query = past.query(COUNTER, "counter.fetch", Fetch(), reader.who, at_us=world.now_us)
    answer = reader.run(query).answer.value
    assert reader.objects.peers.faults == [0] * 6, "it blames servers"
    return answer


@pytest.mark.parametrize("skew_us", [0, -3_600 * SECOND_US])
def test_a_reader_whose_clock_is_slow_finds_out(skew_us: int) -> None:
    """What the server has that it needs is of the future, by its clock."""
    assert past_after_an_incomplete_update(skew_us) in {0, 1}


def test_must_fail_where_readers_trust_their_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peers, "failed", lambda *_, **__: None)
    with pytest.raises(PastUnknown):
        past_after_an_incomplete_update(-3_600 * SECOND_US)


# --- history -------------------------------------------------------------------------------------


def versions_after_a_jump(*, compares_clocks: bool) -> list[int]:
    """How many versions of a block nodes keep of two, after all clocks were ahead for an hour."""
    plan = CollectionPlan(14 * 24 * 3_600 * SECOND_US)
    world = World(compares_clocks=compares_clocks, collection=plan, volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "first")
    user.put(identifier, "second")
    world.run_for(90 * SECOND_US)
    jump(world, [user], YEAR_S)
    world.run_for(3_600 * SECOND_US)
    jump(world, [user], -YEAR_S)
    assert user.read(identifier).rstrip("\0") == "second"
    layout = user.attributes(identifier).layout
    assert layout is not None
    block = layout.block(identifier, 0)
    return [
        len(list(node.disk.keys(Table.BLOCK, block, block + bytes([255]) * 48)))
        for node in world.nodes
    ]


def test_a_common_jump_makes_nobody_forget_young_history() -> None:
    assert versions_after_a_jump(compares_clocks=True) == [2] * 6


def test_must_fail_where_nodes_take_young_history_for_old() -> None:
    assert 2 not in versions_after_a_jump(compares_clocks=False)
