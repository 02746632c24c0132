"""Bundles: what they give is what ordinary queries give, whoever lies, and nobody pays for it."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.peers import HEDGE_US, Peers
from bftfs.asking.refusal import Refused
from bftfs.credentials import ROOT, Credentials, Grant
from bftfs.filesystem import registry
from bftfs.filesystem.inode import ExtendedSetting
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update import bundle as bundles
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import (
    parse_history,
)
from bftfs.query_update.messages import Bundle, BundleReply, Query, Update
from bftfs.query_update.object_type import encode_record
from bftfs.server.step import Role, Sender, Want
from bftfs.simulation.byzantine.registry import NODES
from tests.builders import USER
from tests.unit.query_update.harness import SMALLEST, Client, Cluster, counter_id
from tests.unit.query_update.test_cost_of_a_faulty_node import corrupt

NAMES = tuple(counter_id(number) for number in range(12))
LIARS = [name for name in NODES if not NODES[name].__module__.endswith("block_nodes")]


def increment(client: Client, name: ObjectId, by: int = 1) -> None:
    client.run(client.qu.update((name,), "counter.increment", Increment(by), USER))


def bundle(client: Client, names: Any = NAMES) -> dict[ObjectId, int]:
    found = client.run(client.qu.bundle(names, "counter.fetch", Fetch(), USER))
    return {name: answered.answer.value for name, answered in found.items()}


def filled(cluster: Cluster) -> Client:
    """All servers have all versions, those behind the preferred quorum too."""
    writer = cluster.client("writer")
    for number, name in enumerate(NAMES):
        increment(writer, name, number + 1)
    updates = [each for each in cluster.sent if isinstance(each[2], Update)]
    for source, target, message in updates:
        if target == ("node", 0):
            cluster.request(source, ("node", SMALLEST.q), message)
    cluster.settle()
    return writer


EXPECTED = {name: number + 1 for number, name in enumerate(NAMES)}


def requests(cluster: Cluster, kind: type) -> int:
    return sum(isinstance(message, kind) for _, _, message in cluster.sent)


def answering(change: Any) -> Any:
    """A node that changes its answers to bundles."""

    def behave(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Any:
        ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, BundleReply):
            ready.reply = change(ready.reply)
        return ready

    return behave


def other_answers(reply: BundleReply) -> BundleReply:
    """The same wrong answers from whoever gives them."""
    return msgspec.structs.replace(
        reply, answers=tuple(each[:-1] + bytes((each[-1] ^ 1,)) for each in reply.answers)
    )


def test_many_objects_take_one_message_to_each_server_of_a_quorum() -> None:
    cluster = Cluster()
    filled(cluster)
    reader = cluster.client("reader")
    before = len(cluster.sent)
    assert bundle(reader) == EXPECTED
    asked = [message for _, _, message in cluster.sent[before:] if isinstance(message, Bundle)]
    assert len(asked) == SMALLEST.q
    assert not requests(cluster, Query)


def test_objects_of_several_preferred_quorums_take_a_bundle_each() -> None:
    cluster = Cluster()
    names = [counter_id(1, placement=placement) for placement in range(12)]
    writer, reader = cluster.client("writer"), cluster.client("reader")
    for name in names:
        increment(writer, name)
    assert bundle(reader, names) == dict.fromkeys(names, 1)
    assert requests(cluster, Bundle) == SMALLEST.n * SMALLEST.q


def test_more_objects_than_one_message_may_name_take_several() -> None:
    cluster = Cluster()
    names = [counter_id(number) for number in range(limits.QUERIES_BUNDLED + 1)]
    assert set(bundle(cluster.client("reader"), names).values()) == {0}
    assert requests(cluster, Bundle) == 2 * SMALLEST.q


def test_what_a_bundle_has_read_can_be_updated_in_one_round() -> None:
    cluster = Cluster()
    filled(cluster)
    reader = cluster.client("reader")
    bundle(reader)
    before = len(cluster.sent)
    increment(reader, NAMES[3])
    asked = [each for each in cluster.sent[before:] if each[0] == ("client", "reader")]
    assert len(asked) == SMALLEST.q


@pytest.mark.parametrize("liar", LIARS)
def test_one_liar_changes_no_answer(liar: str) -> None:
    for seed in range(2):
        cluster = Cluster(seed=seed)
        corrupt(cluster, liar, seed)
        writer, reader = filled(cluster), cluster.client("reader")
        found = bundle(reader)
        for name in NAMES:
            if name not in found:
                asked = reader.qu.query((name,), "counter.fetch", Fetch(), USER)
                found[name] = reader.run(asked).answer.value
        assert found == EXPECTED
        increment(writer, NAMES[0])


def test_a_wrong_answer_is_outvoted_and_convicts() -> None:
    cluster = Cluster()
    filled(cluster)
    cluster.nodes[0].behaviour = answering(other_answers)
    reader = cluster.client("reader")
    assert bundle(reader) == EXPECTED
    assert 0 in reader.qu.peers.convicted


def test_must_fail_fewer_than_a_quorum_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule that a quorum says it, b liars say what counts."""
    cluster = Cluster()
    filled(cluster)
    cluster.nodes[0].behaviour = answering(other_answers)
    reader = cluster.client("reader")
    learn = bundles.BundleTally._learn

    def credulous(self: Any, node: Any, reply: BundleReply) -> bool:
        heard = learn(self, node, reply)
        for name, votes in self._votes.items():
            self.agreed[name] = next(iter(votes))
        return heard

    monkeypatch.setattr(bundles.BundleTally, "_learn", credulous)
    cluster.route = lambda source, target, _: 10 if 0 in (source[1], target[1]) else 5_000
    assert bundle(reader) != EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        {"positions": b"\0\0"},
        {"positions": bytes(reversed(range(12)))},
        {"positions": bytes(range(11)) + b"\x7f"},
        {"answers": ()},
        {"errors": ()},
        {"histories": ()},
        {"authenticators": ()},
        {"lives": ()},
    ],
)
def test_a_reply_that_no_correct_server_sends_convicts(change: dict[str, Any]) -> None:
    cluster = Cluster()
    filled(cluster)
    cluster.nodes[0].behaviour = answering(lambda reply: msgspec.structs.replace(reply, **change))
    reader = cluster.client("reader")
    assert bundle(reader) == EXPECTED
    assert 0 in reader.qu.peers.convicted


