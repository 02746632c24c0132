"""The source on Query/Update, in its order: the example execution, then a test per sentence.

Each docstring quotes the sentence. Where each rule is, is in docs/protocols-query-update.md.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any, NamedTuple

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.peers import Pace, Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.conversation import Draw, Pause
from bftfs.credentials import Grant
from bftfs.crypto.digest import (
    LIFE_BYTES,
    MAC_BYTES,
    answer_digest,
    authenticator_bytes,
    deduction_digest,
    replica_history_digest,
)
from bftfs.engine import Running
from bftfs.errors import AdmissionRefused, FileSystemError, QuorumUnavailable
from bftfs.identifiers import NodeId, ObjectId, ObjectKind
from bftfs.query_update.admission import BarrierBudget
from bftfs.query_update.classification import Classification, OperationType, classify, sharing
from bftfs.query_update.counter import Count, Fetch, Increment
from bftfs.query_update.effort import BACK_OFF_US, BackOff
from bftfs.query_update.history import (
    INITIAL,
    TIMESTAMP_BYTES,
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    CulledObjectHistorySet,
    Fact,
    Hosted,
    Known,
    LogicalTimestamp,
    ObjectHistorySet,
    Operation,
    assemble,
    client_of,
    decode_conditioned,
    history_of,
    is_barrier,
    logical_timestamp,
    parse_history,
    time_of,
    timestamp_of,
)
from bftfs.query_update.messages import (
    DeduceRequest,
    FetchRequest,
    Found,
    InlineBarrier,
    InlineUpdate,
    Query,
    QueryReply,
    Status,
    SyncReply,
    SyncRequest,
    Update,
    UpdateReply,
    addressed,
)
from bftfs.query_update.object_type import (
    Caller,
    Method,
    MutableState,
    ObjectTypes,
    Record,
    State,
    encode_record,
)
from bftfs.server.step import Ready
from bftfs.simulation.byzantine.positions import as_sent
from bftfs.simulation.world import START_US
from bftfs.storage import Table
from bftfs.thresholds import QueryUpdateThresholds
from bftfs.wire.codec import Voucher, encode
from tests.builders import USER, Outcome
from tests.unit.query_update import adversaries
from tests.unit.query_update.harness import SMALLEST, Client, Cluster, Endpoint, Node, counter_id
from tests.unit.query_update.ledger import Accounts, Read, Transfer, ledger_types

EARLIER_US = START_US - limits.CLOCK_SKEW_US // 2  # the clock of requests made by hand
METHOD, COPY, BARRIER = ConditionedKind.METHOD, ConditionedKind.COPY, ConditionedKind.BARRIER
A, B, C = (counter_id(number) for number in range(3))
EVERYONE = tuple(range(SMALLEST.n))
QUORUM = tuple(range(SMALLEST.q))  # the preferred one of objects with placement 0


# --- the register of the example -----------------------------------------------------------------


class SetTo(Record, frozen=True):
    """Arguments of `register.set`."""

    value: str


class Get(Record, frozen=True):
    """Arguments of `register.get`."""


def _set(states: tuple[MutableState], arguments: SetTo, _: Caller) -> bytes:
    states[0].put(b"suit", arguments.value.encode())
    return b""


def _get(states: tuple[State], _: Get, __: Caller) -> bytes:
    return states[0].get(b"suit") or "♥".encode()


def register_types() -> ObjectTypes:
    """'an object that exports two methods: get (a query) and set (an update)'."""
    kinds = (frozenset({ObjectKind.COUNTER}),)
    return ObjectTypes(
        (
            Method("register.set", True, kinds, SetTo, _set),
            Method("register.get", False, kinds, Get, _get),
        )
    )


# --- stepping servers by hand --------------------------------------------------------------------


class Sight(NamedTuple):
    """An object history set as a client may hold it."""

    history_set: ObjectHistorySet
    authenticators: bytes
    culled: CulledObjectHistorySet


def sight(cluster: Cluster, nodes: Iterable[int] = QUORUM, name: ObjectId = A) -> Sight:
    """What `nodes` say of an object now."""
    rows = {NodeId(number): cluster.nodes[number].replica(name).row for number in nodes}
    known = {node: Known(row.history, row.authenticator) for node, row in rows.items()}
    return Sight(*assemble(name, known))


def classified(
    cluster: Cluster, nodes: Iterable[int] = QUORUM, name: ObjectId = A
) -> Classification:
    """What a client that hears `nodes` now must do."""
    return classify(sight(cluster, nodes, name).culled, cluster.quorums)


def operation(
    method: str = "counter.increment",
    arguments: Record | None = None,
    objects: tuple[ObjectId, ...] = (A,),
    *,
    uid: int = USER.uid,
    serial: int = 0,
) -> Operation:
    encoded = encode_record(Increment() if arguments is None else arguments)
    return Operation(method, objects, encoded, uid, USER.gid, USER.groups, serial)


class Request(NamedTuple):
    """An `Update`, and the timestamp that it stands for."""

    message: Update
    timestamp: LogicalTimestamp


def request(
    client: Client,
    sights: Sight | tuple[Sight, ...],
    kind: ConditionedKind = METHOD,
    invocation: Operation | None = None,
    *,
    clock: int | None = None,
    evidence: tuple[Sight, ...] = (),
    whole_answer_from: int = 0,
) -> Request:
    """A request conditioned on what was seen; by default an increment, a barrier or a copy."""
    if isinstance(sights, Sight):
        sights = (sights,)
    if kind is METHOD and invocation is None:
        invocation = operation()
    conditioned = Conditioned(
        kind,
        invocation,
        clock if clock is not None else EARLIER_US if kind is METHOD else 0,
        tuple(each.history_set for each in sights),
        tuple(each.history_set for each in evidence),
    )
    encoded = msgspec.msgpack.encode(conditioned)
    macs = tuple(each.authenticators for each in (*sights, *evidence))
    timestamp = timestamp_of(
        conditioned, encoded, (each.culled for each in sights), client.sender.client
    )
    return Request(Update(encoded, macs, (), NodeId(whole_answer_from)), timestamp)


def inline(original: Request, evidence: Sight) -> InlineUpdate:
    """The inline repair of what `original` began."""
    return InlineUpdate(
        original.message.conditioned,
        client_of(original.timestamp),
        evidence.history_set,
        evidence.authenticators,
        NodeId(0),
    )


def step(node: Node, client: Client, message: Any) -> Ready:
    """One server step, committed."""
    message = as_sent(message, node.number, SMALLEST.n)
    ready = node.server.step(node.storage, client.sender, message, b"", node.now_us())
    node.storage.apply(ready.writes)
    return ready


def place(
    cluster: Cluster, client: Client, message: Any, nodes: Iterable[int] = QUORUM
) -> list[Any]:
    """Give `nodes` a message, one after the other; object sync takes place if they want it."""
    replies = []
    for number in nodes:
        node = cluster.nodes[number]
        before = len(cluster.sent)
        node.receive(client.endpoint, as_sent(message, number, SMALLEST.n))
        cluster.settle()
        replies += [
            each
            for source, target, each in cluster.sent[before:]
            if source == ("node", number) and target == ("client", client.name)
        ]
    return replies


def statuses(replies: list[Any]) -> list[Status]:
    return [reply.status for reply in replies]


def accept(
    cluster: Cluster,
    client: Client,
    nodes: Iterable[int] = QUORUM,
    *,
    seen: Iterable[int] = QUORUM,
    **options: Any,
) -> Request:
    """An increment conditioned on what `seen` say, which all of `nodes` accept."""
    made = request(client, sight(cluster, seen), **options)
    replies = place(cluster, client, made.message, nodes)
    assert all(reply.status is Status.SUCCESS for reply in replies)
    return made


def value(node: Node, name: ObjectId = A) -> int:
    """The count of an object at a server, read off its state."""
    stored = node.replica(name).workspace.get(b"value")
    return 0 if stored is None else int.from_bytes(stored, "big", signed=True)


def sent(cluster: Cluster, client: Client, kind: type | tuple[type, ...]) -> list[tuple[int, Any]]:
    """What a client has sent, and to which server."""
    return [
        (target[1], message)
        for source, target, message in cluster.sent
        if source == ("client", client.name) and isinstance(message, kind)
    ]


def increment(client: Client, by: int = 1, name: ObjectId = A) -> int:
    return client.run(
        client.qu.update((name,), "counter.increment", Increment(by), USER)
    ).answer.value


def fetch(client: Client, name: ObjectId = A) -> int:
    return client.run(client.qu.query((name,), "counter.fetch", Fetch(), USER)).answer.value


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(types=ledger_types())


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client("alice")


@pytest.fixture
def bob(cluster: Cluster) -> Client:
    return cluster.client("bob")


# --- 4.3.6 Example execution: Table 4.1 ----------------------------------------------------------


class Execution:
    """Real clients X, Y, Z and servers s0…s5. Clocks stand still where the table's times are.

    X and Z know that s5 is silent, Y that s0 is: so each uses its quorum of the table. A message
    takes 100 µs unless a row delays or drops it.
    """

    def __init__(self) -> None:
        self.cluster = Cluster(types=register_types())
        self.clients = {name: self.cluster.client(name) for name in "XYZ"}
        for name, silent in {"X": 5, "Y": 0, "Z": 5}.items():
            self.clients[name].clock_us = START_US
            self.clients[name].qu.peers.silent(NodeId(silent), START_US)
        self.delay: Callable[[str, int, Any], int | None] = lambda client, node, message: 100
        self.cluster.route = self._route
        self.mark = 0
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[str, Running] = {}

    def _route(self, source: Endpoint, target: Endpoint, message: Any) -> int | None:
        if source[0] == "client":
            return self.delay(source[1], target[1], message)
        return 100

    # --- acting

    def begin(self, name: str, method: str, suit: str = "", *, clock: int = 0) -> None:
        client = self.clients[name]
        client.clock_us = START_US + clock
        self.outcomes[name] = client.start(
            client.qu.update((A,), "register.set", SetTo(suit), USER)
            if method == "set"
            else client.qu.query((A,), "register.get", Get(), USER)
        )
        self.running[name] = self.cluster.running[-1]

    def result(self, name: str) -> str:
        """Let a client finish; what a get returns."""
        outcome = self.outcomes[name]
        self.cluster.run(lambda: outcome.done)
        answer: bytes = outcome.value().answer
        return answer.decode()

    def until(self, happened: Callable[[], bool]) -> None:
        self.cluster.run(happened)

    def abandon(self, name: str) -> None:
        """The client crashes, or gives up."""
        self.running[name].cancel()

    def row(self) -> None:
        """From here on, messages belong to the next row."""
        self.mark = len(self.cluster.sent)

    # --- looking

    def replies(self, name: str, kind: type) -> dict[int, Any]:
        """What the servers replied to a client, in this row; the first reply of each."""
        found: dict[int, Any] = {}
        for source, target, message in self.cluster.sent[self.mark :]:
            if target == ("client", name) and isinstance(message, kind):
                found.setdefault(source[1], message)
        return found

    def requested(self, name: str) -> dict[type, list[int]]:
        """The servers that a client sent each kind of message to, in this row."""
        found: dict[type, list[int]] = {}
        for source, target, message in self.cluster.sent[self.mark :]:
            if source == ("client", name):
                found.setdefault(type(message), []).append(target[1])
        return found

    def stored(self) -> list[str]:
        """The replica histories, latest first."""
        return [shown(history) for history in self.cluster.histories(A)]

    def suits(self) -> list[str]:
        """The latest object version at each server."""
        replicas = [node.replica(A) for node in self.cluster.nodes]
        return [(each.workspace.get(b"suit") or "♥".encode()).decode() for each in replicas]

    def classify(self, replies: dict[int, Any]) -> Classification:
        known = {
            NodeId(node): Known(reply.histories[0], reply.authenticators[0])
            for node, reply in replies.items()
        }
        return classify(assemble(A, known)[2], self.cluster.quorums)


def number(timestamp: LogicalTimestamp) -> str:
    """'Only LT.Time with "b" appended for barriers is shown for timestamps'."""
    time = 0 if timestamp == ZERO else time_of(timestamp) - START_US
    return f"{time}{'b' if is_barrier(timestamp) else ''}"


def shown(history: bytes) -> str:
    return " ".join(
        f"⟨{number(each.timestamp)},{number(each.conditioned_on)}⟩"
        for each in reversed(parse_history(history).candidates)
    )


def initial_system(run: Execution) -> None:
    assert run.stored() == [""] * 6
    assert run.suits() == ["♥"] * 6


def x_completes_get(run: Execution) -> None:
    run.begin("X", "get")
    assert run.result("X") == "♥"
    assert run.requested("X") == {Query: [0, 1, 2, 3, 4]}  # a single phase
    replies = run.replies("X", QueryReply)
    assert all(shown(reply.histories[0]) == "" for reply in replies.values())
    found = run.classify(replies)
    assert found.type is OperationType.METHOD
    assert found.object_candidate == INITIAL  # ⟨0,0⟩ complete


def x_completes_set_club(run: Execution) -> None:
    run.begin("X", "set", "♣", clock=1)
    run.result("X")
    assert run.requested("X") == {Update: [0, 1, 2, 3, 4]}  # a single phase
    assert run.stored() == ["⟨1,0⟩"] * 5 + [""]
    assert run.suits() == ["♣"] * 5 + ["♥"]


def y_begins_get(run: Execution) -> None:
    run.begin("Y", "get")
    run.until(lambda: len(run.replies("Y", QueryReply)) == 5)
    replies = run.replies("Y", QueryReply)
    assert {node: shown(reply.histories[0]) for node, reply in replies.items()} == {
        **dict.fromkeys([1, 2, 3, 4], "⟨1,0⟩"),
        5: "",
    }
    assert [replies[node].answer.decode() for node in (1, 2, 3, 4, 5)] == ["♣"] * 4 + ["♥"]
    found = run.classify(replies)
    assert found.type is OperationType.INLINE_METHOD  # ⟨1,0⟩ repairable
    assert number(found.object_candidate.timestamp) == "1"


def y_performs_inline_repair(run: Execution) -> None:
    assert run.result("Y") == "♣"
    requested = run.requested("Y")
    assert requested[InlineUpdate] == [1, 2, 3, 4, 5]
    assert Update not in requested
    assert InlineBarrier not in requested
    assert statuses(list(run.replies("Y", UpdateReply).values())) == [Status.SUCCESS] * 5
    # 'Server s5 performs object syncing': it has ⟨0,0⟩, like everyone, and needs none (line 1013).
    assert run.stored() == ["⟨1,0⟩"] * 6
    assert run.suits() == ["♣"] * 6
    assert run.classify(run.replies("Y", UpdateReply)).type is OperationType.METHOD  # complete


def x_and_y_attempt_sets(run: Execution) -> None:
    def delay(client: str, node: int, message: Any) -> int | None:
        if client == "Y" and not isinstance(message, Update):
            return None  # 'For illustrative purposes, Y backs off.'
        late = [4] if client == "X" else [1, 2, 3]
        return 1_000 if node in late else 100

    run.delay = delay
    run.begin("X", "set", "♦", clock=2)
    run.begin("Y", "set", "♥", clock=3)
    run.until(lambda: Query in run.requested("Y"))
    of_x, of_y = run.replies("X", UpdateReply), run.replies("Y", UpdateReply)
    assert {node: reply.status for node, reply in of_x.items()} == {
        **dict.fromkeys([0, 1, 2, 3], Status.SUCCESS),
        4: Status.NOT_CURRENT,
    }
    assert {node: reply.status for node, reply in of_y.items()} == {
        **dict.fromkeys([1, 2, 3], Status.NOT_CURRENT),
        **dict.fromkeys([4, 5], Status.SUCCESS),
    }
    # 'it returns its replica history {⟨3,1⟩,⟨1,0⟩} with FAIL': without ⟨1,0⟩'s own predecessor.
    assert shown(of_x[4].histories[0]) == "⟨3,1⟩ ⟨1,0⟩"
    assert run.stored() == ["⟨2,1⟩ ⟨1,0⟩"] * 4 + ["⟨3,1⟩ ⟨1,0⟩"] * 2
    assert run.suits() == ["♦"] * 4 + ["♥"] * 2
    assert potential(run, "2") == {0, 1, 2, 3}
    found = run.classify(of_x)
    assert found.type is OperationType.BARRIER
    assert number(found.object_candidate.timestamp) == "2"
    assert number(found.latest) == "3"
    run.abandon("Y")
    run.delay = lambda client, node, message: 100


def potential(run: Execution, time: str) -> set[int]:
    """The servers that have a candidate: more than r, fewer than q."""
    hosts = {
        node
        for node, history in enumerate(run.cluster.histories(A))
        if any(number(each.timestamp) == time for each in parse_history(history).candidates)
    }
    assert SMALLEST.r <= len(hosts) < SMALLEST.q
    return hosts


def x_completes_barrier(run: Execution) -> None:
    run.until(lambda: len(run.replies("X", UpdateReply)) == 5)
    replies = run.replies("X", UpdateReply)
    assert {node: reply.status for node, reply in replies.items()} == dict.fromkeys(
        range(5), Status.SUCCESS
    )
    # 'The candidate ⟨3,1⟩ in this replica history dictates that the timestamp … be 4b.'
    assert run.stored() == [
        *["⟨4b,2⟩ ⟨2,1⟩ ⟨1,0⟩"] * 4,
        "⟨4b,2⟩ ⟨3,1⟩ ⟨1,0⟩",
        "⟨3,1⟩ ⟨1,0⟩",
    ]
    found = run.classify(replies)
    assert found.type is OperationType.COPY  # ⟨4b,2⟩ established
    assert number(found.object_candidate.timestamp) == "2"


def x_completes_copy(run: Execution) -> None:
    run.result("X")
    # s4 has had ⟨3,1⟩, so this is what it goes on reporting where the table has ⟨2,1⟩.
    assert run.stored() == [
        *["⟨5,2⟩ ⟨4b,2⟩ ⟨2,1⟩ ⟨1,0⟩"] * 4,
        "⟨5,2⟩ ⟨4b,2⟩ ⟨3,1⟩ ⟨1,0⟩",
        "⟨3,1⟩ ⟨1,0⟩",
    ]
    assert run.suits() == ["♦"] * 5 + ["♥"]
    found = run.classify(run.replies("X", UpdateReply))
    assert found.type is OperationType.METHOD  # ⟨5,2⟩ established
    assert found.object_candidate.copy


def x_crashes_in_set_spade(run: Execution) -> None:
    run.delay = lambda client, node, message: 100 if node <= 2 else None
    run.begin("X", "set", "♠", clock=6)
    run.until(lambda: len(run.replies("X", UpdateReply)) == 3)
    run.abandon("X")
    # 'because the object history set sent by X with set operation ⟨6,5⟩ proved that ⟨5,2⟩ was
    # established', {⟨6,5⟩, ⟨5,2⟩} is all that is left.
    assert run.stored()[:3] == ["⟨6,5⟩ ⟨5,2⟩"] * 3
    assert run.suits() == ["♠"] * 3 + ["♦"] * 2 + ["♥"]
    assert potential(run, "6") == {0, 1, 2}
    run.delay = lambda client, node, message: 100


def y_and_z_begin_get(run: Execution) -> None:
    # Z's inline repair is to arrive after Y's barrier, and Z is to back off until Y is done.
    slow = {InlineUpdate: 150}
    run.delay = lambda client, node, message: slow.get(type(message), 100)
    run.begin("Y", "get")
    run.begin("Z", "get")
    run.until(lambda: len(run.replies("Z", QueryReply)) == 5)
    of_y, of_z = run.replies("Y", QueryReply), run.replies("Z", QueryReply)
    assert {node: shown(reply.histories[0]) for node, reply in of_y.items()} == {
        **dict.fromkeys([1, 2], "⟨6,5⟩ ⟨5,2⟩"),
        3: "⟨5,2⟩ ⟨4b,2⟩ ⟨2,1⟩ ⟨1,0⟩",
        4: "⟨5,2⟩ ⟨4b,2⟩ ⟨3,1⟩ ⟨1,0⟩",
        5: "⟨3,1⟩ ⟨1,0⟩",
    }
    assert [of_y[node].answer.decode() for node in (1, 2, 3, 4, 5)] == ["♠", "♠", "♦", "♦", "♥"]
    found = run.classify(of_y)
    assert found.type is OperationType.BARRIER  # ⟨6,5⟩ incomplete, ⟨5,2⟩ repairable
    assert number(found.latest) == "6"
    assert number(found.object_candidate.timestamp) == "5"
    assert not found.complete
    assert {node: shown(reply.histories[0])[:5] for node, reply in of_z.items()} == {
        **dict.fromkeys([0, 1, 2], "⟨6,5⟩"),
        **dict.fromkeys([3, 4], "⟨5,2⟩"),
    }
    assert [of_z[node].answer.decode() for node in range(5)] == ["♠"] * 3 + ["♦"] * 2
    found = run.classify(of_z)
    assert found.type is OperationType.INLINE_METHOD  # ⟨6,5⟩ repairable
    assert number(found.object_candidate.timestamp) == "6"


def y_completes_barrier_and_z_attempts_inline_repair(run: Execution) -> None:
    run.until(lambda: len(run.replies("Z", UpdateReply)) == 5)
    of_y, of_z = run.replies("Y", UpdateReply), run.replies("Z", UpdateReply)
    assert {node: reply.status for node, reply in of_y.items()} == dict.fromkeys(
        range(1, 6), Status.SUCCESS
    )
    assert {node: shown(reply.histories[0])[:6] for node, reply in of_y.items()} == dict.fromkeys(
        range(1, 6), "⟨7b,5⟩"
    )
    assert run.classify(of_y).type is OperationType.COPY  # ⟨7b,5⟩ established
    assert run.requested("Z")[InlineUpdate] == [0, 1, 2, 3, 4]
    assert {node: reply.status for node, reply in of_z.items()} == {
        **dict.fromkeys([0, 1, 2], Status.SUCCESS),  # these had it before
        **dict.fromkeys([3, 4], Status.NOT_CURRENT),
    }
    assert run.suits() == ["♠"] * 3 + ["♦"] * 2 + ["♥"]  # no barrier changes an object version


def y_completes_copy(run: Execution) -> None:
    run.delay = lambda client, node, message: 100 if client == "Y" else 50_000
    assert run.result("Y") == "♦"
    histories = run.stored()
    assert histories[0] == "⟨6,5⟩ ⟨5,2⟩"
    assert all(history.startswith("⟨8,5⟩ ⟨7b,5⟩") for history in histories[1:])
    assert run.suits() == ["♠"] + ["♦"] * 5
    assert classified(run.cluster, range(1, 6)).complete  # ⟨8,5⟩ established
    # 'The conditioned-on chain … is ⟨8,5⟩ → ⟨5,2⟩ → ⟨2,1⟩ → ⟨1,0⟩ → ⟨0,0⟩' (4.3.8).
    for node in run.cluster.nodes[1:]:
        replica = node.replica(A)
        chain = [replica.head]
        while chain[-1] != ZERO:
            version = replica.version(chain[-1])
            assert version is not None
            chain.append(version.parent)
        assert [number(each) for each in chain] == ["8", "5", "2", "1", "0"]


def z_goes_on(run: Execution) -> None:
    """Beyond the table: the client that backed off finds what the other has established."""
    assert run.result("Z") == "♦"
    assert run.stored()[0].startswith("⟨8,5⟩")
    assert run.suits() == ["♦"] * 6


ROWS = [
    initial_system,
    x_completes_get,
    x_completes_set_club,
    y_begins_get,
    y_performs_inline_repair,
    x_and_y_attempt_sets,
    x_completes_barrier,
    x_completes_copy,
    x_crashes_in_set_spade,
    y_and_z_begin_get,
    y_completes_barrier_and_z_attempts_inline_repair,
    y_completes_copy,
    z_goes_on,
]


@pytest.mark.parametrize("rows", range(1, len(ROWS) + 1), ids=lambda rows: ROWS[rows - 1].__name__)
def test_table_4_1(rows: int) -> None:
    """The example execution, from its first row to each."""
    run = Execution()
    for row in ROWS[:rows]:
        run.row()
        row(run)


# --- 4.3.2 Versions, timestamps, candidates ------------------------------------------------------


def test_every_update_makes_a_version_and_servers_keep_it(cluster: Cluster, alice: Client) -> None:
    """'Each time a server invokes an update method …, a new object version results. The server
    retains the object version as well as its associated logical timestamp.'"""
    made = [accept(cluster, alice) for _ in range(5)]
    for node in cluster.nodes[: SMALLEST.q]:
        for count, each in enumerate(made, 1):
            query = Query((A,), "counter.fetch", b"\x90", 1000, 1000, (), NodeId(0))
            query = msgspec.structs.replace(query, versions=(each.timestamp,))
            reply = step(node, alice, query).reply
            assert msgspec.msgpack.decode(reply.answer) == [count]


