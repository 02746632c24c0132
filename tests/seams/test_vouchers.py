"""An inode names what N - t nodes vouch for: correct writers get that, whoever is down or lies."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.refusal import Refused
from bftfs.conversation import Pause
from bftfs.crypto.digest import life_of
from bftfs.filesystem import block_names
from bftfs.filesystem.attributes import NO_CHANGES, Changes
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update import accepting
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.messages import HistoryReply, Status, UpdateReply
from bftfs.query_update.rounds import UpdateTally
from bftfs.read_write import vouching, writing
from bftfs.read_write.messages import VouchReply, WriteReply, WriteRequest
from bftfs.read_write.timestamp import digest_of
from bftfs.read_write.writing import Preferred
from bftfs.server.step import Ready
from bftfs.simulation.world import SECOND_US
from tests.seams.false_vouchers import Forging, Withholding
from tests.seams.world import BLOCK_BYTES, STRANGER, STRANGERS_GRANT, User, World

ONE, TWO = "after!", "after" + "." * BLOCK_BYTES  # of two blocks: nodes are asked for a set


def started() -> tuple[World, User, ObjectId]:
    world = World()
    user = world.user("user")
    user.format()
    return world, user, user.make("file", "before")


def outliving(world: World, number: int) -> Callable[[Any], Any]:
    """A server that vouches in the life that it had before it lost its disk."""
    keys = world.deployment.keys(world.nodes[number].node)

    class Outliving:
        def __init__(self, honest: Any) -> None:
            self._honest = honest

        def step(self, *arguments: Any) -> Any:
            ready, message = self._honest.step(*arguments), arguments[2]
            reply = ready.reply
            if isinstance(reply, WriteReply) and reply.voucher:
                digest = digest_of([(message.block, message.timestamp)])
                ready.reply = WriteReply(reply.lives, keys.make(digest, life=0))
            elif isinstance(reply, VouchReply) and reply.authenticator:
                digest = digest_of((each.block, each.timestamp) for each in message.versions)
                ready.reply = VouchReply(keys.make(digest, life=0), reply.lives)
            return ready

    return Outliving


def forge(world: World, number: int, liar: Callable[[Any], Any] = Forging) -> None:
    """Make a forger of a node, or another liar."""
    node = world.nodes[number]

    def servers() -> Any:
        honest = world.deployment.servers(node.node)
        for kind, server in honest.items():
            honest[kind] = liar(server)  # type: ignore[index]
        return honest

    node.become(servers)


def pushed_past(missing: int, world: World, user: User, identifier: ObjectId, contents: str) -> Any:
    """A file whose blocks are at all nodes but one, and not covered yet."""
    past = world.nodes[missing].endpoint
    world.ways.hold(
        lambda _source, target, _kind, message: target == past and isinstance(message, WriteRequest)
    )
    file = user.run(user.files.open(identifier, 1, user.who))
    user.files.write(file, 0, contents.encode(), now_ns=0)
    user.run(user.files._contents._writer.push(file.contents, tuple(file.contents.dirty)))
    world.ways.hold(lambda *_: False)
    return file


def written(world: World, user: User, identifier: ObjectId, contents: str) -> None:
    """Somebody else reads what the user writes now."""
    user.put(identifier, contents, within_us=20 * SECOND_US)
    assert world.user(f"reader at {world.now_us}").read(identifier).startswith(contents[:9])


@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("liar", [0, 3, 5])
def test_a_node_that_forges_vouchers_hinders_nobody(liar: int, contents: str) -> None:
    world, user, identifier = started()
    forge(world, liar)
    for attempt in range(3):
        written(world, user, identifier, f"{attempt}{contents}")


def seconds_for_writes(contents: str, *, outlives: bool) -> float:
    """How long some writes take beside a liar that gives vouchers at first, and none when asked."""
    world, user, identifier = started()
    liar = world.nodes[3]
    if outlives:
        world.deployment.lose_disk(liar.node)
        world.run_for(20 * SECOND_US)
    forge(world, 3, outliving(world, 3) if outlives else Forging)
    asked = 0

    def falls_silent(source: Any, _target: Any, _kind: Any, message: Any) -> bool:
        nonlocal asked
        asked += source == liar.endpoint and isinstance(message, VouchReply)
        is_first = contents == TWO and asked % 2 == 1
        return source == liar.endpoint and isinstance(message, VouchReply) and not is_first

    world.ways.hold(falls_silent)
    since_us = world.now_us
    for attempt in range(6):
        user.put(identifier, f"{attempt}{contents}", within_us=20 * SECOND_US)
    return (world.now_us - since_us) / SECOND_US


@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("outlives", [False, True])
def test_nobody_waits_for_a_node_that_forges_and_falls_silent(
    outlives: bool, contents: str
) -> None:
    assert seconds_for_writes(contents, outlives=outlives) < 0.5


@pytest.mark.parametrize("outlives", [False, True])
def test_must_fail_writers_that_learn_nothing_of_refusals(
    outlives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vouching, writing):
        monkeypatch.setattr(
            module,
            "preferred",
            lambda _session, vouchers, _told, least=0: Preferred(vouchers, len(vouchers) >= least),
        )
    monkeypatch.setattr(Peers, "accuse", lambda *_: None)
    assert seconds_for_writes(ONE, outlives=outlives) > 3


# --- a liar that accuses others -------------------------------------------------------------------


def accusing(status: Status) -> Callable[[Any], Any]:
    """A server that never vouches, and says of each update that a correct server is a forger."""

    class Accusing:
        def __init__(self, honest: Any) -> None:
            self._honest = honest

        def step(self, *arguments: Any) -> Any:
            ready = self._honest.step(*arguments)
            reply = ready.reply
            if isinstance(reply, VouchReply):
                return Ready()
            if isinstance(reply, UpdateReply):
                ready.reply = replace(reply, status=status, forged=1 << 1, answer=b"")
            return ready

    return Accusing


def seconds_beside_an_accuser(
    status: Status, contents: str = ONE, liar: int = 3, *, contended: bool = False
) -> float:
    """How long eight writes take. If `contended`, another client changes the same inode always."""
    world, user, identifier = started()
    forge(world, liar, accusing(status))
    other, stopped = world.user("other"), False

    async def contend() -> None:
        mode = 0
        while not stopped:
            mode += 1
            await other.files.change_attributes(identifier, Changes(mode=mode % 0o777), other.who)
            await Pause(2_000)

    world.run_for(5 * SECOND_US)
    if contended:
        world.start(other.host, contend())
    took_us = 0
    for attempt in range(8):
        since_us = world.now_us
        user.put(identifier, f"{attempt}{contents}", within_us=20 * SECOND_US)
        took_us += world.now_us - since_us
        world.run_for(SECOND_US // 10)
    stopped = True
    return took_us / SECOND_US


@pytest.mark.parametrize("status", [Status.UNVOUCHED, Status.CULLED])
@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("liar", [0, 3])
def test_nobody_waits_for_a_node_that_accuses_others_and_does_not_vouch(
    liar: int, contents: str, status: Status
) -> None:
    assert seconds_beside_an_accuser(status, contents, liar) < 0.5


@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("liar", [0, 3])
def test_nor_with_others_updates_in_between(liar: int, contents: str) -> None:
    took = seconds_beside_an_accuser(Status.UNVOUCHED, contents, liar, contended=True)
    assert took < 0.5


@pytest.mark.parametrize("contents", [ONE, TWO])
def test_what_one_server_does_not_believe_is_repaired(contents: str) -> None:
    """A liar forges its voucher for that server alone, and takes part in no update: so the server
    is needed."""
    world, user, identifier = started()
    forger, keys = 0, world.deployment.keys(world.nodes[4].node)

    class Partial(Forging):
        def step(self, *arguments: Any) -> Any:
            ready = self._honest.step(*arguments)
            reply, asked = ready.reply, arguments[2]
            if isinstance(reply, UpdateReply):
                return Ready()
            if isinstance(reply, WriteReply) and reply.voucher:
                digest = digest_of([(asked.block, asked.timestamp)])
                ready.reply = WriteReply(reply.lives, spoilt(reply.voucher, digest))
            elif isinstance(reply, VouchReply) and reply.authenticator:
                digest = digest_of((each.block, each.timestamp) for each in asked.versions)
                ready.reply = VouchReply(spoilt(reply.authenticator, digest), reply.lives)
            return ready

    def spoilt(voucher: bytes, digest: bytes) -> bytes:
        """With another byte, which the one server checks."""
        for at in range(len(voucher)):
            other = voucher[:at] + bytes([voucher[at] ^ 1]) + voucher[at + 1 :]
            valid = keys.check(claimed_by=NodeId(forger), digest=digest, authenticator=other)
            if not valid and life_of(other) == life_of(voucher):
                return other
        raise AssertionError("no byte counts for it")

    forge(world, forger, Partial)
    world.run_for(5 * SECOND_US)
    for attempt in range(4):
        written(world, user, identifier, f"{attempt}{contents}")


def test_must_fail_writers_that_get_new_vouchers_by_one_servers_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        UpdateTally,
        "fails_for_vouchers",
        property(lambda tally: bool(tally.unvouched) and not tally.complete),
    )
    assert seconds_beside_an_accuser(Status.UNVOUCHED, contended=True) > 1


def test_must_fail_writers_that_leave_out_whoever_is_accused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(session: Any, vouchers: Any, told: Any, least: int = 0) -> Preferred:
        shown = preferred(session, vouchers, told, least).vouchers
        shown = tuple(each for each in shown if each.node not in session.peers.disbelieved)
        return Preferred(shown, len(shown) >= max(least, session.thresholds.responses))

    preferred = writing.preferred
    for module in (vouching, writing):
        monkeypatch.setattr(module, "preferred", without)
    assert seconds_beside_an_accuser(Status.CULLED) > 5


def test_must_fail_writers_that_do_not_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        return None

    monkeypatch.setattr(QueryUpdateClient, "_renew", never)
    world, user, identifier = started()
    forge(world, 3)

    def write() -> None:
        for attempt in range(6):  # until it is among the first that acknowledge
            written(world, user, identifier, f"{attempt}{ONE}")

    with pytest.raises(AssertionError, match="it has not happened"):
        write()


@pytest.mark.parametrize("contents", [ONE, TWO])
def test_what_a_node_has_missed_it_is_given_when_another_one_is_down(contents: str) -> None:
    """Of those that have acknowledged the blocks, too few are there to vouch for them."""
    world, user, identifier = started()
    file = pushed_past(4, world, user, identifier, contents)
    world.nodes[1].crash(down_us=None)
    user.run(user.files.release(file), within_us=20 * SECOND_US)
    assert world.user("reader").read(identifier).startswith(contents[:9])


def test_must_fail_where_nobody_repairs_what_a_node_has_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(vouching, "_repair", never)
    with pytest.raises(AssertionError, match="it has not happened"):
        test_what_a_node_has_missed_it_is_given_when_another_one_is_down(TWO)


@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("lying", [Forging, Withholding])
def test_what_a_node_has_missed_it_is_given_while_another_one_lies(
    lying: Callable[[Any], Any], contents: str
) -> None:
    """The liar says that it hosts the blocks: to readers they are complete, and not repaired."""
    world, user, identifier = started()
    forge(world, 3, lying)
    file = pushed_past(4, world, user, identifier, contents)
    user.run(user.files.release(file), within_us=20 * SECOND_US)
    assert world.user("reader").read(identifier).startswith(contents[:9])


@pytest.mark.parametrize(("lying", "rule"), [(Forging, "_repair"), (Withholding, "repair")])
def test_must_fail_where_writers_go_by_what_is_complete(
    lying: Callable[[Any], Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask for other vouchers, and repair what is incomplete to readers."""

    async def never(*_: Any, **__: Any) -> bool:
        return True

    monkeypatch.setattr(vouching, rule, never)
    with pytest.raises(AssertionError, match="it has not happened"):
        test_what_a_node_has_missed_it_is_given_while_another_one_lies(lying, TWO)