def leaves_out(count: int) -> Any:
    """A server that leaves out the first `count` answers of each bundle."""

    def change(reply: BundleReply) -> BundleReply:
        columns = (reply.positions, reply.histories, reply.authenticators)
        answers = (reply.errors, reply.answers)
        return BundleReply(
            *(column[count:] for column in columns),
            reply.lives,
            *(column[count:] for column in answers),
        )

    return answering(change)


def durations_of_bundles(cluster: Cluster) -> list[int]:
    """Of twenty that one reader asks for, one after the other, in µs."""
    reader = cluster.client("reader")
    took_us = []
    for _ in range(20):
        began_us = cluster.now_us
        assert bundle(reader) == EXPECTED
        took_us.append(cluster.now_us - began_us)
    return took_us


@pytest.mark.parametrize("count", [1, len(NAMES)])
def test_a_server_that_leaves_answers_out_is_replaced_and_asked_last(count: int) -> None:
    """Otherwise each bundle would take a round more."""
    cluster = Cluster()
    filled(cluster)
    cluster.nodes[0].behaviour = leaves_out(count)
    cluster.route = lambda *_: 500
    took_us = durations_of_bundles(cluster)
    assert took_us == [2_000] + 19 * [1_000]


def test_must_fail_where_whoever_leaves_answers_out_is_asked_first_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Peers, "silent", lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_server_that_leaves_answers_out_is_replaced_and_asked_last(len(NAMES))


def test_a_silent_server_is_replaced() -> None:
    cluster = Cluster()
    filled(cluster)
    cluster.mute(0)
    assert bundle(cluster.client("reader")) == EXPECTED


@pytest.mark.parametrize("delay_us", [None, 300_000])
def test_a_silent_server_holds_up_the_first_bundle_only(delay_us: int | None) -> None:
    """As it does with queries: who lists a large directory does not wait for it each time."""
    cluster = Cluster()
    filled(cluster)
    cluster.route = lambda source, target, _: delay_us if 0 in (source[1], target[1]) else 500
    took_us = durations_of_bundles(cluster)
    assert took_us[0] > HEDGE_US
    assert max(took_us[1:]) < HEDGE_US