def test_all_servers_construct_the_same_timestamp(cluster: Cluster, alice: Client) -> None:
    """'all servers that receive the same operation and object history set create the same object
    version and construct the same timestamp for that object version.'"""
    made = accept(cluster, alice, EVERYONE)
    assert {node.replica(A).head for node in cluster.nodes} == {made.timestamp}
    assert len(set(cluster.histories(A))) == 1
    versions = [node.replica(A).version(made.timestamp) for node in cluster.nodes]
    assert all(version == versions[0] for version in versions)


def test_the_operation_is_tied_to_the_timestamp(cluster: Cluster, alice: Client) -> None:
    """'Because the operation is tied to the timestamp, an operation can only complete successfully
    if a client sends the same operation to all servers in a quorum.'"""
    seen = sight(cluster)
    one = request(alice, seen, invocation=operation(arguments=Increment(1)))
    other = request(alice, seen, invocation=operation(arguments=Increment(2)))
    place(cluster, alice, one.message, [0, 1, 2])
    place(cluster, alice, other.message, [3, 4])
    found = classified(cluster)
    assert found.type is not OperationType.METHOD
    assert not found.complete or found.object_candidate == INITIAL


def test_two_invocations_alike_are_two_operations(cluster: Cluster, alice: Client) -> None:
    """'The operation and object history set are necessary to uniquely place a specific operation
    at a single unique point in logical time'; also if a client makes the same one twice."""
    seen = sight(cluster)
    made = [request(alice, seen, invocation=operation(serial=serial)) for serial in (1, 2)]
    assert made[0].timestamp != made[1].timestamp
    assert increment(alice) == 1
    assert increment(alice) == 2