@pytest.mark.parametrize("contents", [ONE, TWO])
def test_a_disk_that_is_lost_between_block_and_update(contents: str) -> None:
    """What its node has vouched for does not count any more."""
    world, user, identifier = started()
    file = user.run(user.files.open(identifier, 1, user.who))
    user.files.write(file, 0, contents.encode(), now_ns=0)
    store = user.files._contents
    user.run(store._writer.push(file.contents, tuple(file.contents.dirty)))
    world.run_for(SECOND_US)
    world.deployment.lose_disk(world.nodes[2].node)
    world.run_for(SECOND_US)
    user.run(user.files.release(file), within_us=20 * SECOND_US)
    assert world.user("reader").read(identifier).startswith(contents[:9])


# --- vouchers of a life that has ended ------------------------------------------------------------

FORGETFUL, UNAWARE, ALLY = 0, 8, 5


def named_with_what_was_lost() -> Status:
    """With t = 2. A stranger writes a block to one node, which vouches for it and loses its disk.

    Another node does not hear of that. Then the stranger writes to QC - 1 correct nodes, and names
    the block with their vouchers, that of an ally, and the lost one. What the unaware node says.
    """
    world = World(t=2, b=1)
    root = world.user("root")
    root.format()
    identifier = root.make("shared", "before", mode=0o666)
    world.run_for(605 * SECOND_US)
    found = root.attributes(identifier)
    assert found.layout is not None
    stranger = world.hand("stranger", grant=STRANGERS_GRANT, allies=(ALLY,))
    version = stranger.version(found.layout.block(identifier, 0), "never there", world.now_us)
    stranger.write(version, (FORGETFUL,))
    (lost,) = [each for each in stranger.claims([version]) if each.node == FORGETFUL]
    forgetful, unaware = (world.nodes[each].endpoint for each in (FORGETFUL, UNAWARE))
    world.ways.hold(
        lambda source, target, _kind, message: (
            (source, target) == (forgetful, unaware) and not isinstance(message, HistoryReply)
        )
    )
    world.deployment.lose_disk(world.nodes[FORGETFUL].node)
    world.run_for(20 * SECOND_US)
    stranger.write(version, (1, 2, 3, 4, UNAWARE))
    claims = stranger.claims([version])
    assert [each.node for each in claims] == [1, 2, 3, 4, ALLY, UNAWARE]
    writing = Writing(
        0, found.layout.newest, 0, NO_CHANGES, (block_names.covered(0, version.timestamp),)
    )
    statuses = stranger.update(
        identifier,
        WRITE,
        writing,
        STRANGER,
        claims=(lost, *claims),
        asked=(UNAWARE,),
        without=(FORGETFUL,),
    )
    assert world.hosting(version.block, version.timestamp) == [1, 2, 3, 4, UNAWARE]
    return statuses[0]


