"""A node that lacks something gets it back, and says nothing false until it has."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from operator import lt
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.lives import Lives
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.conversation import Delivery
from bftfs.errors import FileSystemError
from bftfs.filesystem import object_types
from bftfs.identifiers import ClientId, NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    history_of,
    logical_timestamp,
)
from bftfs.query_update.messages import (
    Catalogued,
    CatalogueReply,
    HistoryReply,
    Status,
    UpdateReply,
)
from bftfs.query_update.replica import Replica, link_of, rows_of
from bftfs.read_write.messages import (
    FragmentsReply,
    FragmentsRequest,
    HostedPart,
    InventoryReply,
    InventoryRequest,
    ReadReply,
    ReadRequest,
)
from bftfs.read_write.timestamp import VERSIONS_END, version_key
from bftfs.read_write.version_row import checksum_of
from bftfs.server import block_healing
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.object_rebuilding import Past, has_beside
from bftfs.server.recovery import OBJECTS
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.network import Kind
from bftfs.storage import Table, Write
from tests.unit.server.verifying import SECOND_US, USER, Client, Cluster, block

EVERYONE = list(range(6))


def counter(number: int) -> ObjectId:
    return object_id(ObjectKind.COUNTER, placement=number, unique=b"%14d" % number)


class Counting:
    """A client of counters."""

    def __init__(self, cluster: Cluster, name: str = "alice") -> None:
        self.client = cluster.client(name)
        self.objects = QueryUpdateClient(
            self.client.host.client,
            Peers(ThresholdQuorums(cluster.sizes.query_update)),
            object_types(),
        )

    def increment(self, number: int, *, by: int = 1) -> int:
        answered = self.client.do(
            self.objects.update((counter(number),), "counter.increment", Increment(by), USER)
        )
        return int(answered.answer.value)

    def fetch(self, number: int) -> int:
        answered = self.client.do(
            self.objects.query((counter(number),), "counter.fetch", Fetch(), USER)
        )
        return int(answered.answer.value)


def fragments(cluster: Cluster, node: int) -> dict[bytes, bytes]:
    disk = cluster.nodes[node].disk
    return dict(disk.scan(Table.FRAGMENT, b"", VERSIONS_END))


def written(client: Client, count: int) -> dict[int, bytes]:
    items = {number: b"item %d" % number for number in range(count)}
    for number, item in items.items():
        client.write(block(number), item)
    return items


# --- blocks ----------------------------------------------------------------------------------


def test_a_lost_store_is_rebuilt_fragment_by_fragment() -> None:
    cluster = Cluster()
    client = cluster.client()
    written(client, 40)
    client.write(block(0), b"a later version: the earlier one is history, and kept as well")
    cluster.run_for(5 * SECOND_US)
    before = fragments(cluster, 2)
    assert len(before) == 41
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    assert fragments(cluster, 2) == before
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


def test_what_a_node_missed_while_it_was_down_is_rebuilt() -> None:
    cluster = Cluster()
    client = cluster.client()
    cluster.nodes[1].crash(down_us=None)
    items = written(client, 20)
    cluster.nodes[1].start()
    cluster.run_for(3 * SECOND_US)
    assert len(fragments(cluster, 1)) == 20
    # It counts: with another node gone, every block can be read and is complete.
    cluster.nodes[4].crash(down_us=None)
    reader = cluster.client("reader")
    assert {number: reader.read(block(number)) for number in items} == items


def test_what_a_node_missed_while_cut_off_is_rebuilt() -> None:
    cluster = Cluster()
    client = cluster.client()
    cluster.run_for(3 * SECOND_US)
    cluster.network.partition({("node", NodeId(1)): 1})
    timestamp = client.write(block(0), b"item")
    cluster.run_for(SECOND_US // 2)
    cluster.network.heal()
    assert 1 not in cluster.hosting(block(0), timestamp)
    cluster.run_for(limits.HEAL_EVERY_US + 5 * SECOND_US)
    assert 1 in cluster.hosting(block(0), timestamp)


def test_scrubbing_finds_what_the_disk_has_damaged() -> None:
    cluster = Cluster()
    client = cluster.client()
    cluster.run_for(SECOND_US)
    stamps = [client.write(block(number), b"item %d" % number) for number in range(30)]
    cluster.run_for(5 * SECOND_US)
    before = fragments(cluster, 3)
    disk = cluster.nodes[3].disk
    disk.rot(Table.FRAGMENT, version_key(block(7), stamps[7]), 3)
    disk.rot(Table.BLOCK, version_key(block(8), stamps[8]), 40)
    disk.lose(Table.FRAGMENT, version_key(block(9), stamps[9]))
    disk.lose(Table.BLOCK, version_key(block(10), stamps[10]))
    assert fragments(cluster, 3) != before
    cluster.run_for(limits.HEAL_EVERY_US)  # a missing row is found without reading everything
    assert version_key(block(9), stamps[9]) in fragments(cluster, 3)
    assert cluster.row(3, block(10), stamps[10]) is not None
    assert fragments(cluster, 3) != before
    cluster.deployment.scrubbers[NodeId(3)].throttle.start()
    cluster.run_for(3 * SECOND_US)
    assert fragments(cluster, 3) == before
    assert all(
        checksum_of(cluster.row(3, block(number), stamp) or b"\0")
        == checksum_of(cluster.row(2, block(number), stamp) or b"")
        for number, stamp in enumerate(stamps)
    )


def test_a_walk_goes_on_where_a_crash_has_stopped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEYS_IN_INVENTORY", 16)
    cluster = Cluster()
    written(cluster.client(), 60)
    cluster.run_for(5 * SECOND_US)
    cluster.lose_store(2)
    cluster.run_until(lambda: cluster.nodes[2].disk.get(Table.META, b"heal blocks") is not None)
    assert 0 < len(fragments(cluster, 2)) < 60
    cluster.nodes[2].crash(down_us=1000)
    cluster.run_for(5 * SECOND_US)
    assert len(fragments(cluster, 2)) == 60


def test_a_crash_makes_a_walk_forget_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the node would say that it has all it ever had, and answer for what it lacks."""
    monkeypatch.setattr(limits, "KEYS_IN_INVENTORY", 16)
    cluster = Cluster()
    written(cluster.client(), 60)
    cluster.run_for(5 * SECOND_US)
    send, held_up = cluster.network.send, True

    def sends(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        asks = source == ("node", 2) and isinstance(message, FragmentsRequest)
        if not (held_up and asks and any(key.startswith(block(0)) for key in message.keys)):
            send(source, target, kind, number, message, body)

    cluster.network.send = sends  # type: ignore[method-assign]
    cluster.lose_store(2)
    cluster.run_until(lambda: len(fragments(cluster, 2)) > 30)
    cluster.nodes[2].crash(down_us=1000)
    cluster.run_for(3 * SECOND_US)
    assert 30 < len(fragments(cluster, 2)) < 60
    assert not any(key.startswith(block(0)) for key in fragments(cluster, 2))
    assert cluster.deployment.recoveries[NodeId(2)].rebuilding
    held_up = False
    cluster.run_for(2 * limits.HEAL_AGAIN_US)
    assert len(fragments(cluster, 2)) == 60
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


def rebuilt_by_short_lists(monkeypatch: pytest.MonkeyPatch) -> bool:
    """True if a version is rebuilt before which the list of one of its three hosts ends.

    That one hosts something else besides, so that it lists one version of the others less.
    """
    monkeypatch.setattr(limits, "KEYS_IN_INVENTORY", 4)
    cluster = Cluster(VerificationSettings(VerificationPolicy.READ_TIME))
    client = cluster.client()
    for number in (0, 1, 2):
        client.write(block(number), b"item")
    last = cluster.place(client, block(3), cluster.pieces(b"item"), range(4))
    client.write(block(4), b"item")
    cluster.place(client, block(0), cluster.pieces(b"planted"), [1])
    assert cluster.hosting(block(3), last) == [0, 1, 2, 3], "it is complete"
    cluster.lose_store(0)
    cluster.run_for(20 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(0)].rebuilding
    return 0 in cluster.hosting(block(3), last)


def test_lists_that_end_early_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rebuilt_by_short_lists(monkeypatch)


def rebuilt_beside_a_liar_that_lists_it(monkeypatch: pytest.MonkeyPatch, *, lost: int = 0) -> bool:
    """True if a complete version is rebuilt that QC - t list, of which fewer than m have fragments.

    One of these is the liar. The list of another host ends before the version, and a host is slow.
    The first `lost` replies of node 4 with fragments do not arrive.
    """
    monkeypatch.setattr(limits, "KEYS_IN_INVENTORY", 4)
    sizes = Sizes.smallest(t=2, b=1)
    cluster = Cluster(VerificationSettings(VerificationPolicy.READ_TIME), sizes=sizes)
    client = cluster.client()
    for number in (0, 1, 2):
        client.write(block(number), b"item")
    last = cluster.place(client, block(3), cluster.pieces(b"item"), range(6))
    client.write(block(4), b"item")
    cluster.place(client, block(0), cluster.pieces(b"planted"), [1])  # so 1 lists less of the rest
    key = version_key(block(3), last)
    assert len(cluster.hosting(block(3), last)) == sizes.read_write.QC
    send, ranges = cluster.network.send, [(b"", b"")]
    missing = list(range(lost))

    def lists_it(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if target == ("node", 8) and isinstance(message, InventoryRequest):
            ranges.append((message.after, message.until))
        if isinstance(message, FragmentsReply) and source == ("node", 4) and missing:
            missing.pop()
            return
        if isinstance(message, InventoryReply):
            after, until = ranges[-1]
            if source == ("node", 5):  # it is slow, or cut off
                return
            if source == ("node", 8) and after < key <= until:
                before = tuple(each for each in message.keys if each < key)
                message = msgspec.structs.replace(
                    message, keys=(*before, key), more=False, same=False
                )
        send(source, target, kind, number, message, body)

    cluster.network.send = lists_it  # type: ignore[method-assign]
    cluster.lose_store(0)
    cluster.run_for(20 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(0)].rebuilding
    return 0 in cluster.hosting(block(3), last)


def test_a_liar_that_lists_a_version_does_not_stand_for_a_host_whose_list_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rebuilt_beside_a_liar_that_lists_it(monkeypatch)


def test_a_host_that_does_not_answer_in_time_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rebuilt_beside_a_liar_that_lists_it(monkeypatch, lost=1)


def test_must_fail_where_more_hosts_may_be_silent_than_are_faulty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_healing.BlockHealer, "_spare", lambda *_: 1)
    assert not rebuilt_beside_a_liar_that_lists_it(monkeypatch, lost=1)


def rebuilt_beside_a_liar_that_sends_nothing() -> bool:
    """True if a lost store is rebuilt where an incomplete version is listed by QC - t nodes, one of
    which is a liar that answers no request for fragments."""
    cluster = Cluster(
        VerificationSettings(VerificationPolicy.READ_TIME), sizes=Sizes.smallest(t=2, b=1)
    )
    client = cluster.client()
    written(client, 5)
    cluster.place(client, block(3), cluster.pieces(b"of a crashed writer"), [1, 2, 3, 8])
    cluster.run_for(3 * SECOND_US)
    send = cluster.network.send

    def silent(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source != ("node", 8) or not isinstance(message, FragmentsReply):
            send(source, target, kind, number, message, body)

    cluster.network.send = silent  # type: ignore[method-assign]
    cluster.lose_store(0)
    cluster.run_for(30 * SECOND_US)
    return not cluster.deployment.recoveries[NodeId(0)].rebuilding


def test_a_liar_that_lists_a_version_and_sends_nothing_holds_nobody_up() -> None:
    assert rebuilt_beside_a_liar_that_sends_nothing()


def test_must_fail_where_every_host_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_healing.BlockHealer, "_spare", lambda *_: 0)
    assert not rebuilt_beside_a_liar_that_sends_nothing()


# --- batches that are lost ---------------------------------------------------------------------


def lacking_after_a_lost_batch(table: Table, which: int) -> int:
    """How much node 2 lacks when it has rebuilt its store and one batch was lost meanwhile.

    It is number `which` of those that write to `table`: the disk was full, or the store had to make
    room for it first.
    """
    cluster = Cluster()
    client, counting = cluster.client(), Counting(cluster, "bob")
    written(client, 40)
    for number in range(10):
        counting.increment(number)
    cluster.run_for(5 * SECOND_US)
    node, batches = cluster.nodes[2], iter(range(1 << 20))
    fragments_before = fragments(cluster, 2)

    def heads() -> list[LogicalTimestamp]:
        return [Replica(node.disk, counter(number)).history.latest for number in range(10)]

    heads_before = heads()

    def lose_one(_node: NodeId, writes: Sequence[Write]) -> None:
        if any(write.table is table for write in writes) and next(batches) == which:
            node.disk.crash()
            node.dispatcher.outbox.clear()
            node.dispatcher.lost += 1

    node._on_commit = lose_one
    cluster.lose_store(2)
    for _ in range(60):
        cluster.run_for(SECOND_US)
        if not cluster.deployment.recoveries[NodeId(2)].rebuilding:
            break
    else:
        raise AssertionError("it was never rebuilt")
    assert next(batches) > which, "the batch was lost"
    lacking = len(fragments_before) - len(fragments(cluster, 2))
    return lacking + sum(map(lt, heads(), heads_before))


LOST_BATCHES = [(Table.FRAGMENT, 0), (Table.FRAGMENT, 1), (Table.OBJECT, 0), (Table.OBJECT, 3)]


@pytest.mark.parametrize(("table", "which"), LOST_BATCHES)
def test_what_a_lost_batch_had_counts_as_lacking(table: Table, which: int) -> None:
    assert lacking_after_a_lost_batch(table, which) == 0


def nobody_counts_lost_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatcher, "lost", property(lambda _: 0, lambda *_: None), raising=False)