def test_timestamps_always_increase(cluster: Cluster, alice: Client, bob: Client) -> None:
    """'Timestamps are constructed so that they always increase in value.' However late clocks
    are."""
    bob.skew_us = -100 * limits.SECOND_US
    answers = [
        client.run(client.qu.update((A,), "counter.increment", Increment(), USER)).timestamp
        for client in (alice, bob, bob, alice, bob)
    ]
    assert answers == sorted(set(answers))


def test_timestamps_are_compared_field_by_field() -> None:
    """'less than is based on comparing Time, BarrierFlag (with FALSE < TRUE), ClientID, Operation
    …, and then OHS'."""

    def stamp(time_us: int, flag: int, client: int, digest: int) -> LogicalTimestamp:
        return logical_timestamp(
            time_us=time_us,
            barrier=bool(flag),
            client=bytes([client]) * 16,  # type: ignore[arg-type]
            digest=bytes([digest]) * 32,
        )

    fields = [(t, f, c, d) for t in (1, 255, 256) for f in (0, 1) for c in (0, 9) for d in (0, 7)]
    assert [stamp(*each) for each in sorted(fields)] == sorted(stamp(*each) for each in fields)
    assert all(stamp(*each) > ZERO for each in fields)


def test_timestamps_are_compact() -> None:
    """'a single hash over the operation and the object history set replaces these elements of
    logical timestamps.'"""
    cluster = Cluster(types=register_types())
    alice = cluster.client("alice")
    for _ in range(2):
        big = operation("register.set", SetTo("x" * 3_000))
        made = accept(cluster, alice, invocation=big)
        assert len(made.timestamp) == TIMESTAMP_BYTES
        assert len(made.message.conditioned) > 3_000
    assert max(map(len, cluster.histories(A))) < 5 * TIMESTAMP_BYTES


@pytest.mark.parametrize("first", range(SMALLEST.n + 1))
def test_only_one_update_of_a_version_can_complete(first: int) -> None:
    """'Only one update of a specific object version can complete successfully.'"""
    cluster = Cluster()
    alice, bob = cluster.client("alice"), cluster.client("bob")
    seen = sight(cluster)
    one, other = request(alice, seen), request(bob, seen)
    earlier, later = EVERYONE[:first], EVERYONE[first:]
    assert set(statuses(place(cluster, alice, one.message, earlier))) <= {Status.SUCCESS}
    assert set(statuses(place(cluster, bob, other.message, later))) <= {Status.SUCCESS}
    assert Status.SUCCESS not in statuses(place(cluster, alice, one.message, later))
    assert Status.SUCCESS not in statuses(place(cluster, bob, other.message, earlier))
    complete = [
        cluster.quorums.is_quorum(sharing(sight(cluster, EVERYONE).culled, each.timestamp))
        for each in (one, other)
    ]
    assert complete == [first >= SMALLEST.q, SMALLEST.n - first >= SMALLEST.q]
    assert sum(complete) <= 1


def test_the_initial_candidate_is_at_everyone(cluster: Cluster, alice: Client) -> None:
    """'s.RH := {⟨0,0⟩}' (line 900); 'OHS[s].RH := ⟨0,0⟩' (line 200)."""
    assert cluster.histories(A) == [b""] * SMALLEST.n
    assert parse_history(b"").latest_object == INITIAL
    assert classified(cluster) == classified(cluster, ())
    assert classified(cluster, ()).type is OperationType.METHOD
    assert fetch(alice) == 0


# --- 4.3.4 The server ----------------------------------------------------------------------------


def spoilt(seen: Sight, *, of: int, at: int) -> Sight:
    """The HMAC for server `at` in the authenticator of server `of` is invalid."""
    macs = bytearray(seen.authenticators)
    order = [node for group in seen.history_set.groups for node in group.nodes]
    width = authenticator_bytes(SMALLEST.n)
    macs[order.index(of) * width + LIFE_BYTES + at * MAC_BYTES] ^= 1
    return seen._replace(authenticators=bytes(macs))


@pytest.mark.parametrize("of", QUORUM)
@pytest.mark.parametrize("at", EVERYONE)
def test_histories_with_invalid_authenticators_are_culled(of: int, at: int) -> None:
    """'Cull invalid RHs' (line 1002). 'Servers return the list of replica histories … culled from
    the conditioned-on OHS to the client.' (4.3.5)"""
    cluster = Cluster()
    alice = cluster.client("alice")
    accept(cluster, alice)
    made = request(alice, spoilt(sight(cluster), of=of, at=at))
    before = cluster.histories(A)
    for number in EVERYONE:
        (reply,) = place(cluster, alice, made.message, [number])
        if number == at:
            assert reply.status is Status.CULLED
            assert reply.forged == 1 << of
            assert cluster.histories(A)[number] == before[number]
        else:
            assert reply.status is Status.SUCCESS


@pytest.mark.parametrize("kind", [METHOD, BARRIER, "inline"])
def test_a_server_that_is_shown_the_entries_of_another_culls(
    cluster: Cluster, alice: Client, kind: Any
) -> None:
    """(Ours.) A client sends each server its entries of the authenticators, and no others; those of
    another server, or all, are nothing to it."""
    made = accept(cluster, alice)
    whole: Any = inline(made, sight(cluster))
    if kind != "inline":
        whole = request(alice, sight(cluster, QUORUM[:4] if kind is BARRIER else QUORUM), kind)
        whole = whole.message
    node, before = cluster.nodes[5], cluster.histories(A)
    own, anothers = (addressed(whole, SMALLEST.n)(NodeId(to)) for to in (5, 0))
    ready = node.server.step(node.storage, alice.sender, anothers, b"", node.now_us())
    assert ready.reply.status is Status.CULLED
    assert cluster.quorums.is_repairable(Nodes.known(ready.reply.forged))
    ready = node.server.step(node.storage, alice.sender, whole, b"", node.now_us())
    assert isinstance(ready.reply, Refused)
    assert cluster.histories(A) == before
    (reply,) = place(cluster, alice, own, [5])
    assert reply.status is Status.SUCCESS


def test_clients_cannot_fabricate_replica_histories(cluster: Cluster, alice: Client) -> None:
    """'Authenticators are lists of HMACs that prevent malevolent clients and servers from
    fabricating replica histories for benign servers.'"""
    made = accept(cluster, alice)
    forged = Candidate(
        logical_timestamp(
            time_us=START_US, barrier=False, client=alice.sender.client, digest=bytes(32)
        ),
        made.timestamp,
    )
    for seen in (
        # an invented candidate at all, with the authenticators of what they really say
        assemble(
            A,
            {
                NodeId(node): Known(
                    cluster.nodes[node].replica(A).row.history + forged.encoded,
                    cluster.nodes[node].replica(A).row.authenticator,
                )
                for node in QUORUM
            },
        ),
        # another server's history and authenticator
        assemble(
            A,
            {
                NodeId((node + 1) % SMALLEST.n): Known(row.history, row.authenticator)
                for node in QUORUM
                if (row := cluster.nodes[node].replica(A).row)
            },
        ),
        # what they say of another object
        assemble(
            B,
            {
                NodeId(node): Known(row.history, row.authenticator)
                for node in QUORUM
                if (row := cluster.nodes[node].replica(A).row)
            },
        ),
    ):
        name = seen[0].object
        made = request(alice, Sight(*seen), invocation=operation(objects=(name,)))
        replies = place(cluster, alice, made.message, EVERYONE)
        assert set(statuses(replies)) == {Status.CULLED}
        assert all(cluster.quorums.is_quorum(Nodes.known(reply.forged)) for reply in replies)


def test_insane_times_are_culled(cluster: Cluster, alice: Client) -> None:
    """Histories with a time beyond a server's clock and the bound are culled, and reported apart
    (design §4): a malevolent server cannot use logical time up."""
    accept(cluster, alice)
    node = cluster.nodes[1]
    row = node.replica(A).row
    known = {
        NodeId(number): Known(each.history, each.authenticator)
        for number in (0, 2, 3, 4)
        if (each := cluster.nodes[number].replica(A).row)
    }
    for ahead_us, sane in ((limits.SECOND_US, True), (1 << 50, False)):
        forged = Candidate(
            logical_timestamp(
                time_us=node.now_us() + ahead_us,
                barrier=True,
                client=alice.sender.client,
                digest=bytes(32),
            ),
            ZERO,
        )
        history = row.history + forged.encoded
        macs = node.keys.make(replica_history_digest(object=A, encoded=history))
        seen = Sight(*assemble(A, {**known, NodeId(1): Known(history, macs)}))
        (reply,) = place(cluster, alice, request(alice, seen, BARRIER).message, [5])
        assert reply.status is (Status.SUCCESS if sane else Status.CULLED)
        assert (reply.forged, reply.insane) == (0, 0 if sane else 1 << 1)


def bar_ahead(cluster: Cluster, target: int, name: str = "mallory") -> Status:
    """One server forges that it has accepted a barrier ahead of all clocks, later each time; a
    client makes its own on top of that at another server."""
    client = cluster.clients.get(name) or cluster.client(name)
    forger = cluster.nodes[3]
    time_us = forger.now_us() + limits.CLOCK_SKEW_US // 3 + len(cluster.sent)
    forged = logical_timestamp(
        time_us=time_us, barrier=True, client=client.sender.client, digest=bytes(32)
    )
    history = history_of([Candidate(forged, ZERO)], initial=True)
    macs = forger.keys.make(replica_history_digest(object=A, encoded=history))
    seen = Sight(*assemble(A, {forger.number: Known(history, macs)}))
    (status,) = statuses(place(cluster, client, request(client, seen, BARRIER).message, [target]))
    return status


