"""Reading the past of an object: what servers tell of it, and what a client believes."""

from __future__ import annotations

import errno
import stat
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused, FileSystemError, PastUnknown
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.directory import Creation, Listing, Name
from bftfs.filesystem.inode import ExtendedName, ExtendedSetting
from bftfs.filesystem.registry import file_system_types
from bftfs.filesystem.volume import Format
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update import past_state
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    client_of,
    logical_timestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    Looked,
    PastQuery,
    PastReply,
    PastVersion,
    QueryReply,
    Update,
    UpdateReply,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.replica import Version
from bftfs.server.step import Ready, Sender
from bftfs.simulation.world import START_US
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode
from tests.builders import USER
from tests.unit.query_update import adversaries
from tests.unit.query_update.harness import SMALLEST, Client, Cluster, counter_id
from tests.unit.query_update.ledger import Accounts, Read, Transfer, ledger_types

A, B = counter_id(0), counter_id(1)
EVERYONE = tuple(range(SMALLEST.n))
SECOND_US = 1_000_000


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client("alice")


def pass_time(cluster: Cluster, duration_us: int) -> None:
    """Let so much time pass, with what happens in it."""
    passed: list[bool] = []
    cluster.after(duration_us, lambda: passed.append(True))
    cluster.run(lambda: bool(passed), within_us=duration_us)


def increment(client: Client, *, by: int = 1) -> int:
    """Count, a second later than before; the version's time."""
    pass_time(client.cluster, SECOND_US)
    answered = client.run(client.qu.update((A,), "counter.increment", Increment(by), USER))
    return time_of(answered.timestamp)


def value_at(client: Client, at_us: int) -> int:
    reader = PastReader(client.qu)
    answered = client.run(reader.query(A, "counter.fetch", Fetch(), USER, at_us=at_us))
    assert time_of(answered.timestamp) <= at_us
    return int(answered.answer.value)