def is_brought_again_after_a_lost_batch() -> bool:
    """True if a node that was down soon has what it missed, though its first attempt was lost."""
    cluster = Cluster()
    counting, node = Counting(cluster), cluster.nodes[2]
    cluster.run_for(3 * SECOND_US)
    counting.increment(0)
    node.crash(down_us=None)
    counting.increment(0)
    lost = []

    def lose_one(_node: NodeId, writes: Sequence[Write]) -> None:
        if not lost and any(write.table is Table.OBJECT for write in writes):
            lost.append(writes)
            node.disk.crash()
            node.dispatcher.outbox.clear()
            node.dispatcher.lost += 1

    node._on_commit = lose_one
    node.start()
    cluster.run_until(lambda: bool(lost))
    cluster.run_for(SECOND_US)
    heads = {Replica(cluster.nodes[each].disk, counter(0)).head for each in (2, 3)}
    return len(heads) == 1


def test_what_a_lost_batch_had_is_brought_again_soon() -> None:
    assert is_brought_again_after_a_lost_batch()


def lacking_where_a_walk_did_not_begin_anew() -> int:
    """How many objects node 2 lacks when it has rebuilt what it lost while walks were under way.

    The batch is lost that has the walks begin at their first keys.
    """
    cluster = Cluster()
    counting, node = Counting(cluster), cluster.nodes[2]
    for number in range(10):
        counting.increment(number)
    cluster.run_for(5 * SECOND_US)
    recovery = cluster.deployment.recoveries[NodeId(2)]
    walk = Write(Table.META, b"heal objects", b"\1" + counter(5))
    for name in map(counter, range(5)):
        rows = [*rows_of(node.disk, name), (Table.OBJECT, name)]
        node.disk.apply([Write(table, key, None) for table, key in rows])
    node.disk.apply([walk])
    node.disk.commit()
    lost = []

    def lose_one(_node: NodeId, writes: Sequence[Write]) -> None:
        if not lost and Write(Table.META, walk.key, None) in writes:
            lost.append(writes)
            node.disk.crash()
            node.dispatcher.outbox.clear()
            node.dispatcher.lost += 1

    node._on_commit = lose_one
    recovery.forget(OBJECTS)
    cluster.run_until(lambda: not recovery.rebuilding)
    assert lost
    return sum(Replica(node.disk, counter(number)).history.latest == ZERO for number in range(10))