def test_what_has_to_be_repaired_is_left_out_and_harms_nothing_else() -> None:
    """An update that three servers have: ordinary queries repair it."""
    cluster = Cluster()
    writer = filled(cluster)
    cluster.block(client="writer", nodes=(0, 1, 5))
    writer.start(writer.qu.update((NAMES[4],), "counter.increment", Increment(100), USER))
    cluster.run(lambda: len(set(cluster.histories(NAMES[4]))) > 1)
    reader = cluster.client("reader")
    found = bundle(reader)
    assert found == {name: EXPECTED[name] for name in NAMES if name != NAMES[4]}
    asked = reader.qu.query((NAMES[4],), "counter.fetch", Fetch(), USER)
    assert reader.run(asked).answer.value in (EXPECTED[NAMES[4]], EXPECTED[NAMES[4]] + 100)


def test_a_barrier_is_no_version() -> None:
    """All servers have a barrier that nobody has copied across: that takes a repair."""
    cluster = Cluster()
    writer = filled(cluster)
    original = writer.qu.observations.condition_on(NAMES[0])
    cluster.run(within_us=1_000)
    writer.run(writer.qu.repairs.supersede(NAMES[0], original.version, USER, insists=True))
    latest = parse_history(cluster.histories(NAMES[0])[0]).latest
    assert latest
    assert bundle(cluster.client("reader")) == EXPECTED


def test_bundles_while_others_write_give_what_was_true_in_between() -> None:
    """Each answer was the value at some moment between request and reply."""
    for seed in range(20):
        cluster = Cluster(seed=seed)
        writer, reader = filled(cluster), cluster.client("reader")
        random = Random(seed)
        done = dict.fromkeys(NAMES, 0)
        begun = dict.fromkeys(NAMES, 0)

        async def write(
            writer: Client = writer,
            random: Random = random,
            begun: dict[ObjectId, int] = begun,
            done: dict[ObjectId, int] = done,
        ) -> None:
            for _ in range(40):
                name = random.choice(NAMES)
                begun[name] += 1
                await writer.qu.update((name,), "counter.increment", Increment(1), USER)
                done[name] += 1

        writing = writer.start(write())
        while not writing.done:
            least = dict(done)
            for name, value in bundle(reader).items():
                grown = value - EXPECTED[name]
                assert least[name] <= grown <= begun[name]


# --- the server ------------------------------------------------------------------------------


def step(cluster: Cluster, message: Bundle, grant: Grant | None = None) -> Any:
    node = cluster.nodes[0]
    client = cluster.client("asking", grant=grant)
    return node.server.step(node.disk, client.sender, message, b"", cluster.now_us)


def asking(*names: ObjectId, method: str = "counter.fetch") -> Bundle:
    return Bundle(names, method, encode_record(Fetch()), USER.uid, USER.gid, USER.groups)


def test_each_answer_is_that_of_a_query_that_comes_alone() -> None:
    cluster = Cluster()
    filled(cluster)
    reply = step(cluster, asking(*NAMES)).reply
    node = cluster.nodes[0]
    for position, name in enumerate(NAMES):
        alone = Query((name,), "counter.fetch", encode_record(Fetch()), *USER, node.number)
        single = node.server.step(
            node.disk, cluster.clients["asking"].sender, alone, b"", cluster.now_us
        ).reply
        assert single.histories == (reply.histories[position],)
        assert single.authenticators == (reply.authenticators[position],)
        assert (single.error, single.answer) == (reply.errors[position], reply.answers[position])
    assert reply.positions == bytes(range(len(NAMES)))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (asking(NAMES[1], NAMES[0]), errno.EINVAL),
        (asking(NAMES[0], NAMES[0]), errno.EINVAL),
        (asking(NAMES[0], method="counter.increment"), errno.EOPNOTSUPP),
        (asking(NAMES[0], method=""), errno.EOPNOTSUPP),
        (
            asking(*sorted((NAMES[0], object_id(ObjectKind.INODE, placement=0, unique=b"i" * 14)))),
            errno.EINVAL,
        ),
    ],
)
def test_what_no_correct_client_asks_is_refused(message: Bundle, code: int) -> None:
    reply = step(Cluster(), message).reply
    assert isinstance(reply, Refused)
    assert reply.code == code