def assert_past_is(client: Client, times: list[int]) -> None:
    """After the first increment the counter was 1, after the second 2 …, and 0 before."""
    assert value_at(client, times[0] - 1) == 0
    for count, time in enumerate(times, 1):
        assert value_at(client, time) == count
        if count < len(times):
            assert value_at(client, times[count] - 1) == count
    assert value_at(client, times[-1] + limits.SECOND_US // 2) == len(times)


def test_the_state_at_a_time_is_the_newest_version_then(alice: Client) -> None:
    assert_past_is(alice, [increment(alice) for _ in range(8)])


def test_an_answer_takes_one_round_of_a_quorum(cluster: Cluster, alice: Client) -> None:
    times = [increment(alice) for _ in range(3)]
    cluster.settle()
    cluster.sent.clear()
    value_at(alice, times[0])
    requests = [message for _, _, message in cluster.sent if isinstance(message, PastQuery)]
    assert len(requests) == SMALLEST.q


def test_a_client_that_never_saw_the_object_reads_its_past(cluster: Cluster, alice: Client) -> None:
    times = [increment(alice) for _ in range(4)]
    assert_past_is(cluster.client("bob"), times)


def test_with_a_silent_node(cluster: Cluster, alice: Client) -> None:
    times = [increment(alice) for _ in range(4)]
    cluster.mute(2)
    assert_past_is(alice, times)


def out_of_reach(client: Client) -> None:
    """Every node has been silent to `client` again and again: only a probe shows it is there."""
    for interval_s in (1, 2, 4, 8, 16, 30):
        for node in EVERYONE:
            client.qu.peers.silent(NodeId(node), client.now_us())
        pass_time(client.cluster, interval_s * SECOND_US)
    for node in EVERYONE:
        client.qu.peers.silent(NodeId(node), client.now_us())
        client.qu.peers.answered(NodeId(node))


@pytest.mark.parametrize("past", [False, True])
def test_those_that_a_repair_has_asked_are_asked_again(past: bool) -> None:
    """A server is behind. The repair is of two objects and has another quorum than the query.

    No server is expected to answer at once. So the query asks no other one when it has a quorum.
    """
    cluster = Cluster(types=ledger_types())
    alice, bob = cluster.client("alice"), cluster.client("bob")
    first, second = counter_id(0, placement=1), counter_id(1, placement=2)
    cluster.block(client="alice", nodes=(1,))
    transfer = Transfer("once")
    made = alice.run(alice.qu.update((first, second), "transfer.2", transfer, USER))
    cluster.heal()
    has = [history != b"" for history in cluster.histories(first)]
    assert has == [node != 1 for node in EVERYONE]
    out_of_reach(bob)
    began_us = cluster.now_us
    if past:
        at_us = time_of(made.timestamp)
        reading = PastReader(bob.qu).query(first, "read.1", Read(), USER, at_us=at_us)
    else:
        reading = bob.qu.query((first,), "read.1", Read(), USER)
    assert bob.run(reading).answer.balances == (-1,)
    assert cluster.now_us - began_us < SECOND_US


# --- lying nodes ------------------------------------------------------------------------------


def rewriting(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    """Tells another past: other versions, other answers, other lists."""
    ready: Ready = step(view, sender, message, b"", now_us)
    reply = ready.reply
    if isinstance(reply, PastReply):
        ready.reply = msgspec.structs.replace(
            reply, version=ZERO, answer=b"\x91\x2a", looked=Looked.FOUND
        )
    elif isinstance(reply, VersionsReply):
        ready.reply = VersionsReply(True, 0, encode(()))
    return ready


def searching_for_ever(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    """Says each time that there is more to search."""
    ready: Ready = step(view, sender, message, b"", now_us)
    if isinstance(ready.reply, PastReply):
        ready.reply = msgspec.structs.replace(ready.reply, looked=Looked.FURTHER)
    return ready


@pytest.mark.parametrize("liar", EVERYONE)
@pytest.mark.parametrize("lie", [rewriting, searching_for_ever, adversaries.amnesiac()])
def test_a_liar_changes_nothing_in_the_past(
    cluster: Cluster, alice: Client, liar: int, lie: Any
) -> None:
    cluster.nodes[liar].behaviour = lie
    assert_past_is(alice, [increment(alice) for _ in range(3)])


@pytest.mark.parametrize("liar", EVERYONE)
def test_forged_candidates_do_not_hide_the_past(cluster: Cluster, alice: Client, liar: int) -> None:
    times = [increment(alice) for _ in range(3)]
    keys = cluster.nodes[liar].keys
    made = [0]

    def forged(history: bytes) -> bytes:
        made[0] += 1
        latest = parse_history(history).latest_object.timestamp
        timestamp = logical_timestamp(
            time_us=time_of(latest) + made[0],
            barrier=False,
            client=alice.sender.client,
            digest=made[0].to_bytes(32, "big"),
        )
        return (history or b"\1") + Candidate(timestamp, latest).encoded

    def behave(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, PastReply | QueryReply):
            ready.reply = adversaries.replace_histories(ready.reply, keys, [A], forged)
        return ready

    cluster.nodes[liar].behaviour = behave
    assert value_at(alice, times[-1] + SECOND_US // 2) == 3
    assert value_at(alice, times[0]) == 1


def test_more_liars_than_b_change_the_past(cluster: Cluster, alice: Client) -> None:
    """Must fail: the evidence that is asked for is no more than what is needed."""
    times = [increment(alice) for _ in range(3)]
    liars = (0, 1)
    for liar in liars:
        cluster.nodes[liar].behaviour = rewriting
    # They answer before the others.
    cluster.route = lambda source, target, _: 50 if {source[1], target[1]} & set(liars) else 450
    assert value_at(alice, times[1]) != 2


# --- what is not established ------------------------------------------------------------------


def accepted_by(cluster: Cluster, client: Client, *nodes: int) -> Any:
    """An update that reaches these nodes only."""
    before = cluster.route

    def route(source: Any, target: Any, message: Any) -> int | None:
        if isinstance(message, Update) and source[1] == client.name and target[1] not in nodes:
            return None
        if isinstance(message, UpdateReply) and target[1] == client.name:
            return None
        return before(source, target, message)

    cluster.route = route
    outcome = client.start(client.qu.update((A,), "counter.increment", Increment(100), USER))
    pass_time(cluster, 2_000)
    cluster.running.clear()
    cluster.route = before
    return outcome


@pytest.mark.parametrize("hosts", [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
def test_what_was_read_of_the_past_stays(hosts: tuple[int, ...]) -> None:
    """An update that was begun and not finished is decided before it is read past."""
    cluster = Cluster()
    alice, mallory, bob = (cluster.client(name) for name in ("alice", "mallory", "bob"))
    times = [increment(alice) for _ in range(2)]
    pass_time(cluster, SECOND_US)
    begun_us = START_US + cluster.now_us
    accepted_by(cluster, mallory, *hosts)
    at_us = begun_us + SECOND_US // 2
    pass_time(cluster, 2 * limits.CLOCK_SKEW_US)
    cluster.block(client="mallory", nodes=EVERYONE)
    first = value_at(bob, at_us)
    assert first in (2, 102)
    cluster.heal()
    increment(alice, by=1000)
    for reader in (alice, bob, cluster.client("carol")):
        assert value_at(reader, at_us) == first
        assert value_at(reader, times[0]) == 1


def test_nobody_makes_versions_of_yesterday(cluster: Cluster, alice: Client) -> None:
    """A version's time is not behind the servers' clocks, or the past would change."""
    increment(alice)
    pass_time(cluster, 3 * limits.CLOCK_SKEW_US)
    alice.skew_us = -2 * limits.CLOCK_SKEW_US
    with pytest.raises(AdmissionRefused, match="clock"):
        alice.run(alice.qu.update((A,), "counter.increment", Increment(), USER))
    alice.skew_us = 0
    increment(alice)


def test_a_late_repetition_is_answered_as_the_first_time(cluster: Cluster, alice: Client) -> None:
    """A reply that was lost for longer than the skew: the operation is not made twice."""
    increment(alice)
    lost = [True]
    before = cluster.route

    def route(source: Any, target: Any, message: Any) -> int | None:
        if lost[0] and isinstance(message, UpdateReply):
            return None
        return before(source, target, message)

    cluster.route = route
    outcome = alice.start(alice.qu.update((A,), "counter.increment", Increment(), USER))
    pass_time(cluster, 10_000)
    pass_time(cluster, 2 * limits.CLOCK_SKEW_US)
    lost[0] = False
    cluster.run(lambda: outcome.done, within_us=60 * SECOND_US)
    assert outcome.value().answer.value == 2


# --- gaps, and versions left behind -----------------------------------------------------------


def test_a_synced_server_says_nothing_of_what_it_skipped(
    cluster: Cluster, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_LINKS", 2)
    times = [increment(alice) for _ in range(2)]
    cluster.settle()
    before = cluster.route
    cluster.mute(0)
    times += [increment(alice) for _ in range(6)]
    cluster.route = before
    cluster.mute(5)
    alice.qu.peers.answered(cluster.nodes[0].number)
    times += [increment(alice) for _ in range(2)]
    cluster.settle()
    replica = cluster.nodes[0].replica(A)
    assert replica.row.floor != ZERO, "object sync has brought the state alone"
    looked = {past_state.newest_at(replica, time, b"")[0] for time in times[2:7]}
    assert looked == {Looked.UNKNOWN}
    assert past_state.newest_at(replica, times[0] - 1, b"")[0] is Looked.FOUND
    assert past_state.newest_at(replica, times[-1], b"")[0] is Looked.FOUND
    assert_past_is(alice, times)


def test_when_too_few_remember_that_is_said(cluster: Cluster, alice: Client) -> None:
    times = [increment(alice) for _ in range(3)]
    cluster.settle()
    for node in cluster.nodes:
        replica = node.replica(A)
        version = replica.version(replica.head)
        if version is None:
            continue  # it was not in the quorum
        row = msgspec.structs.replace(replica.row, floor=replica.head)
        gap = msgspec.structs.replace(version, gap=True)
        node.storage.apply(
            [
                Write(Table.VERSION, A + replica.head, encode(gap)),
                Write(Table.OBJECT, A, encode(row)),
            ]
        )
    with pytest.raises(PastUnknown):
        value_at(alice, times[1])


def test_a_search_is_bounded_and_goes_on(
    cluster: Cluster, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions that were accepted and left behind do not hide what is below them."""
    monkeypatch.setattr(limits, "PAST_SEARCHED", 3)
    times = [increment(alice) for _ in range(2)]
    cluster.settle()
    for node in cluster.nodes:
        replica = node.replica(A)
        head = replica.head
        for number in range(10):
            dead = LogicalTimestamp(
                (times[0] + 10 + number).to_bytes(8, "big") + head[8:-1] + bytes((number,))
            )
            node.storage.apply(
                [Write(Table.VERSION, A + dead, encode(Version(0, head, (), False, ())))]
            )
    looked, cursor = past_state.newest_at(cluster.nodes[0].replica(A), times[1] - 1, b"")
    assert looked is Looked.FURTHER
    assert time_of(cursor) < times[1] - 1
    assert_past_is(alice, times)


# --- lists of versions ------------------------------------------------------------------------


def all_versions(client: Client, *, most: int = 3) -> list[PastVersion]:
    async def collect() -> list[PastVersion]:
        reader = PastReader(client.qu)
        at = await reader.latest(A, USER)
        found: list[PastVersion] = []
        while at != ZERO:
            page = await reader.versions(
                A, newest=at, most=most, prefixes=(b"v",), credentials=USER
            )
            found += page
            at = page[-1].parent
        return found

    versions: list[PastVersion] = client.run(collect())
    return versions


@pytest.mark.parametrize("liar", [None, *EVERYONE])
def test_the_list_of_versions_is_what_happened(
    cluster: Cluster, alice: Client, liar: int | None
) -> None:
    bob = cluster.client("bob")
    if liar is not None:
        cluster.nodes[liar].behaviour = rewriting
    times = [increment(client) for client in (alice, bob, alice, bob, alice, alice, bob)]
    found = all_versions(cluster.client("carol"))
    assert [time_of(version.timestamp) for version in found] == times[::-1]
    authors = [client_of(version.timestamp) for version in reversed(found)]
    assert authors[:2] == [alice.sender.client, bob.sender.client]
    for count, version in enumerate(reversed(found), 1):
        assert version.operation is not None
        assert version.operation.method == "counter.increment"
        assert version.changes == ((b"value", count.to_bytes(8, "big")),)


# --- several objects --------------------------------------------------------------------------


def test_objects_read_at_one_time_show_one_state() -> None:
    """An operation on several objects is at a time at all of them, or at none."""
    cluster = Cluster(types=ledger_types())
    alice, bob = cluster.client("alice"), cluster.client("bob")
    times = []
    for number in range(12):
        pass_time(cluster, SECOND_US)
        client = alice if number % 2 else bob
        transfer = Transfer(f"t{number}", number + 1)
        made = client.run(client.qu.update((A, B), "transfer.2", transfer, USER))
        times.append(time_of(made.timestamp))
    carol = cluster.client("carol")
    reader = PastReader(carol.qu)

    def balance(name: Any, at_us: int) -> int:
        answered = carol.run(reader.query(name, "read.1", Read(), USER, at_us=at_us))
        accounts: Accounts = answered.answer
        return accounts.balances[0]

    for count, time in enumerate(times):
        for at_us, done in ((time - 1, count), (time, count + 1)):
            moved = done * (done + 1) // 2
            assert (balance(A, at_us), balance(B, at_us)) == (-moved, moved)


def test_nodes_do_not_ask_as_clients_do(cluster: Cluster, alice: Client) -> None:
    increment(alice)
    node = cluster.nodes[0]
    request = PastQuery(A, START_US, b"", "counter.fetch", b"\x90", 1, 1, (), node.number)
    refused = node.server.step(node.storage, cluster.nodes[1].sender, request, b"", node.now_us())
    assert isinstance(refused.reply, Refused)


# --- what is forbidden now --------------------------------------------------------------------


def file_system(cluster: Cluster) -> tuple[Client, ObjectId]:
    """A client, and the root directory of a file system in which there is a file."""
    root = object_id(ObjectKind.DIRECTORY, placement=0, unique=b"root".ljust(14))
    volume = object_id(ObjectKind.VOLUME, placement=0, unique=b"volume".ljust(14))
    file = object_id(ObjectKind.INODE, placement=0, unique=b"file".ljust(14))
    client = cluster.client("alice")
    form = Format(limits.BLOCK_BYTES_DEFAULT, 0o755)
    client.run(client.qu.update((volume, root), registry.FORMAT, form, SUPERUSER))
    creation = Creation(b"file", stat.S_IFREG | 0o644, 0, 0, b"", limits.BLOCK_BYTES_DEFAULT)
    client.run(client.qu.update((root, file), registry.CREATE, creation, SUPERUSER))
    note = ExtendedSetting(b"user.note", b"was", 0)
    client.run(client.qu.update((root,), registry.SET_EXTENDED, note, SUPERUSER))
    return client, root


SUPERUSER = Credentials(0, 0)
ASKED: list[tuple[str, Any]] = [
    (registry.LOOKUP, Name(b"file")),
    (registry.READ_DIRECTORY, Listing(0, 4096)),
    (registry.GET_EXTENDED, ExtendedName(b"user.note")),
]


@pytest.mark.parametrize(("method", "arguments"), ASKED)
@pytest.mark.parametrize("is_checked", [True, False])
def test_what_is_forbidden_now_is_not_told_of_the_past(
    method: str, arguments: Any, is_checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever program asks. Must fail: without the check of now, it is told."""
    cluster = Cluster(types=file_system_types())
    if not is_checked:
        for each in ASKED:
            known = cluster.types.method(each[0])
            assert known is not None
            monkeypatch.setitem(cluster.types._methods, each[0], replace(known, permit=None))
    client, root = file_system(cluster)
    pass_time(cluster, SECOND_US)
    at_us = time_of(client.run(PastReader(client.qu).latest(root, SUPERUSER)))
    pass_time(cluster, SECOND_US)
    reader = PastReader(client.qu)

    def ask(who: Credentials) -> Any:
        return client.run(reader.query(root, method, arguments, who, at_us=at_us)).answer

    assert ask(USER) == ask(SUPERUSER)
    change = Changes(mode=0o700)
    client.run(client.qu.update((root,), registry.CHANGE_ATTRIBUTES, change, SUPERUSER))
    assert ask(SUPERUSER)
    if not is_checked:
        assert ask(USER)
        return
    with pytest.raises(FileSystemError) as refused:
        ask(USER)
    assert refused.value.code == errno.EACCES


def test_a_server_behind_does_not_say_who_may_list() -> None:
    """It knows nothing of the object: neither of its versions, nor that it is not there."""
    client, root = file_system(Cluster(types=file_system_types()))
    newest = client.run(PastReader(client.qu).latest(root, SUPERUSER))
    behind = Cluster(types=file_system_types()).nodes[0]
    request = VersionsRequest(root, newest, 0, 0, (), 1, (), behind.number)
    ready = behind.server.step(behind.storage, client.sender, request, b"", behind.now_us())
    assert ready.reply == VersionsReply(False)