def test_walks_begin_anew_although_a_batch_was_lost() -> None:
    assert lacking_where_a_walk_did_not_begin_anew() == 0


def test_must_fail_where_a_life_begins_before_walks_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody_counts_lost_batches(monkeypatch)
    assert lacking_where_a_walk_did_not_begin_anew() == 5


def test_must_fail_where_what_was_taken_over_counts_as_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody_counts_lost_batches(monkeypatch)
    assert not is_brought_again_after_a_lost_batch()


def test_must_fail_where_what_was_written_counts_as_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody_counts_lost_batches(monkeypatch)
    assert lacking_after_a_lost_batch(Table.FRAGMENT, 0)
    assert lacking_after_a_lost_batch(Table.OBJECT, 0)


def test_must_fail_where_only_those_that_list_a_version_are_asked_for_fragments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gather = block_healing.gather

    async def of_listing(session: Any, hosts: Any, me: NodeId) -> Any:
        least = session.thresholds.repairable
        return await gather(session, {key: nodes[:least] for key, nodes in hosts.items()}, me)

    monkeypatch.setattr(block_healing, "gather", of_listing)
    assert not rebuilt_beside_a_liar_that_lists_it(monkeypatch)


def test_must_fail_where_lists_that_end_early_deny_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_healing, "_before", lambda key: key)
    assert not rebuilt_by_short_lists(monkeypatch)