def test_a_bundle_takes_the_grant_of_its_queries() -> None:
    cluster = Cluster()
    reply = step(cluster, asking(NAMES[0]), Grant(uids=(USER.uid + 1,))).reply
    assert isinstance(reply, Refused)


def test_what_would_have_to_wait_is_left_out() -> None:
    cluster = Cluster()
    filled(cluster)
    server = cluster.nodes[0].server

    class Doubts:
        def wanted(self, names: Any) -> Want | None:
            return Want(b"x", lambda _: None) if NAMES[2] in names else None  # type: ignore[arg-type,return-value]

        def remembers(self, _name: ObjectId) -> bool:
            return True

    server._doubts = Doubts()
    server._recovery.doubtful = True
    reply = step(cluster, asking(*NAMES)).reply
    assert reply.positions == bytes(place for place in range(len(NAMES)) if place != 2)


def test_a_reply_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    filled(cluster)
    whole = step(cluster, asking(*NAMES)).reply
    each = len(whole.histories[0]) + len(whole.answers[0])
    monkeypatch.setattr(limits, "BUNDLE_BYTES", 3 * each)
    assert step(cluster, asking(*NAMES)).reply.positions == bytes(range(3))


def with_large_attributes() -> tuple[Cluster, ObjectId]:
    """A directory with much that only root is told of."""
    cluster = Cluster(types=registry.file_system_types())
    writer = cluster.client("writer")
    volume, root = (
        object_id(kind, placement=0, unique=bytes(14))
        for kind in (ObjectKind.VOLUME, ObjectKind.DIRECTORY)
    )
    who = Credentials(ROOT, ROOT)
    writer.run(
        writer.qu.update(
            (volume, root), registry.FORMAT, Format(limits.BLOCK_BYTES_MIN, 0o755), who
        )
    )
    for number in range(7):
        value = ExtendedSetting(b"trusted.%d" % number, bytes(limits.XATTR_VALUE_BYTES), 0)
        writer.run(writer.qu.update((root,), registry.SET_EXTENDED, value, who))
    cluster.settle()
    return cluster, root


def bytes_read(cluster: Cluster, message: Bundle, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a step reads of the store."""
    disk, read = type(cluster.nodes[0].disk), [0]
    get, scan = disk.get, disk.scan

    def counted_get(self: Any, *arguments: Any) -> Any:
        value = get(self, *arguments)
        read[0] += len(value or b"")
        return value

    def counted_scan(self: Any, *arguments: Any, **options: Any) -> Any:
        for key, value in scan(self, *arguments, **options):
            read[0] += len(value)
            yield key, value

    with monkeypatch.context() as patch:
        patch.setattr(disk, "get", counted_get)
        patch.setattr(disk, "scan", counted_scan)
        step(cluster, message)
    return read[0]


def test_only_brief_queries_are_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may read much and answer little, here the names of no attribute: 128 times a step."""
    cluster, root = with_large_attributes()
    reply = step(cluster, asking(root, method=registry.LIST_EXTENDED)).reply
    assert isinstance(reply, Refused)
    assert reply.code == errno.EOPNOTSUPP
    message = asking(root, method=registry.GET_ATTRIBUTES)
    assert step(cluster, message).reply.positions == b"\0"
    assert bytes_read(cluster, message, monkeypatch) < 4_096
    client = cluster.clients["writer"]
    with pytest.raises(ValueError, match="many objects"):
        client.run(client.qu.bundle((root,), registry.LIST_EXTENDED, Fetch(), USER))


def test_must_fail_any_query_is_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, root = with_large_attributes()
    method = cluster.types.method(registry.LIST_EXTENDED)
    assert method is not None
    object.__setattr__(method, "brief", True)
    try:
        message = asking(root, method=registry.LIST_EXTENDED)
        (answer,) = step(cluster, message).reply.answers
        assert len(answer) < limits.ANSWER_INLINE_BYTES
        assert bytes_read(cluster, message, monkeypatch) > limits.BUNDLE_BYTES
    finally:
        object.__setattr__(method, "brief", False)


def test_nodes_may_ask_no_more_than_clients() -> None:
    cluster = Cluster()
    node = cluster.nodes[0]
    sender = Sender(Role.NODE, cluster.nodes[1].sender.client, node.number, Grant((), False))
    reply = node.server.step(node.disk, sender, asking(NAMES[0]), b"", 0).reply
    assert isinstance(reply, Refused)