def test_one_servers_word_moves_an_objects_time_seldom(cluster: Cluster) -> None:
    """By as much as a client may have left at a server that is needed, and then by one step now
    and then: the slowest clocks must come there. Another client still may."""
    for _ in range(limits.BARRIER_STEPS):
        assert bar_ahead(cluster, 4) is Status.SUCCESS
    assert bar_ahead(cluster, 4) is Status.INSANE_TIME
    cluster.after(limits.BARRIER_STEP_EVERY_US, lambda: None)
    cluster.settle()
    assert bar_ahead(cluster, 4) is Status.SUCCESS
    assert bar_ahead(cluster, 4) is Status.INSANE_TIME
    assert bar_ahead(cluster, 4, "another") is Status.SUCCESS


@pytest.mark.parametrize("witnesses", [1, 2])
def test_one_servers_word_moves_no_objects_time(
    cluster: Cluster, alice: Client, witnesses: int
) -> None:
    """A barrier far ahead of a server's clock rests on what b + 1 servers report, or on what this
    server has itself, once the steps are used up that it may move the object's time otherwise: or
    one that forges histories would move it on and on."""
    while bar_ahead(cluster, 4, "alice") is Status.SUCCESS:
        pass
    ahead_us = cluster.nodes[0].now_us() + limits.CLOCK_SKEW_US // 2
    others = (0, 1, 2, 3, 5)
    accept(cluster, alice, range(witnesses), seen=others, clock=ahead_us)
    barrier = request(alice, sight(cluster, others), BARRIER).message
    outcomes = statuses(place(cluster, alice, barrier, [0, 4]))
    refused = Status.INSANE_TIME if witnesses == 1 else Status.SUCCESS
    assert outcomes == [Status.SUCCESS, refused]


@pytest.mark.parametrize("excess_us", [0, 1])
def test_insane_timestamps_are_not_set_up(cluster: Cluster, alice: Client, excess_us: int) -> None:
    """The same bound holds for the operation's own time: a client's clock, or what it says of
    it, may be ahead of a server's by so much and no more (design §4)."""
    limit_us = cluster.nodes[0].now_us() + limits.CLOCK_SKEW_US
    made = request(alice, sight(cluster), clock=limit_us + excess_us)
    reply = step(cluster.nodes[0], alice, made.message).reply
    assert reply.status is (Status.INSANE_TIME if excess_us else Status.SUCCESS)


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_ahead_goes_on_by_successors(
    cluster: Cluster, alice: Client, *, alone: bool
) -> None:
    """All clocks were ahead, and are right again: an update may build on what they left, at its
    immediate successor, and at no time of the client's choice. So may a repair of what is at one
    server only. (docs/decisions/0017-clock-jumps.md)"""
    now_us, year_us = cluster.nodes[0].now_us(), 365 * 24 * 3600 * limits.SECOND_US
    for node in cluster.nodes:
        node.skew_us = year_us
    accept(cluster, alice, clock=now_us + year_us)
    if alone:
        accept(cluster, alice, [3])
    for node in cluster.nodes:
        node.skew_us = 0
    made = request(alice, sight(cluster), BARRIER if alone else METHOD)
    assert time_of(made.timestamp) == now_us + year_us + 1 + alone
    assert set(statuses(place(cluster, alice, made.message, EVERYONE))) == {Status.SUCCESS}
    later = request(alice, sight(cluster), clock=now_us + year_us + limits.SECOND_US)
    assert Status.SUCCESS not in statuses(place(cluster, alice, later.message, EVERYONE))


def dictates_method(cluster: Cluster, alice: Client) -> None:
    accept(cluster, alice)


def dictates_inline_method(cluster: Cluster, alice: Client) -> None:
    accept(cluster, alice, [0, 1, 2])


def dictates_barrier(cluster: Cluster, alice: Client) -> None:
    accept(cluster, alice, [0, 1])


def dictates_inline_barrier(cluster: Cluster, alice: Client) -> None:
    dictates_barrier(cluster, alice)
    place(cluster, alice, request(alice, sight(cluster), BARRIER).message, [0, 1, 2, 3])


def dictates_copy(cluster: Cluster, alice: Client) -> None:
    dictates_barrier(cluster, alice)
    place(cluster, alice, request(alice, sight(cluster), BARRIER).message)


@pytest.mark.parametrize(
    ("prepare", "dictated", "accepted"),
    [
        (dictates_method, OperationType.METHOD, {METHOD}),
        (dictates_inline_method, OperationType.INLINE_METHOD, {BARRIER}),
        (dictates_barrier, OperationType.BARRIER, {BARRIER}),
        (dictates_inline_barrier, OperationType.INLINE_BARRIER, {BARRIER}),
        (dictates_copy, OperationType.COPY, {COPY, BARRIER}),
    ],
)
def test_both_perform_the_action_dictated_by_classification(
    prepare: Callable[[Cluster, Client], None],
    dictated: OperationType,
    accepted: set[ConditionedKind],
) -> None:
    """'Since both clients and servers base their actions on the OHS, both perform the action
    dictated by classification.' A barrier is safe to accept wherever not a complete object version
    is the latest: 'they can be accepted at servers if the latest candidate is classified as
    incomplete or repairable' (4.3.3)."""
    for kind in ConditionedKind:
        cluster = Cluster()
        alice = cluster.client("alice")
        prepare(cluster, alice)
        assert classified(cluster).type is dictated
        before = cluster.histories(A)
        made = request(alice, sight(cluster), kind)
        replies = place(cluster, alice, made.message, EVERYONE)
        if kind in accepted:
            assert set(statuses(replies)) == {Status.SUCCESS}
        else:
            assert set(statuses(replies)) == {Status.DIFFERENT}
            assert cluster.histories(A) == before