class _Rewriting:
    """Passes what one node answers to requests for fragments through `rewrite`."""

    def __init__(
        self,
        cluster: Cluster,
        node: int,
        rewrite: Callable[[FragmentsReply, bytes], tuple[Any, bytes]],
    ) -> None:
        self._send = cluster.network.send
        self._node, self._rewrite = node, rewrite
        cluster.network.send = self.send  # type: ignore[method-assign]
        self.rewritten = 0

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", self._node) and isinstance(message, FragmentsReply):
            self.rewritten += 1
            message, body = self._rewrite(message, bytes(body))
        self._send(source, target, kind, number, message, body)


def _flipped(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return reply, bytes(byte ^ 1 for byte in body)


def _other_checksums(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply(
        tuple(
            HostedPart(CrossChecksum(part.cross_checksum[::-1]), part.size) for part in reply.parts
        )
    ), body


def _swapped(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply(reply.parts[::-1]), body


def _sizes_beyond_the_body(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply(
        tuple(HostedPart(part.cross_checksum, limits.FRAME_BODY_BYTES) for part in reply.parts)
    ), body


def _more_than_asked_for(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply((reply.parts * 64)[: limits.FRAGMENTS_IN_REPLY]), body * 2


def _nothing(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply(tuple(HostedPart(CrossChecksum(b""), 0) for _ in reply.parts)), b""


def _another_message(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return InventoryReply((), more=False), body


def rebuilt_beside(
    rewrite: Callable[[FragmentsReply, bytes], tuple[Any, bytes]], *, blocks: int, within_us: int
) -> Cluster:
    """Node 2 loses its store and gets all of it back, beside a liar that rewrites its replies."""
    cluster = Cluster()
    written(cluster.client(), blocks)
    cluster.run_for(5 * SECOND_US)
    before = fragments(cluster, 2)
    liar = _Rewriting(cluster, 5, rewrite)
    cluster.lose_store(2)
    cluster.run_for(within_us)
    assert liar.rewritten
    assert fragments(cluster, 2) == before
    return cluster


@pytest.mark.parametrize(
    "rewrite",
    [
        _flipped,
        _other_checksums,
        _swapped,
        _sizes_beyond_the_body,
        _more_than_asked_for,
        _nothing,
        _another_message,
    ],
)
def test_a_liar_among_those_that_send_fragments_is_replaced(
    rewrite: Callable[[FragmentsReply, bytes], tuple[Any, bytes]],
) -> None:
    cluster = rebuilt_beside(rewrite, blocks=30, within_us=5 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding
    lying = rewrite is not _nothing
    assert (sum(cluster.deployment.healers[NodeId(2)][1]._session.peers.faults) > 0) == lying


def test_replies_that_hold_few_fragments_bring_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reply has a part of those that are asked for, and another part at each node."""
    monkeypatch.setattr(limits, "FRAGMENTS_BYTES", 12)
    cluster = Cluster()
    written(cluster.client(), 40)
    cluster.run_for(5 * SECOND_US)
    before = fragments(cluster, 2)
    monkeypatch.setattr(block_healing.BlockHealer, "_at_once", lambda *_, **__: 16)
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    assert fragments(cluster, 2) == before
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


def _first_part(reply: FragmentsReply, body: bytes) -> tuple[Any, bytes]:
    return FragmentsReply(reply.parts[:1]), body[: reply.parts[0].size]


def _nothing_padded(_reply: FragmentsReply, _body: bytes) -> tuple[Any, bytes]:
    padded = HostedPart(CrossChecksum(b""), limits.FRAGMENTS_BYTES)
    return FragmentsReply((padded,)), bytes(limits.FRAGMENTS_BYTES)


def _first_part_padded(reply: FragmentsReply, _body: bytes) -> tuple[Any, bytes]:
    padded = HostedPart(reply.parts[0].cross_checksum, limits.FRAGMENTS_BYTES)
    return FragmentsReply((padded,)), bytes(limits.FRAGMENTS_BYTES)


def requests_beside(rewrite: Callable[[FragmentsReply, bytes], tuple[Any, bytes]]) -> int:
    """How many requests rebuild a store if a liar's replies are rewritten so."""
    cluster = rebuilt_beside(rewrite, blocks=60, within_us=10 * SECOND_US)
    return cluster.network.between_nodes[FragmentsRequest]


@pytest.mark.parametrize("rewrite", [_first_part, _first_part_padded, _nothing_padded])
def test_a_liar_that_sends_one_fragment_at_a_time_wins_no_time(
    rewrite: Callable[[FragmentsReply, bytes], tuple[Any, bytes]],
) -> None:
    """Others were asked for all of the chunk again and again, for one version each time."""
    assert requests_beside(rewrite) <= 20


def test_must_fail_where_whatever_is_left_out_is_asked_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = block_healing._taken

    def believing(peers: Any, versions: Any, keys: Any, delivery: Delivery, now_us: int) -> Any:
        taken(peers, versions, keys, delivery, now_us)
        return keys[len(delivery.message.parts) :]

    monkeypatch.setattr(block_healing, "_taken", believing)
    monkeypatch.setattr(block_healing, "note_verdict", lambda *_: None)
    assert requests_beside(_first_part) > 100


def test_where_many_fragments_take_too_long_fewer_are_asked_for() -> None:
    cluster = Cluster()
    written(cluster.client(), 60)
    cluster.run_for(5 * SECOND_US)
    before = fragments(cluster, 2)
    send = cluster.network.send

    def loses_long_replies(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if not isinstance(message, FragmentsReply) or len(message.parts) <= limits.HEAL_AT_ONCE:
            send(source, target, kind, number, message, body)

    cluster.network.send = loses_long_replies  # type: ignore[method-assign]
    cluster.lose_store(2)
    cluster.run_for(120 * SECOND_US)
    assert fragments(cluster, 2) == before
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


def test_fragments_come_many_at_a_time_and_few_while_clients_are_busy() -> None:
    def asked(*, busy: bool) -> int:
        cluster = Cluster()
        client = cluster.client()
        written(client, 60)
        cluster.run_for(5 * SECOND_US)
        cluster.lose_store(2)
        while busy and cluster.deployment.recoveries[NodeId(2)].rebuilding:
            client.read(block(0))
            cluster.run_for(1_000)
        cluster.run_for(10 * SECOND_US)
        assert len(fragments(cluster, 2)) == 60
        return cluster.network.between_nodes[FragmentsRequest]

    assert asked(busy=False) <= 10  # a first chunk, and the others in one
    assert asked(busy=True) >= 30


def test_a_poisonous_version_holds_nobody_up() -> None:
    cluster = Cluster(VerificationSettings(VerificationPolicy.READ_TIME))
    client = cluster.client()
    cluster.place(client, block(0), cluster.poisoned(b"bad"), range(6))
    good = client.write(block(1), b"good")
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    assert 2 in cluster.hosting(block(1), good)
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


def test_a_rebuilding_node_does_not_deny_what_it_hosted() -> None:
    cluster = Cluster()
    client = cluster.client()
    client.write(block(0), b"item")
    cluster.lose_store(2)
    recovery = cluster.deployment.recoveries[NodeId(2)]
    cluster.run_until(lambda: recovery.awaits is None)
    for node in (3, 4):  # then nobody can tell it all
        cluster.nodes[node].crash(down_us=None)
    cluster.run_for(3 * SECOND_US)
    ready = (
        cluster.nodes[2]
        .dispatcher._servers[ReadRequest]
        .step(
            cluster.nodes[2].disk,
            cluster.deployment._senders[client.host.endpoint],
            ReadRequest(block(0), None, True, 0),
            b"",
            cluster.now_us,
        )
    )
    assert isinstance(ready.reply, Refused)
    assert ready.reply.code == errno.ENODATA
    for node in (3, 4):
        cluster.nodes[node].start()
    cluster.run_for(limits.HEAL_AGAIN_US + 3 * SECOND_US)
    ready = (
        cluster.nodes[2]
        .dispatcher._servers[ReadRequest]
        .step(
            cluster.nodes[2].disk,
            cluster.deployment._senders[client.host.endpoint],
            ReadRequest(block(0), None, True, 0),
            b"",
            cluster.now_us,
        )
    )
    assert isinstance(ready.reply, ReadReply)
    assert len(ready.reply.versions) == 1


class _Inventing:
    """Answers every inventory with a version that nobody has written, one at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self._send = cluster.network.send
        cluster.network.send = self.send  # type: ignore[method-assign]
        self.invented = 0

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", 5) and isinstance(message, InventoryReply):
            self.invented += 1
            message = InventoryReply((b"\x01" * 88,), more=True, life=message.life)
        self._send(source, target, kind, number, message, body)


def test_b_liars_neither_invent_versions_nor_hold_the_walk_up() -> None:
    cluster = Cluster()
    liar = _Inventing(cluster)
    written(cluster.client(), 30)
    cluster.lose_store(2)
    cluster.run_for(5 * SECOND_US)
    assert liar.invented
    assert len(fragments(cluster, 2)) == 30


# --- objects ---------------------------------------------------------------------------------


def history(cluster: Cluster, node: int, number: int) -> bytes:
    return Replica(cluster.nodes[node].disk, counter(number)).row.history


def test_a_server_that_lost_its_store_gets_its_objects_back() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    for number in range(12):
        for _ in range(1 + number % 3):
            counting.increment(number)
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    for number in range(12):
        replica = Replica(cluster.nodes[2].disk, counter(number))
        other = Replica(cluster.nodes[(number + 3) % 6].disk, counter(number))
        if other.history.latest_object.timestamp == replica.head:
            state = list(replica.workspace.scan(b"", b"\xff" * 9))
            assert [value for _, value in state] == [
                value for _, value in other.workspace.scan(b"", b"\xff" * 9)
            ]
    assert sum(bool(history(cluster, 2, number)) for number in range(12)) == 12
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding


class _AheadOfAll:
    """Reports, of every object, a candidate that no other server has, later than all others."""

    def __init__(self, cluster: Cluster, liar: int) -> None:
        self._cluster = cluster
        self._send = cluster.network.send
        self._liar = liar
        cluster.network.send = self.send  # type: ignore[method-assign]
        self.lies = 0

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", self._liar):
            later = logical_timestamp(
                time_us=self._cluster.now_us,
                barrier=False,
                client=ClientId(b"?" * 16),
                digest=b"?" * 32,
            )
            if isinstance(message, HistoryReply):
                self.lies += 1
                forged = history_of((Candidate(later, ZERO),), initial=True)
                message = HistoryReply(forged, True, message.life, message.lives)
            if isinstance(message, CatalogueReply):
                objects = tuple(Catalogued(each.object, later) for each in message.objects)
                message = CatalogueReply(objects, message.more)
        self._send(source, target, kind, number, message, body)


def test_b_liars_do_not_keep_a_lost_store_from_being_rebuilt() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    for number in range(6):
        counting.increment(number)
    liar = _AheadOfAll(cluster, 5)
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    assert liar.lies
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding
    assert all(history(cluster, 2, number) for number in range(6))


def test_with_another_server_gone_a_rebuilt_one_makes_the_quorum() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    assert [counting.increment(0) for _ in range(5)] == [1, 2, 3, 4, 5]
    cluster.lose_store(2)
    cluster.run_for(10 * SECOND_US)
    cluster.nodes[0].crash(down_us=None)
    other = Counting(cluster, "bob")
    assert other.fetch(0) == 5
    assert [other.increment(0) for _ in range(3)] == [6, 7, 8]
    assert counting.increment(0) == 9


def test_an_object_that_is_asked_for_is_healed_at_once() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(2)  # server 2 is the first of its preferred quorum
    cluster.lose_store(2)
    assert Counting(cluster, "bob").fetch(2) == 1
    assert history(cluster, 2, 2)


def test_a_forgetful_server_refuses_what_a_method_refuses() -> None:
    """With another server gone it makes the quorum that a refusal takes; nobody would be told."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(2)
    cluster.lose_store(2)
    cluster.run_for(20 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(2)].rebuilding
    cluster.nodes[5].crash(down_us=None)
    with pytest.raises(FileSystemError) as refused:
        counting.increment(2, by=(1 << 63) - 1)
    assert refused.value.code == errno.EOVERFLOW
    assert counting.fetch(2) == 1


def forgotten_and_established(cluster: Cluster, *, before: int) -> tuple[int, int]:
    """What Alice's update answers that server 2 has accepted and forgotten, and Bob reads then.

    There have been so many updates `before`. It has reached servers 2 and 3 when 2 loses its store;
    server 1 accepts it later, and server 0, to which it never comes, is asked by Bob instead of 3.
    """
    alice, bob = Counting(cluster), Counting(cluster, "bob")
    for _ in range(before):
        alice.increment(2)
    bob.fetch(2)
    accepted: list[Any] = []
    reachable = {("node", NodeId(2)), ("node", NodeId(3))}
    send = cluster.network.send

    def some(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == alice.client.host.endpoint and target not in reachable:
            return
        if source == bob.client.host.endpoint and target == ("node", NodeId(3)):
            return
        if isinstance(message, UpdateReply) and message.status is Status.SUCCESS:
            accepted.append(source)
        send(source, target, kind, number, message, body)

    cluster.network.send = some  # type: ignore[method-assign]
    answers: list[Any] = []
    alice.client.host.start(
        alice.objects.update((counter(2),), "counter.increment", Increment(1), USER),
        lambda answered, error: answers.append(answered or error),
    )
    cluster.run_until(lambda: len(accepted) == 2)
    cluster.lose_store(2)
    cluster.run_for(SECOND_US)
    reachable.add(("node", NodeId(1)))
    cluster.run_until(lambda: bool(answers))
    return answers[0].answer.value, bob.fetch(2)


@pytest.mark.parametrize("before", [0, 1])
def test_what_is_established_with_a_forgotten_acceptance_is_read(before: int) -> None:
    found = forgotten_and_established(Cluster(sizes=Sizes.smallest(t=1, b=0)), before=before)
    assert found == (before + 1, before + 1)


def test_must_fail_clients_that_count_earlier_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the initial version nobody shows what could be culled."""
    monkeypatch.setattr(Lives, "agree", lambda *_: True)
    cluster = Cluster(sizes=Sizes.smallest(t=1, b=0))
    assert forgotten_and_established(cluster, before=0) == (1, 0)


@pytest.mark.parametrize("number", range(3))
def test_clients_work_while_a_store_is_rebuilt(number: int) -> None:
    cluster = Cluster(seed=number)
    counting, client = Counting(cluster), cluster.client("bob")
    for turn in range(20):
        if turn == 8:
            cluster.lose_store(number)
        assert counting.increment(turn % 4) == turn // 4 + 1
        client.write(block(turn % 4), b"%d" % turn)
        assert client.read(block(turn % 4)) == b"%d" % turn
    cluster.run_for(20 * SECOND_US)
    assert len(fragments(cluster, number)) == 20
    assert [counting.fetch(one) for one in range(4)] == [5] * 4


def test_what_is_ahead_of_its_clock_a_node_takes_from_those_that_cannot_all_lie() -> None:
    """Not from its author. [design §4]"""
    cluster = Cluster()
    client = cluster.client()
    cluster.nodes[1].skew_us = -SECOND_US
    client.host.skew_us = limits.CLOCK_SKEW_US - SECOND_US // 2
    cluster.run_for(SECOND_US)
    timestamp = client.write(block(0), b"item")
    cluster.run_for(SECOND_US // 10)
    assert cluster.hosting(block(0), timestamp) == [0, 2, 3, 4, 5]
    cluster.nodes[1].crash(down_us=1)
    cluster.run_for(SECOND_US // 5)
    assert 1 in cluster.hosting(block(0), timestamp)


def test_a_past_that_lacks_versions_which_are_here_is_told_apart() -> None:
    """[design §8] Peers that are short of room have collected what a node with room still has."""
    cluster = Cluster()
    counting = Counting(cluster)
    for _ in range(4):
        counting.increment(2)
    cluster.run_for(limits.HEAL_EVERY_US + SECOND_US)
    disk, name = cluster.nodes[2].disk, counter(2)
    replica = Replica(disk, name)
    links, at = [], replica.head
    while at != ZERO:
        version = replica.version(at)
        assert version is not None
        links.append(link_of(at, version))
        at = version.parent
    assert len(links) == 4
    assert not has_beside(disk, name, Past(tuple(links), ZERO, ()))
    assert not has_beside(disk, name, Past(tuple(links[:3]), links[3].timestamp, ()))
    assert has_beside(disk, name, Past(tuple(links[:2]), links[2].timestamp, ()))