def test_what_a_node_vouched_for_before_a_loss_does_not_count() -> None:
    assert named_with_what_was_lost() is Status.UNVOUCHED


def test_must_fail_where_nobody_listens_to_those_that_vouch_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "claims_of", lambda *_: set())
    assert named_with_what_was_lost() is Status.SUCCESS


# --- who is far away -----------------------------------------------------------------------------


class Late:
    """A server that refuses what authors write, as of a wrong time."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def step(self, *arguments: Any) -> Any:
        if isinstance(arguments[2], WriteRequest):
            return Ready(Refused(errno.ETIME, "the time is wrong"))
        return self._honest.step(*arguments)


def saved_from_afar(contents: str, *liars: int) -> bool:
    """Whether a user to whom nodes answer after three seconds, and these liars at once,
    has saved something after five minutes.
    """
    world, user, identifier = started()
    for liar in liars:
        forge(world, liar, Late)
    world.ways.distances_us = {
        node.endpoint: 1_500_000 for node in world.nodes if int(node.node) not in liars
    }
    saved = world.start(user.host, user.putting(identifier, contents))
    world.run_for(300 * SECOND_US)
    return saved == [None]


def test_who_is_far_from_all_nodes_saves_several_blocks() -> None:
    assert saved_from_afar(TWO)


def test_who_is_far_saves_beside_a_liar_that_finds_the_time_wrong() -> None:
    assert saved_from_afar(ONE, 0)


@pytest.mark.parametrize(("contents", "liars"), [(TWO, ()), (ONE, (0,))])
def test_must_fail_where_nodes_that_vouch_are_never_waited_for_any_longer(
    contents: str, liars: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_MOST_US", limits.WRITE_PATIENCE_US)
    assert not saved_from_afar(contents, *liars)