def test_repeated_requests_are_answered_as_the_first_time(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'Regardless of how many times a server receives a requests, it must only invoke the method
    on the object once. Moreover, the server should respond to a repeated request in a similar
    manner each time.' Before currentness is checked (line 1005), however much later."""
    seen = sight(cluster)
    first = request(alice, seen, invocation=operation(arguments=Increment(7)))
    answers = [reply.answer for reply in place(cluster, alice, first.message)]
    for _ in range(4):
        stored = [node.storage.snapshot()._tables for node in cluster.nodes]
        replies = place(cluster, alice, first.message)
        assert set(statuses(replies)) == {Status.SUCCESS}
        assert [reply.answer for reply in replies] == answers
        assert [node.storage._tables for node in cluster.nodes] == stored
        accept(cluster, bob)  # prunes, after the second, what was made first
    assert parse_history(cluster.histories(A)[0]).find(first.timestamp) is None


def test_a_request_that_is_not_current_fails_with_history(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'if (latest_time(s.RH) > LTcurrent) then reply(s, FAIL, ⊥, s.⟨RH, α⟩)' (lines 1007-1008)."""
    stale = request(bob, sight(cluster))
    accept(cluster, alice)
    for node in cluster.nodes[: SMALLEST.q]:
        reply = step(node, bob, stale.message).reply
        row = node.replica(A).row
        assert reply.status is Status.NOT_CURRENT
        assert (reply.histories, reply.authenticators) == ((row.history,), (row.authenticator,))
        assert reply.answer == b""


def test_barriers_keep_earlier_operations_from_completing(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'barriers prevent operations with earlier timestamps from completing.'"""
    slow = request(alice, sight(cluster))
    place(cluster, alice, slow.message, [0, 1])
    barrier = request(bob, sight(cluster), BARRIER)
    assert set(statuses(place(cluster, bob, barrier.message))) == {Status.SUCCESS}
    assert statuses(place(cluster, alice, slow.message, [2, 3, 4])) == [Status.NOT_CURRENT] * 3


def test_barriers_have_no_data(cluster: Cluster, alice: Client) -> None:
    """'Barrier candidates have no data associated with them': no object version, no change."""
    dictates_copy(cluster, alice)
    for node in cluster.nodes[:5]:
        replica = node.replica(A)
        assert is_barrier(replica.history.latest)
        assert replica.version(replica.history.latest) is None
    assert [value(node) for node in cluster.nodes[:5]] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(("hosts", "kept"), [(2, 0), (3, 1), (4, 1)])
def test_a_copy_copies_the_latest_version_before_the_barrier(hosts: int, kept: int) -> None:
    """'Such an object version is either the result of one of the contending operations that
    triggered repair or the object version these operations conditioned on.'"""
    cluster = Cluster()
    alice, bob = cluster.client("alice"), cluster.client("bob")
    base = accept(cluster, bob)
    one = accept(cluster, alice, range(hosts), clock=START_US)
    place(cluster, bob, request(bob, one_before(cluster, hosts), clock=START_US + 1).message, [4])
    barrier = request(alice, sight(cluster), BARRIER)
    assert set(statuses(place(cluster, alice, barrier.message))) == {Status.SUCCESS}
    copy = request(alice, sight(cluster), COPY)
    assert set(statuses(place(cluster, alice, copy.message))) == {Status.SUCCESS}
    found = classified(cluster)
    assert found.type is OperationType.METHOD
    assert found.object_candidate.timestamp == copy.timestamp
    source = (one if kept else base).timestamp
    assert found.object_candidate.conditioned_on == source
    assert [value(node) for node in cluster.nodes[:5]] == [1 + kept] * 5


def one_before(cluster: Cluster, hosts: int) -> Sight:
    """What the first servers' histories were before their latest candidate: a contender's view."""
    untouched = [number for number in QUORUM if number >= hosts]
    row = cluster.nodes[untouched[0]].replica(A).row
    known = {
        NodeId(number): Known(
            row.history,
            cluster.nodes[number].keys.make(replica_history_digest(object=A, encoded=row.history)),
        )
        for number in QUORUM
    }
    return Sight(*assemble(A, known))


def test_a_server_object_syncs_a_version_that_it_lacks(cluster: Cluster, alice: Client) -> None:
    """'Object sync if object version not stored locally' (lines 1012-1014)."""
    for _ in range(3):
        accept(cluster, alice)
    accept(cluster, alice, [5])
    assert value(cluster.nodes[5]) == 4
    assert cluster.histories(A)[5]
    # And now the same without ever having heard of the object before: the whole chain comes.
    replica = cluster.nodes[5].replica(A)
    assert replica.version(replica.head) is not None


def test_object_sync_asks_b_plus_one_servers(cluster: Cluster, alice: Client) -> None:
    """'a server uses the conditioned-on object history set to identify b+1 servers from which to
    solicit the object state'; 'only a single correct server need send the entire object version
    state and other servers can send a collision-resistant hash'."""
    accept(cluster, alice)
    cluster.sent.clear()
    accept(cluster, alice, [5])
    asked = [
        (target[1], each.whole) for _, target, each in cluster.sent if type(each) is SyncRequest
    ]
    assert [whole for _, whole in asked] == [True, False]
    assert {node for node, _ in asked} <= set(QUORUM)
    pages = [each.page for _, _, each in cluster.sent if type(each) is SyncReply]
    assert sorted(map(len, pages))[0] == 32
    assert len(pages) == SMALLEST.b + 1


@pytest.mark.parametrize("liar", QUORUM)
def test_object_sync_probes_further_if_replies_do_not_match(liar: int) -> None:
    """'if b+1 responses are not forthcoming (or do not all match) additional servers are
    probed.'"""
    for behaviour in (adversaries.wrong_answers(), adversaries.mute(), adversaries.amnesiac()):
        cluster = Cluster()
        alice = cluster.client("alice")
        base = accept(cluster, alice)
        cluster.nodes[liar].behaviour = behaviour
        accept(cluster, alice, [5], seen=QUORUM)
        assert value(cluster.nodes[5]) == 2
        # The answer that came along is what a repeated request will be given.
        synced, original = (
            cluster.nodes[number].replica(A).version(base.timestamp)
            for number in (5, next(node for node in QUORUM if node != liar))
        )
        assert synced == original


def test_the_initial_version_needs_no_object_sync(cluster: Cluster, alice: Client) -> None:
    """'if ((Object = ⊥) ∧ (LTCO > 0))' (line 1013)."""
    ready = step(cluster.nodes[5], alice, request(alice, sight(cluster)).message)
    assert not ready.wants
    assert ready.reply.status is Status.SUCCESS


def test_queries_do_not_change_server_state(cluster: Cluster, alice: Client) -> None:
    """'If the method invoked is a query, then the server returns immediately, because the server
    state is not modified.'"""
    accept(cluster, alice)
    for method in ("", "counter.fetch"):
        query = Query((A,), method, b"\x90" if method else b"", 1000, 1000, (), NodeId(0))
        for node in cluster.nodes:
            ready = node.server.step(node.storage, alice.sender, query, b"", node.now_us())
            assert ready.writes == []
            assert ready.reply.histories == (node.replica(A).row.history,)


def test_acceptance_is_atomic(cluster: Cluster, alice: Client) -> None:
    """'These three actions (lines 1025-1027) are performed atomically to be correct in the
    crash-recovery failure model.' A step gives all of its writes at once, and makes none itself."""
    accept(cluster, alice)
    node = cluster.nodes[0]
    made = request(alice, sight(cluster))
    sent = as_sent(made.message, node.number, SMALLEST.n)
    before = node.storage.snapshot()
    ready = node.server.step(node.storage, alice.sender, sent, b"", node.now_us())
    assert node.storage._tables == before._tables
    assert {Table.OBJECT, Table.VERSION, Table.STATE} <= {write.table for write in ready.writes}
    # Crashed before the commit: nothing has happened, and the request is accepted when it comes
    # again. Crashed after it, before the reply: the request is answered as it would have been.
    again = node.server.step(node.storage, alice.sender, sent, b"", node.now_us())
    assert (again.reply, again.writes) == (ready.reply, ready.writes)
    node.storage.apply(ready.writes)
    assert step(node, alice, made.message).reply == ready.reply


def test_refusals_are_answers_and_make_no_version(cluster: Cluster, alice: Client) -> None:
    """A method's refusal is deterministic: q servers agree on it, and nothing has changed."""
    increment(alice, (1 << 63) - 1)
    histories = cluster.histories(A)
    with pytest.raises(FileSystemError) as refusal:
        increment(alice, 1)
    assert refusal.value.code == errno.EOVERFLOW
    assert cluster.histories(A) == histories
    assert increment(alice, -1) == (1 << 63) - 2


# --- 4.3.5 Cached object history sets, quorums, queries ------------------------------------------


def test_an_update_on_a_current_set_takes_one_phase(cluster: Cluster, alice: Client) -> None:
    """'If the cached object history set is current, then the operation completes in a single
    phase.' Also the first: clients begin with ⟨0,0⟩ (line 200)."""
    for count in range(1, 4):
        cluster.sent.clear()
        assert increment(alice) == count
        assert [node for node, _ in sent(cluster, alice, Update)] == list(QUORUM)
        assert len(sent(cluster, alice, object)) == SMALLEST.q


def test_an_update_on_an_outdated_set_is_retried(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'If not, then a server rejects the operation and returns its current replica history so that
    the client can make its object history set more current.' No repair is needed then."""
    assert increment(alice) == 1
    assert increment(bob) == 2
    cluster.sent.clear()
    assert increment(alice) == 3
    kinds = [decode_conditioned(each.conditioned).kind for _, each in sent(cluster, alice, Update)]
    assert set(kinds) == {METHOD}
    assert len({each.conditioned for _, each in sent(cluster, alice, Update)}) == 2
    assert not sent(cluster, alice, (InlineUpdate, InlineBarrier, FetchRequest))


def test_an_update_ends_with_a_quorum_of_equal_successes(cluster: Cluster, alice: Client) -> None:
    """'Once the client receives a quorum of responses that return success, the operation returns
    successfully.'"""
    cluster.nodes[2].behaviour = adversaries.rejecter()
    outcome = alice.start(alice.qu.update((A,), "counter.increment", Increment(), USER))
    successes: set[int] = set()
    deliver = alice.engine.deliver

    def counting(node: NodeId, number: int, message: Any, body: Any = b"") -> None:
        assert outcome.done == (len(successes) >= SMALLEST.q)
        if isinstance(message, UpdateReply) and message.status is Status.SUCCESS:
            successes.add(node)
        deliver(node, number, message, body)

    alice.engine.deliver = counting  # type: ignore[method-assign]
    cluster.settle()
    assert outcome.value().answer == Count(1)
    assert successes == {0, 1, 3, 4, 5}


def test_queries_are_optimistic(cluster: Cluster, alice: Client) -> None:
    """'If a client has not accessed an object recently (or ever), … It is still possible for a
    query to complete in a single phase.'"""
    for count in range(1, 4):
        assert increment(alice) == count
        stranger = cluster.client(f"stranger {count}")
        cluster.sent.clear()
        assert fetch(stranger) == count
        assert [node for node, _ in sent(cluster, stranger, Query)] == list(QUORUM)
        assert len(sent(cluster, stranger, object)) == SMALLEST.q


@pytest.mark.parametrize("hosts", range(1, SMALLEST.r))
def test_a_query_returns_what_lies_below_incomplete_ones(
    cluster: Cluster, alice: Client, bob: Client, hosts: int
) -> None:
    """'If classification identifies that all of the candidates with timestamps later then the
    latest established candidate are incomplete, then the answer from invoking the query on the
    established candidate is returned.' Nothing is repaired."""
    increment(alice, 5)
    accept(cluster, bob, range(hosts), clock=START_US + cluster.now_us)
    assert classified(cluster).type is OperationType.BARRIER
    cluster.sent.clear()
    carol = cluster.client("carol")
    assert fetch(carol) == 5
    assert {type(each) for _, each in sent(cluster, carol, object)} == {Query}


@pytest.mark.parametrize("hosts", range(SMALLEST.r, SMALLEST.q))
def test_a_query_of_a_repairable_version_repairs_it_inline(
    cluster: Cluster, alice: Client, bob: Client, hosts: int
) -> None:
    """'In the case of the former, the client performs an inline repair operation; such an
    operation does not contend with the update it is repairing.'"""
    increment(alice, 5)
    made = accept(cluster, bob, range(hosts), clock=START_US + cluster.now_us)
    for number in set(EVERYONE) - set(QUORUM):
        cluster.mute(number)
    cluster.sent.clear()
    carol = cluster.client("carol")
    assert fetch(carol) == 6
    assert {type(each) for _, each in sent(cluster, carol, object)} == {
        Query,
        FetchRequest,
        InlineUpdate,
    }
    # The slow original finds that it has been done.
    cluster.heal()
    assert set(statuses(place(cluster, bob, made.message))) == {Status.SUCCESS}
    assert fetch(carol) == 6


@pytest.mark.parametrize("seed", range(6))
def test_one_updater_and_many_readers_never_need_barriers(seed: int) -> None:
    """'Because of inline repair and this optimization, an object that is updated by a single client
    and queried by many other clients does not ever require barriers, copies, or backoff.'"""
    cluster = Cluster(seed=seed)
    writer, *readers = (cluster.client(name) for name in ("alice", "bob", "carol", "dave"))

    async def write() -> int:
        for _ in range(25):
            answered = await writer.qu.update((A,), "counter.increment", Increment(), USER)
        value: int = answered.answer.value
        return value

    async def read(client: Client) -> list[int]:
        seen = []
        for _ in range(25):
            answered = await client.qu.query((A,), "counter.fetch", Fetch(), USER)
            seen.append(answered.answer.value)
        return seen

    last = writer.start(write())
    outcomes = [client.start(read(client)) for client in readers]
    cluster.run(lambda: last.done and all(outcome.done for outcome in outcomes))
    assert last.value() == 25
    for outcome in outcomes:
        assert outcome.value() == sorted(outcome.value())
    for client in (writer, *readers):
        assert not sent(cluster, client, InlineBarrier)
        for _, update in sent(cluster, client, Update):
            assert client is writer
            assert decode_conditioned(update.conditioned).kind is METHOD


@pytest.mark.parametrize("placement", [0, 1, 5, 6, 255])
def test_preferred_quorums_are_a_function_of_the_object_id(
    cluster: Cluster, alice: Client, placement: int
) -> None:
    """'a deterministic function is used to map an object's ID to its preferred quorum. A simple
    policy of assigning preferred quorums based on the object ID modulo n is employed.'"""
    name = counter_id(placement=placement)
    increment(alice, 1, name)
    start = placement % SMALLEST.n
    wanted = [(start + each) % SMALLEST.n for each in range(SMALLEST.q)]
    assert [node for node, _ in sent(cluster, alice, Update)] == wanted


@pytest.mark.parametrize("down", EVERYONE)
def test_on_silence_further_servers_are_probed(down: int) -> None:
    """'If responses from the preferred quorum are not received in a timely fashion, the client
    sends requests to additional servers.' 'Such a probing strategy maintains locality of quorum
    access if servers crash': all clients come to use the same, at once the next time."""
    cluster = Cluster()
    cluster.mute(down)
    others = {number for number in EVERYONE if number != down}
    for name in ("alice", "bob"):
        client = cluster.client(name)
        increment(client)
        cluster.sent.clear()
        count = increment(client)
        asked = {node for node, _ in sent(cluster, client, Update)}
        assert asked == others or down not in QUORUM
        assert count == fetch(client)


def test_probing_disperses_load_among_the_servers_that_are_left() -> None:
    """'… and disperses load among non-crashed servers': what takes a crashed server's place
    depends on the object."""
    large = QueryUpdateThresholds.smallest(t=4, b=4)
    quorums = ThresholdQuorums(large)
    peers = Peers(quorums)
    peers.silent(NodeId(3), 0)
    substitutes = set()
    for placement in range(large.n):
        preference = quorums.preference(placement)
        order, _ = peers.order(preference, 1)
        assert order == peers.order(preference, 1)[0]
        if 3 in preference[: large.q]:
            (substitute,) = set(order[: large.q]) - set(preference[: large.q])
            substitutes.add(substitute)
        else:
            assert order[: large.q] == preference[: large.q]
    assert len(substitutes) == large.q


def test_requests_are_sent_until_a_quorum_responds(cluster: Cluster, alice: Client) -> None:
    """'c_quorum_rpc repeatedly sends requests until a quorum of responses is received.'"""
    cluster.mute(3, 4)
    outcome = alice.start(alice.qu.update((A,), "counter.increment", Increment(), USER))
    cluster.after(5 * limits.SECOND_US, cluster.heal)
    cluster.run(lambda: cluster.now_us >= 5 * limits.SECOND_US)
    assert not outcome.done
    repeated = [node for node, _ in sent(cluster, alice, Update)]
    assert repeated.count(3) > 2
    cluster.run(lambda: outcome.done)
    assert outcome.value().answer == Count(1)


def test_silence_is_borne_as_long_as_the_caller_says(cluster: Cluster) -> None:
    """Progress cannot 'be made unless sufficient servers are up' (4.3.8)."""
    alice = cluster.client("alice", patience_total_us=3 * limits.SECOND_US)
    cluster.mute(3, 4)
    for operation_ in (increment, fetch):
        with pytest.raises(QuorumUnavailable):
            operation_(alice)


# --- 4.3.5 Inline repair -------------------------------------------------------------------------


def test_inline_repair_is_processed_like_the_original(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'A server processes an inline repair request in the same manner as it would have processed
    the original update for the candidate (from the original client performing the update).'"""
    made = accept(cluster, alice, [0, 1, 2])
    replies = place(cluster, bob, inline(made, sight(cluster)), EVERYONE)
    assert set(statuses(replies)) == {Status.SUCCESS}
    assert len({(reply.histories, reply.answer) for reply in replies}) == 1
    assert len({node.replica(A).version(made.timestamp) for node in cluster.nodes}) == 1
    assert client_of(made.timestamp) == alice.sender.client


def test_inline_repair_by_several_clients_takes_effect_once(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'inline repair may lead to different clients (each performing inline repair of the same
    candidate) sending the same request to the server.'"""
    made = accept(cluster, alice, [0, 1, 2])
    message = inline(made, sight(cluster))
    for client in (bob, cluster.client("carol"), alice, bob):
        assert set(statuses(place(cluster, client, message, EVERYONE))) == {Status.SUCCESS}
    assert [value(node) for node in cluster.nodes] == [1] * SMALLEST.n


def test_inline_repair_is_for_uncontended_candidates_only(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'Any timestamp in the object history set greater than that of the repairable candidate
    indicates contention.'"""
    seen = sight(cluster)
    made = accept(cluster, alice, [0, 1, 2])
    place(cluster, bob, request(bob, seen, clock=START_US).message, [4])
    assert classified(cluster).type is OperationType.BARRIER
    replies = place(cluster, bob, inline(made, sight(cluster)), [3, 5])
    assert statuses(replies) == [Status.DIFFERENT] * 2


@pytest.mark.parametrize("hosts", range(SMALLEST.r + 1))
def test_inline_repair_needs_a_repairable_candidate(
    cluster: Cluster, alice: Client, bob: Client, hosts: int
) -> None:
    """Only what a repairable set shows was made by its author, and may be finished by others."""
    made = accept(cluster, alice, range(hosts))
    (reply,) = place(cluster, bob, inline(made, sight(cluster)), [5])
    repairable = hosts >= SMALLEST.r
    assert reply.status is (Status.SUCCESS if repairable else Status.DIFFERENT)


def test_inline_repair_does_not_let_clients_act_in_another_name(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """The candidate is set up anew from the original request and its author: another operation, or
    another author, is another candidate, for which nobody vouches."""
    made = accept(cluster, alice, [0, 1, 2])
    seen = sight(cluster)
    other = request(alice, sight(cluster, ()), invocation=operation(arguments=Increment(100)))
    for message in (
        inline(other, seen),
        msgspec.structs.replace(inline(made, seen), author=bob.sender.client),
    ):
        assert statuses(place(cluster, bob, message, [3, 4, 5])) == [Status.DIFFERENT] * 3


@pytest.mark.parametrize("hosts", range(SMALLEST.b + 1, SMALLEST.q))
def test_every_barrier_that_is_not_complete_is_repaired_inline(
    cluster: Cluster, alice: Client, bob: Client, hosts: int
) -> None:
    """'classification is changed so that any barrier candidate not classified as complete is
    inline repaired.' 'Inline repair can also be performed on barrier candidates.'"""
    dictates_barrier(cluster, alice)
    barrier = request(alice, sight(cluster), BARRIER)
    place(cluster, alice, barrier.message, range(hosts))
    seen = sight(cluster)
    assert classify(seen.culled, cluster.quorums).type is OperationType.INLINE_BARRIER
    message = InlineBarrier(seen.history_set, seen.authenticators)
    assert set(statuses(place(cluster, bob, message))) == {Status.SUCCESS}
    assert classified(cluster).type is OperationType.COPY
    assert classified(cluster).latest == barrier.timestamp


def test_a_barrier_that_b_servers_report_is_not_taken(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """They may have forged it. Who meets it makes one of his own on top, if it is in the way."""
    dictates_barrier(cluster, alice)
    place(cluster, alice, request(alice, sight(cluster), BARRIER).message, [0])
    seen = sight(cluster)
    message = InlineBarrier(seen.history_set, seen.authenticators)
    assert statuses(place(cluster, bob, message, [1, 2, 3, 4])) == [Status.DIFFERENT] * 4
    own = request(bob, seen, BARRIER)
    assert set(statuses(place(cluster, bob, own.message))) == {Status.SUCCESS}
    assert classified(cluster).latest == own.timestamp


@pytest.mark.parametrize("kind", [BARRIER, COPY])
def test_barriers_and_copies_carry_no_clock(
    cluster: Cluster, alice: Client, kind: ConditionedKind
) -> None:
    """Their time is one more than the latest that was seen: or whoever repairs could push it on."""
    dictates_barrier(cluster, alice)
    message = request(alice, sight(cluster), kind, clock=START_US).message
    (reply,) = place(cluster, alice, message, [3])
    assert reply.code == errno.EINVAL


def test_barriers_are_not_repaired_where_later_candidates_are(
    cluster: Cluster, alice: Client
) -> None:
    """A server accepts a barrier only on top of its history, and only a barrier this way."""
    dictates_barrier(cluster, alice)
    old = sight(cluster)
    message = InlineBarrier(old.history_set, old.authenticators)
    assert statuses(place(cluster, alice, message, [3])) == [Status.DIFFERENT]
    place(cluster, alice, request(alice, old, BARRIER).message, [0])
    barred = sight(cluster)
    place(cluster, alice, request(alice, barred, BARRIER).message, [3])
    message = InlineBarrier(barred.history_set, barred.authenticators)
    assert statuses(place(cluster, alice, message, [3])) == [Status.NOT_CURRENT]


# --- 4.3.5 Repeated requests, back-off, histories ------------------------------------------------


def test_an_update_that_others_finish_takes_effect_once(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """Retrying (lines 302-306) is safe: before an operation is made anew it is known that no
    earlier attempt took effect."""
    increment(bob, 10)
    fetch(alice)
    cluster.block(client="alice", nodes=(3, 4, 5))
    outcome = alice.start(alice.qu.update((A,), "counter.increment", Increment(), USER))
    cluster.run(lambda: cluster.now_us > 100_000)
    assert not outcome.done
    assert increment(bob, 100) == 111  # bob had to finish alice's
    cluster.heal()
    cluster.run(lambda: outcome.done)
    assert outcome.value().answer == Count(11)
    assert fetch(bob) == 111


def test_back_off_is_random_and_exponential() -> None:
    """'A random exponential backoff policy is implemented.'"""
    bounds = []
    back_off = BackOff(Pace(hedge_us=1, patience_us=1))
    for _ in range(12):
        pausing = back_off.pause().__await__()
        drawing = next(pausing)
        assert isinstance(drawing, Draw)
        bounds.append(drawing.bound)
        pause = pausing.send(drawing.bound - 1)
        assert isinstance(pause, Pause)
        assert pause.duration_us == drawing.bound
        with pytest.raises(StopIteration):
            pausing.send(None)
    assert bounds[:8] == [BACK_OFF_US << exponent for exponent in range(8)]
    assert bounds[-1] == bounds[-2]


@pytest.mark.parametrize("seed", range(4))
def test_contending_clients_make_progress(seed: int) -> None:
    """'Client backoff is relied upon to promote progress when there is such contention.'"""
    cluster = Cluster(seed=seed)
    clients = [cluster.client(name) for name in ("alice", "bob", "carol", "dave")]

    async def work(client: Client) -> list[int]:
        answers = []
        for _ in range(5):
            answered = await client.qu.update((A,), "counter.increment", Increment(), USER)
            answers.append(answered.answer.value)
        return answers

    outcomes = [client.start(work(client)) for client in clients]
    cluster.run(lambda: all(outcome.done for outcome in outcomes), within_us=60_000_000)
    answers = [answer for outcome in outcomes for answer in outcome.value()]
    assert sorted(answers) == list(range(1, 21))


def test_histories_are_pruned_below_the_conditioned_on_time(
    cluster: Cluster, alice: Client
) -> None:
    """'In the common case, the replica history contains two candidates: one for the latest object
    version and one for the conditioned-on object version.'"""
    made = [accept(cluster, alice) for _ in range(6)]
    for history in cluster.histories(A)[: SMALLEST.q]:
        candidates = parse_history(history).candidates
        assert [each.timestamp for each in candidates] == [made[-2].timestamp, made[-1].timestamp]
        assert candidates[-1].conditioned_on == made[-2].timestamp


def test_failures_leave_candidates_until_the_next_update(cluster: Cluster, alice: Client) -> None:
    """'Failures and concurrency may lead to additional barrier and incomplete candidates in the
    replica history.'"""
    accept(cluster, alice)
    dictates_copy(cluster, alice)
    place(cluster, alice, request(alice, sight(cluster), COPY).message)
    assert [len(parse_history(each).candidates) for each in cluster.histories(A)[:5]] == [
        4,
        4,
        3,
        3,
        3,
    ]
    accept(cluster, alice)
    assert {len(parse_history(each).candidates) for each in cluster.histories(A)[:5]} == {2}


def test_pruned_versions_remain_for_slow_servers(cluster: Cluster, alice: Client) -> None:
    """'deleting past object versions could make it impossible for a server to respond to slow
    repeated requests from clients and slow object sync requests from other servers': they stay."""
    made = [accept(cluster, alice) for _ in range(6)]
    node = cluster.nodes[0]
    ready = node.server.step(
        node.storage,
        cluster.nodes[5].sender,
        SyncRequest(A, made[1].timestamp, (ZERO,), b"", True),
        b"",
        node.now_us(),
    )
    assert ready.reply.found is Found.PAGE


def test_authenticators_are_n_hmacs_over_the_hash_of_the_history(
    cluster: Cluster, alice: Client
) -> None:
    """'Authenticators consist of n HMACs, one for each server in the system. Authenticators are
    taken over the hash of a replica history, rather than over the entire replica history.'"""
    accept(cluster, alice)
    for maker, verifier in combinations(EVERYONE[: SMALLEST.q], 2):
        row = cluster.nodes[maker].replica(A).row
        assert len(row.authenticator) == authenticator_bytes(SMALLEST.n)
        digest = replica_history_digest(object=A, encoded=row.history)
        assert len(digest) == 32
        check = cluster.nodes[verifier].keys.check
        assert check(claimed_by=maker, digest=digest, authenticator=row.authenticator)
        assert not check(claimed_by=verifier, digest=digest, authenticator=row.authenticator)


# --- answers, grants -----------------------------------------------------------------------------


LARGE = "♠" * limits.ANSWER_INLINE_BYTES


@pytest.mark.parametrize("liar", [None, *QUORUM])
@pytest.mark.parametrize("behaviour", [adversaries.wrong_answers, adversaries.mute])
def test_large_answers_come_whole_from_one_server(
    liar: int | None, behaviour: Callable[[], Any]
) -> None:
    """'only a single correct server need send the entire … and other servers can send a
    collision-resistant hash', for the answers of methods as for object sync (protocols.md 2.4)."""
    cluster = Cluster(types=register_types())
    alice, bob = cluster.client("alice"), cluster.client("bob")
    alice.run(alice.qu.update((A,), "register.set", SetTo(LARGE), USER))
    cluster.settle()
    cluster.sent.clear()
    if liar is not None:
        cluster.nodes[liar].behaviour = behaviour()
    answered = bob.run(bob.qu.query((A,), "register.get", Get(), USER))
    assert answered.answer.decode() == LARGE
    replies = [each for _, _, each in cluster.sent if isinstance(each, QueryReply)]
    if liar is None:
        assert sorted(len(each.answer) for each in replies) == [32] * 4 + [len(LARGE.encode())]
        assert {each.answer for each in replies if not each.whole} == {
            answer_digest(LARGE.encode())
        }


@pytest.mark.parametrize("liar", QUORUM)
@pytest.mark.parametrize("behaviour", [adversaries.wrong_answers, adversaries.yes_sayer])
def test_no_answer_of_a_single_server_is_believed(liar: int, behaviour: Callable[[], Any]) -> None:
    """An answer counts when b + 1 servers give it: one of them is benign."""
    cluster = Cluster()
    alice, bob = cluster.client("alice"), cluster.client("bob")
    cluster.nodes[liar].behaviour = behaviour()
    assert [increment(alice) for _ in range(3)] == [1, 2, 3]
    assert [fetch(bob), increment(bob), fetch(alice)] == [3, 4, 4]


def test_grants_are_enforced_by_each_server(cluster: Cluster, bob: Client) -> None:
    """A client updates only with a grant to write, and acts only as the users of its grant."""
    reader = cluster.client("reader", grant=Grant(write=False))
    other = cluster.client("other", grant=Grant(uids=(4711,)))
    seen = sight(cluster)
    for client, code in ((reader, errno.EROFS), (other, errno.EPERM)):
        for node in cluster.nodes:
            reply = step(node, client, request(client, seen).message).reply
            assert isinstance(reply, Refused)
            assert reply.code == code
        with pytest.raises(AdmissionRefused) as refusal:
            increment(client)
        assert refusal.value.code == code
    assert fetch(reader) == 0
    with pytest.raises(AdmissionRefused):
        fetch(other)
    assert cluster.histories(A) == [b""] * SMALLEST.n


def test_readers_can_repair_what_writers_left(cluster: Cluster, alice: Client) -> None:
    """Repair needs no right to write: it is the author's operation that is finished, or time
    that is advanced, or what was there that is copied."""
    accept(cluster, alice, [0, 1, 2])
    for number in set(EVERYONE) - set(QUORUM):
        cluster.mute(number)
    reader = cluster.client("reader", grant=Grant(write=False))
    assert fetch(reader) == 1
    assert sent(cluster, reader, InlineUpdate)


def test_nodes_perform_no_operations_and_clients_no_object_sync(
    cluster: Cluster, alice: Client
) -> None:
    """Object data goes to servers that need it, not around the methods to clients. Nodes may repair
    what clients left unfinished, which needs no right to write: see `unfinished`."""
    made = accept(cluster, alice)
    seen = sight(cluster)
    node, peer = cluster.nodes[:2]
    evidence = inline(made, seen)
    for message in (made.message, Query((A,), "counter.fetch", b"\x90", 0, 0, (), NodeId(0))):
        reply = node.server.step(node.storage, peer.sender, message, b"", START_US).reply
        assert isinstance(reply, Refused)
        assert reply.code == errno.EPERM
    for allowed in (
        evidence,
        InlineBarrier(seen.history_set, seen.authenticators),
        Query((A,), "", b"", 0, 0, (), NodeId(0)),
        FetchRequest(made.timestamp),
        DeduceRequest(made.timestamp, (A,)),
    ):
        sent = as_sent(allowed, node.number, SMALLEST.n)
        reply = node.server.step(node.storage, peer.sender, sent, b"", START_US).reply
        assert not isinstance(reply, Refused)
    sync = SyncRequest(A, made.timestamp, (ZERO,), b"", True)
    assert step(node, alice, sync).reply.code == errno.EPERM


# --- 4.3.5 Malevolent components -----------------------------------------------------------------


def test_a_server_with_more_than_b_corrupt_hmacs_is_excluded(
    cluster: Cluster, alice: Client
) -> None:
    """'If a malevolent server corrupts more than b HMACs in its authenticator, then a client can
    conclude, from the responses of other servers, that the server is malevolent and exclude it
    from the set of servers it contacts.'"""
    cluster.nodes[1].behaviour = adversaries.selective((0, 2, 3))
    increment(alice)
    increment(alice)
    assert alice.qu.peers.disbelieved == Nodes.of([1])
    cluster.sent.clear()
    assert increment(alice) == 3
    assert {node for node, _ in sent(cluster, alice, object)} == {0, 2, 3, 4, 5}
    assert len(sent(cluster, alice, object)) == SMALLEST.q


@pytest.mark.parametrize("liar", [1, 4])
@pytest.mark.parametrize("victim", [0, 5])
def test_with_fewer_corrupt_hmacs_more_servers_are_asked(liar: int, victim: int) -> None:
    """'then a client can conclude only that some servers in the quorum contacted are malevolent.
    This is sufficient for the client to solicit more responses from additional servers and make
    progress.'"""
    cluster = Cluster()
    alice = cluster.client("alice")
    cluster.nodes[liar].behaviour = adversaries.selective((victim,))
    assert [increment(alice) for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("liar", [0, 3])
def test_false_accusations_exclude_no_benign_server(liar: int) -> None:
    """'A malevolent server can also return lists of valid authenticators to the client, indicating
    they are invalid.'"""
    cluster = Cluster()
    alice = cluster.client("alice")
    cluster.nodes[liar].behaviour = adversaries.accuser(0b111111 & ~(1 << liar))
    assert [increment(alice) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert not cluster.quorums.includes_benign(alice.qu.peers.disbelieved)


@pytest.mark.parametrize("liar", [0, 3])
@pytest.mark.parametrize("barrier", [False, True])
def test_isolated_clients_progress_beside_forged_candidates(liar: int, barrier: bool) -> None:
    """'the Q/U protocol can ensure that isolated clients make progress in spite of malevolent
    components.' Forged candidates are incomplete; forged barriers are repaired inline, which
    bounds them by n."""
    cluster = Cluster()
    alice, bob = cluster.client("alice"), cluster.client("bob")
    node = cluster.nodes[liar]
    node.behaviour = adversaries.forger(node.keys, barrier=barrier)
    for count in range(1, 6):
        cluster.sent.clear()
        assert increment(alice) == count
        barred = {
            each.conditioned
            for _, each in sent(cluster, alice, Update)
            if decode_conditioned(each.conditioned).kind is BARRIER
        } | {each.evidence for _, each in sent(cluster, alice, InlineBarrier)}
        assert len(barred) <= SMALLEST.n
    assert fetch(bob) == 5


def test_forged_candidates_are_classified_incomplete(cluster: Cluster, alice: Client) -> None:
    """'malevolent servers cannot forge a potential or established candidate: any forged candidate
    is classifiable as incomplete.' By (4.4): b < r."""
    made = accept(cluster, alice)
    history = cluster.histories(A)[0]
    forged = Candidate(
        logical_timestamp(
            time_us=START_US, barrier=False, client=alice.sender.client, digest=bytes(32)
        ),
        made.timestamp,
    )
    lie = parse_history(history + forged.encoded)
    for liar in QUORUM:
        others = Nodes.of(node for node in QUORUM if node != liar)
        hosted = (Hosted(parse_history(history), others), Hosted(lie, Nodes.of([liar])))
        found = classify(CulledObjectHistorySet(A, hosted), cluster.quorums)
        assert found.type is OperationType.BARRIER
        assert found.object_candidate.timestamp == made.timestamp
    assert SMALLEST.b < SMALLEST.r


def test_servers_rate_limit_the_repairs_of_a_client(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, alice: Client
) -> None:
    """'additional server-side code could rate limit clients': barriers and copies, which ignore
    what others are about, are an allowance that fills with time. Others have their own."""
    monkeypatch.setattr(BarrierBudget, "take", lambda *_: True)
    bob = cluster.client("bob")
    dictates_barrier(cluster, bob)
    node = cluster.nodes[0]

    def bar(client: Client) -> Status:
        return step(node, client, request(client, sight(cluster), BARRIER).message).reply.status

    outcomes = [bar(alice) for _ in range(limits.REPAIRS_BURST + 5)]
    assert outcomes == [Status.SUCCESS] * limits.REPAIRS_BURST + [Status.TOO_MANY] * 5
    assert bar(bob) is Status.SUCCESS
    node.skew_us += limits.SECOND_US
    refilled = [bar(alice) for _ in range(limits.REPAIRS_PER_SECOND + 1)]
    assert refilled.count(Status.SUCCESS) == limits.REPAIRS_PER_SECOND


def test_who_does_not_update_an_object_bars_it_seldom(cluster: Cluster, alice: Client) -> None:
    """'additional server-side code could rate limit clients': at an object, all that have not
    updated it together, however many they are; for once it is barred, it is barred for them all."""
    accept(cluster, alice)
    dictates_barrier(cluster, alice)
    node = cluster.nodes[0]

    def bar(client: Client) -> Status:
        return step(node, client, request(client, sight(cluster), BARRIER).message).reply.status

    others = [cluster.client(f"reader {number}") for number in range(limits.BARRIERS_OF_OTHERS)]
    earned = limits.BARRIERS_EARNED
    for each in others:  # what each begins with
        assert [bar(each) for _ in range(earned)] == [Status.SUCCESS] * earned
    assert [bar(each) for each in others] == [Status.SUCCESS] * len(others)
    assert bar(others[0]) is Status.TOO_MANY
    assert [bar(alice) for _ in range(2 * earned)] == [Status.SUCCESS] * 2 * earned
    node.skew_us += limits.SECOND_US
    assert [bar(each) for each in others[:2]] == [Status.SUCCESS, Status.TOO_MANY]


@pytest.mark.parametrize("mallorys_share", [limits.HISTORY_SHARE - 1, limits.HISTORY_SHARE])
def test_a_clients_unfinished_work_at_an_object_is_bounded(
    cluster: Cluster, alice: Client, mallorys_share: int
) -> None:
    """'limits are placed on the amount of unverified work a client may inject in the system': in a
    long replica history no client has more than its share of candidates."""
    mallory = cluster.client("mallory")
    authors = [mallory] * mallorys_share
    authors += [alice] * (limits.HISTORY_CANDIDATES - mallorys_share - 1)
    accept(cluster, alice, [0])
    candidates = [
        Candidate(
            logical_timestamp(
                time_us=START_US + time_us,
                barrier=False,
                client=each.sender.client,
                digest=bytes(32),
            ),
            ZERO,
        )
        for time_us, each in enumerate(authors)
    ]
    node = cluster.nodes[0]
    replica = node.replica(A)
    history = replica.row.history + b"".join(each.encoded for each in candidates)
    macs = node.keys.make(replica_history_digest(object=A, encoded=history))
    replica.report(history, macs, established=ZERO)
    node.storage.apply(replica.writes)
    made = request(mallory, sight(cluster), BARRIER)
    reply = step(node, mallory, made.message).reply
    allowed = mallorys_share < limits.HISTORY_SHARE
    assert reply.status is (Status.SUCCESS if allowed else Status.TOO_MANY)


# --- 4.3.7 Multi-object updates ------------------------------------------------------------------


def transfer(names: tuple[ObjectId, ...] = (A, B), name: str = "t", serial: int = 0) -> Operation:
    return operation(f"transfer.{len(names)}", Transfer(name), names, serial=serial)


def sights(cluster: Cluster, names: Iterable[ObjectId] = (A, B), nodes: Any = QUORUM) -> Any:
    return tuple(sight(cluster, nodes, name) for name in sorted(names))


def balances(node: Node, names: Iterable[ObjectId] = (A, B)) -> list[int]:
    found = [node.replica(name).workspace.get(b"balance") or b"" for name in names]
    return [int.from_bytes(each, "big", signed=True) for each in found]


def read(client: Client, *names: ObjectId) -> Accounts:
    query = client.qu.query(names, f"read.{len(names)}", Read(), USER)
    answer: Accounts = client.run(query).answer
    return answer


def test_a_multi_object_update_has_one_timestamp(cluster: Cluster, alice: Client) -> None:
    """'all objects updated by a multi-object update have the same multi-OHS in their timestamp.'"""
    accept(cluster, alice)  # so that the objects differ in age
    made = request(alice, sights(cluster), METHOD, transfer((B, A)))
    assert set(statuses(place(cluster, alice, made.message))) == {Status.SUCCESS}
    for node in cluster.nodes[: SMALLEST.q]:
        latest = [node.replica(name).history.candidates[-1] for name in (A, B)]
        assert [each.timestamp for each in latest] == [made.timestamp] * 2
        assert [each.objects for each in latest] == [(A, B)] * 2
        assert latest[0].conditioned_on > latest[1].conditioned_on == ZERO
        assert balances(node) == [1, -1]


@pytest.mark.parametrize("where", [A, B])
@pytest.mark.parametrize("cause", ["not current", "culled", "contended"])
def test_an_update_is_accepted_for_all_objects_or_for_none(
    cluster: Cluster, alice: Client, bob: Client, where: ObjectId, cause: str
) -> None:
    """'Assuming validation passes for all of the objects in the multi-OHS, the server accepts the
    update for all the objects in the multi-OHS simultaneously.'"""
    invocation = operation(objects=(where,))
    if cause == "culled":
        for name in (A, B):
            accept_at(cluster, bob, name)
    if cause == "contended":
        once = request(bob, sight(cluster, QUORUM, where), invocation=invocation)
        place(cluster, bob, once.message, [4])
    seen = list(sights(cluster))
    if cause == "not current":
        once = request(bob, sight(cluster, QUORUM, where), invocation=invocation)
        place(cluster, bob, once.message)
    if cause == "culled":
        index = (A, B).index(where)
        for at in EVERYONE:
            seen[index] = spoilt(seen[index], of=2, at=at)
    wanted = {
        "not current": Status.NOT_CURRENT,
        "culled": Status.CULLED,
        "contended": Status.DIFFERENT,
    }[cause]
    before = [cluster.histories(name) for name in (A, B)]
    made = request(alice, tuple(seen), METHOD, transfer())
    assert set(statuses(place(cluster, alice, made.message, QUORUM))) == {wanted}
    assert [cluster.histories(name) for name in (A, B)] == before


def accept_at(cluster: Cluster, client: Client, name: ObjectId) -> None:
    made = request(client, sight(cluster, QUORUM, name), invocation=operation(objects=(name,)))
    assert set(statuses(place(cluster, client, made.message))) == {Status.SUCCESS}


def test_locks_are_taken_in_object_id_order(cluster: Cluster, alice: Client) -> None:
    """'The local locks are acquired in object ID order.' A step is atomic, so that no locks are
    needed; the history sets come in this order, each object once."""
    one, other = sights(cluster)
    for wrong in ((other, one), (one, one)):
        reply = step(
            cluster.nodes[0], alice, request(alice, wrong, METHOD, transfer()).message
        ).reply
        assert isinstance(reply, Refused)
        assert reply.code == errno.EINVAL


def test_the_preferred_quorum_is_that_of_the_highest_object_id(
    cluster: Cluster, alice: Client
) -> None:
    """'we use the preferred quorum of the highest object ID in the multi-OHS.' 'If there is no
    contention, such candidates are repairable at their preferred quorum via inline repair.'"""
    low, high = counter_id(placement=0), counter_id(placement=3)
    alice.run(alice.qu.update((high, low), "transfer.2", Transfer("t"), USER))
    assert [node for node, _ in sent(cluster, alice, Update)] == [3, 4, 5, 0, 1]
    bob = cluster.client("bob")
    bob.qu.peers.silent(NodeId(5), START_US)
    cluster.mute(5)
    cluster.sent.clear()
    assert read(bob, low).balances == (1,)
    assert {type(each) for _, each in sent(cluster, bob, object)} <= {
        Query,
        DeduceRequest,
        FetchRequest,
        InlineUpdate,
    }


def test_classification_by_deduction_to_complete(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'If ca is in fact established, then cb is also established and there could exist a subsequent
    established candidate at ob that conditions on cb. … The former requires that ca be reclassified
    as complete.'"""
    alice.run(alice.qu.update((A, B), "transfer.2", Transfer("t"), USER))
    alice.run(alice.qu.update((B,), "transfer.1", Transfer("u", 0), USER))
    assert classified(cluster, range(1, 6), A).type is OperationType.INLINE_METHOD
    bob.qu.peers.silent(NodeId(0), START_US)
    cluster.mute(0)
    cluster.sent.clear()
    assert read(bob, A).balances == (-1,)
    assert {type(each) for _, each in sent(cluster, bob, object)} == {Query}
    assert list(bob.qu.observations.facts.values()) == [True]


def test_classification_by_deduction_to_incomplete(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'If ca is not established, then cb also is not established and subsequent operations at ob
    may preclude cb from ever being established … The latter requires that ca be reclassified as
    incomplete.'"""
    made = request(alice, sights(cluster), METHOD, transfer())
    place(cluster, alice, made.message, [0, 1, 2])
    carol = cluster.client("carol")
    carol.qu.peers.silent(NodeId(0), START_US)
    cluster.block(client="carol", nodes=(0,))
    for _ in range(2):
        carol.run(carol.qu.update((B,), "transfer.1", Transfer("u", 0), USER))
    assert classified(cluster, QUORUM, A).type is OperationType.INLINE_METHOD
    bob.qu.peers.silent(NodeId(5), START_US)
    cluster.block(client="bob", nodes=(5,))
    found = read(bob, A)
    assert found == Accounts((0,), ((),))
    assert bob.qu.observations.facts[made.timestamp] is False
    assert read(bob, A, B).balances == (0, 0)


@pytest.mark.parametrize("established", [False, True])
def test_servers_deduce_from_the_evidence_shown(
    cluster: Cluster, alice: Client, established: bool
) -> None:
    """A copy says what it rests on: the history sets of other objects of the repairable candidate,
    from which each server concludes the same. What is dead is not copied; of what is established
    the other objects need no copy; and without evidence nothing is."""
    made = request(alice, sights(cluster), METHOD, transfer())
    later = operation("transfer.1", Transfer("u", 0), (B,))
    if established:
        place(cluster, alice, made.message)
        following = request(alice, sight(cluster, QUORUM, B), METHOD, later)
        place(cluster, alice, following.message)
    else:
        place(cluster, alice, made.message, [0, 1, 2])
        others = range(1, 6)
        for kind in (BARRIER, COPY):
            following = request(alice, sight(cluster, others, B), kind)
            place(cluster, alice, following.message, others)
    through = range(1, 6) if established else QUORUM  # where it is repairable at A
    contender = request(alice, sight(cluster, [5]), clock=START_US)
    place(cluster, alice, contender.message, [5] if established else [4])
    place(cluster, alice, request(alice, sight(cluster, through), BARRIER).message, through)
    found = classified(cluster, through)
    assert found.type is OperationType.COPY
    assert found.object_candidate.timestamp == made.timestamp
    assert not found.complete
    barred = sight(cluster, through)
    replies = place(cluster, alice, request(alice, barred, COPY).message, through)
    assert set(statuses(replies)) == {Status.DIFFERENT}
    evidence = (sight(cluster, through, B),)
    copy = request(alice, barred, COPY, evidence=evidence)
    assert set(statuses(place(cluster, alice, copy.message, through))) == {Status.SUCCESS}
    source = made.timestamp if established else ZERO
    for number in through:
        assert cluster.nodes[number].replica(A).history.latest_object.conditioned_on == source
        assert balances(cluster.nodes[number], [A]) == [-1 if established else 0]


@pytest.mark.parametrize("outlived", [False, True])
def test_servers_name_those_whose_vouchers_are_invalid(
    cluster: Cluster, alice: Client, outlived: bool
) -> None:
    """(Ours.) Or a liar's voucher would make requests fail, and nobody be suspected. One of an
    earlier life than the server knows of is nobody's fault."""
    made = accept(cluster, alice, range(6))
    server, objects = cluster.nodes[0], (A,)
    digest = deduction_digest(timestamp=made.timestamp, objects=objects, established=True)
    following = request(alice, sight(cluster, (0, 1, 3, 4, 5))).message
    fact = Fact(made.timestamp, objects, established=True)
    conditioned = msgspec.structs.replace(decode_conditioned(following.conditioned), facts=(fact,))

    def status(**vouchers: bytes) -> tuple[Status, int]:
        given = tuple(Voucher(NodeId(int(by[1:])), made) for by, made in vouchers.items())
        message = Update(encode(conditioned), following.authenticators, (given,), NodeId(0))
        reply = step(server, alice, message).reply
        return reply.status, reply.forged

    valid, bad = cluster.keys(1).make(digest), cluster.keys(2).make(digest)
    if outlived:
        server.keys.learn(2, 1)
    else:
        bad = bad[:LIFE_BYTES] + bytes(MAC_BYTES * 6)
    forged = 0 if outlived else 0b100
    assert status(_1=valid, _2=bad) == (Status.CULLED, forged)
    assert status(_1=valid, _9=bad) == (Status.CULLED, 0)
    enough = cluster.keys(3).make(digest)
    assert status(_1=valid, _2=bad, _3=enough) == (Status.SUCCESS, 0)


def test_what_deduction_leaves_open_is_repaired(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    """'Repair … consists of a barrier and copy operation. The multi-OHS for multi-object barriers
    and multi-object copies have the same set of objects in them as the multi-OHS of the repairable
    candidate.'"""
    before = sight(cluster)
    made = request(alice, sights(cluster), METHOD, transfer())
    place(cluster, alice, made.message, [0, 1, 2])
    contender = request(alice, before, clock=START_US)
    place(cluster, alice, contender.message, [4])
    cluster.block(client="bob", nodes=(5,))
    bob.qu.peers.silent(NodeId(5), START_US)
    assert classified(cluster).type is OperationType.BARRIER
    bob.run(bob.qu.update((A,), "counter.increment", Increment(0), USER))
    assert read(bob, A, B).balances == (-1, 1)
    copies = [
        decode_conditioned(each.conditioned)
        for _, each in sent(cluster, bob, Update)
        if decode_conditioned(each.conditioned).kind is COPY
    ]
    assert copies
    assert all([each.object for each in copy.sets] == [A, B] for copy in copies)
    for node in cluster.nodes[: SMALLEST.q]:
        latest = node.replica(B).history.latest_object
        assert latest.copy
        assert latest.objects == (A, B)
        version = node.replica(A).version(latest.timestamp)
        assert version is not None
        assert version.parent == made.timestamp


@pytest.mark.parametrize("hosts", range(SMALLEST.n + 1))
def test_multi_object_updates_are_seen_everywhere_or_nowhere(hosts: int) -> None:
    """'Because multi-object operations are atomic, classification by deduction cannot yield
    conflicting reclassifications.' Whoever looks first, at whichever object, through whichever
    quorum."""
    for looks in ((A, B), (B, A)):
        for absent in (0, 5):
            cluster = Cluster(types=ledger_types())
            alice = cluster.client("alice")
            made = request(alice, sights(cluster), METHOD, transfer())
            place(cluster, alice, made.message, range(hosts))
            seen = []
            for name, silent in zip(looks, (absent, 5 - absent), strict=True):
                reader = cluster.client(f"reader of {name.hex()}")
                cluster.heal()
                cluster.mute(silent)
                seen += list(read(reader, name).balances)
            # A first look that finds it incomplete may return what is established: the operation
            # may still take place afterwards. Once it is seen, it is seen by all and everywhere.
            cluster.heal()
            first, second = (each != 0 for each in seen)
            last = read(alice, A, B).balances
            assert last in ((0, 0), (-1, 1))
            assert first <= second <= (last != (0, 0))
            assert hosts < SMALLEST.q or first


@pytest.mark.parametrize("seed", range(3))
def test_operations_are_strictly_serializable(seed: int) -> None:
    """'operations completed by correct clients are strictly serializable … Operations occur
    atomically, including those that span multiple objects' (4.3.8)."""
    cluster = Cluster(types=ledger_types(), seed=seed)
    writers = [cluster.client(name) for name in ("alice", "bob")]
    reader = cluster.client("carol")

    async def write(client: Client, names: tuple[ObjectId, ...]) -> None:
        for number_ in range(4):
            name = f"{client.name}{number_}"
            await client.qu.update(names, f"transfer.{len(names)}", Transfer(name), USER)

    async def look() -> list[Accounts]:
        return [
            (await reader.qu.query((A, B, C), "read.3", Read(), USER)).answer for _ in range(12)
        ]

    outcomes = [
        writers[0].start(write(writers[0], (A, B, C))),
        writers[1].start(write(writers[1], (C, A))),
        reader.start(look()),
    ]
    cluster.run(lambda: all(outcome.done for outcome in outcomes), within_us=60_000_000)
    for outcome in outcomes:
        outcome.value()
    seen = outcomes[-1].value()
    before: set[str] = set()
    for accounts in (*seen, read(reader, A, B, C)):
        assert sum(accounts.balances) == 0
        entries = [set(each) for each in accounts.entries]
        assert all(entry.endswith("x1") for each in entries for entry in each)
        assert entries[0] == entries[2] >= entries[1] >= {e for e in entries[0] if e[0] == "a"}
        assert before <= entries[0]
        before = entries[0]
    assert len(before) == 8
