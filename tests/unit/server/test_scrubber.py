"""What a disk has damaged is found by reading and checking it, and healed from the peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bftfs import limits
from bftfs.crypto.digest import life_of
from bftfs.identifiers import NodeId
from bftfs.query_update.history import LogicalTimestamp
from bftfs.query_update.messages import AttestReply
from bftfs.query_update.replica import ObjectRow, Replica, stored_version
from bftfs.read_write.timestamp import version_key
from bftfs.server import scrubbing
from bftfs.server.scrubbing import HistoryScrubber, ScrubTally, VersionScrubber
from bftfs.simulation.disk import Disk
from bftfs.storage import Table, Write
from tests.unit.server.test_healing import Counting, counter, fragments
from tests.unit.server.verifying import SECOND_US, Cluster, block

NODE = 2
COUNTERS = 6
OBJECT_TABLES = (Table.OBJECT, Table.VERSION, Table.STATE, Table.PAST)
_END = b"\xff" * 400


@pytest.fixture
def cluster() -> Cluster:
    """Some counters at all servers, of which number 2 begins each preferred quorum of its own."""
    cluster = Cluster()
    counting = Counting(cluster)
    for _ in range(4):
        for number in range(COUNTERS):
            counting.increment(number)
    cluster.run_for(limits.HEAL_EVERY_US + SECOND_US)  # all servers have all of them
    return cluster


def rows(disk: Disk, *tables: Table) -> dict[tuple[Table, bytes], bytes]:
    return {
        (table, key): value
        for table in tables or OBJECT_TABLES
        for key, value in disk.scan(table, b"", _END)
    }


def keys(disk: Disk, table: Table, number: int = NODE) -> list[bytes]:
    return [key for key in disk.keys(table, b"", _END) if key.startswith(counter(number))]


def scrub(cluster: Cluster, node: int = NODE) -> ScrubTally:
    """Let a node scrub everything, and heal what it finds."""
    scrubber = cluster.deployment.scrubbers[NodeId(node)]
    scrubber.throttle.start()
    cluster.run_for(10 * SECOND_US)
    assert scrubber.tally.passes == 1
    return scrubber.tally


def rot_state(disk: Disk) -> None:
    disk.rot(Table.STATE, keys(disk, Table.STATE)[0], 9)


def rot_number(disk: Disk) -> None:
    disk.rot(Table.STATE, keys(disk, Table.STATE)[0], 7)


def lose_state(disk: Disk) -> None:
    disk.lose(Table.STATE, keys(disk, Table.STATE)[0])


def rot_past(disk: Disk) -> None:
    disk.rot(Table.PAST, keys(disk, Table.PAST)[1], 8)


def lose_past(disk: Disk) -> None:
    disk.lose(Table.PAST, keys(disk, Table.PAST)[0])


def rot_delta(disk: Disk) -> None:
    key = keys(disk, Table.VERSION)[1]
    stored = disk.get(Table.VERSION, key)
    assert stored is not None
    value = stored_version(stored).delta[0][1]
    assert value is not None
    disk.rot(Table.VERSION, key, stored.index(value))


def rot_answer(disk: Disk) -> None:
    key = keys(disk, Table.VERSION)[2]
    stored = disk.get(Table.VERSION, key)
    assert stored is not None
    disk.rot(Table.VERSION, key, stored.rindex(stored_version(stored).answer))


def rot_version(disk: Disk) -> None:
    disk.rot(Table.VERSION, keys(disk, Table.VERSION)[0], 0)


def lose_version(disk: Disk) -> None:
    disk.lose(Table.VERSION, keys(disk, Table.VERSION)[1])


def lose_head(disk: Disk) -> None:
    disk.lose(Table.VERSION, keys(disk, Table.VERSION)[-1])


WITH_ITS_HISTORY = [
    rot_state,
    rot_number,
    lose_state,
    rot_past,
    lose_past,
    rot_delta,
    rot_answer,
    rot_version,
    lose_version,
    lose_head,
]


def own(cluster: Cluster) -> ObjectRow:
    return Replica(cluster.nodes[NODE].disk, counter(NODE)).row


@pytest.mark.parametrize("damage", WITH_ITS_HISTORY)
def test_an_object_with_damaged_rows_is_made_anew(
    cluster: Cluster, damage: Callable[[Disk], None]
) -> None:
    disk = cluster.nodes[NODE].disk
    before = rows(disk)
    damage(disk)
    assert rows(disk) != before
    tally = scrub(cluster)
    assert rows(disk) == before
    assert tally.found_damaged >= 1
    assert tally.checked_bytes > 0
    assert not life_of(own(cluster).authenticator)  # it has forgotten nothing


def rot_history(disk: Disk) -> None:
    stored = disk.get(Table.OBJECT, counter(NODE))
    assert stored is not None
    replica = Replica(disk, counter(NODE))
    disk.rot(Table.OBJECT, counter(NODE), stored.index(replica.row.history) + 70)


def rot_authenticator(disk: Disk) -> None:
    stored = disk.get(Table.OBJECT, counter(NODE))
    assert stored is not None
    replica = Replica(disk, counter(NODE))
    disk.rot(Table.OBJECT, counter(NODE), stored.index(replica.row.authenticator) + 70)


def rot_row(disk: Disk) -> None:
    disk.rot(Table.OBJECT, counter(NODE), 0)


def lose_history(disk: Disk) -> None:
    disk.lose(Table.OBJECT, counter(NODE))


@pytest.mark.parametrize("damage", [rot_history, rot_authenticator, rot_row, lose_history])
def test_a_damaged_history_recovers_as_if_all_were_lost(
    cluster: Cluster, damage: Callable[[Disk], None]
) -> None:
    """[Q/U §4.3.3] What it has forgotten it must not contradict; the others tell what there is."""
    disk = cluster.nodes[NODE].disk
    state = rows(disk, Table.VERSION, Table.STATE, Table.PAST)
    head = Replica(disk, counter(NODE)).head
    damage(disk)
    scrub(cluster)
    assert rows(disk, Table.VERSION, Table.STATE, Table.PAST) == state
    assert Replica(disk, counter(NODE)).head == head
    assert not cluster.deployment.recoveries[NodeId(NODE)].rebuilding
    assert life_of(own(cluster).authenticator) == 1
    cluster.nodes[0].crash(down_us=None)  # and it makes the quorum
    assert Counting(cluster, "bob").increment(NODE) == 5


def test_a_request_that_is_damaged_is_dropped(cluster: Cluster) -> None:
    disk = cluster.nodes[NODE].disk
    kept = list(disk.keys(Table.REQUEST, b"", _END))
    assert len(kept) > 1
    disk.rot(Table.REQUEST, kept[0], 30)
    assert scrub(cluster).found_damaged == 1
    assert list(disk.keys(Table.REQUEST, b"", _END)) == kept[1:]


def test_what_is_whole_is_left_alone(cluster: Cluster) -> None:
    client = cluster.client()
    for number in range(40):
        client.write(block(number), b"item %d" % number)
    cluster.run_for(10 * SECOND_US)
    disk = cluster.nodes[NODE].disk
    before = rows(disk, *(table for table in Table if table is not Table.META))
    tally = scrub(cluster)
    assert tally.found_damaged == 0
    assert tally.checked_rows >= 40 + COUNTERS * 5
    assert rows(disk, *(table for table in Table if table is not Table.META)) == before


def test_a_damaged_object_is_mended_before_it_is_answered_for(cluster: Cluster) -> None:
    node = cluster.nodes[NODE]
    healer, _ = cluster.deployment.healers[NodeId(NODE)]
    recovery = cluster.deployment.recoveries[NodeId(NODE)]
    rot_state(node.disk)
    healer.throttle.pause()
    scrub(cluster)
    assert recovery.doubtful
    counting = Counting(cluster, "bob")
    assert counting.fetch(NODE) == 4
    cluster.run_for(SECOND_US)
    assert not recovery.doubtful


# --- the peers' word -------------------------------------------------------------------------


def lying(cluster: Cluster, liars: set[int]) -> None:
    """These servers give false digests, all the same ones."""
    send = cluster.network.send

    def sends(source, target, kind, number, message, body=b"") -> None:  # type: ignore[no-untyped-def]
        if source[0] == "node" and source[1] in liars and isinstance(message, AttestReply):
            message = AttestReply(tuple(b"\x01" * 32 for _ in message.digests))
        send(source, target, kind, number, message, body)

    cluster.network.send = sends  # type: ignore[method-assign]


def test_b_liars_damage_nothing(cluster: Cluster) -> None:
    before = rows(cluster.nodes[NODE].disk)
    lying(cluster, {NODE + 1})  # who is asked first
    assert scrub(cluster).found_damaged == 0
    assert rows(cluster.nodes[NODE].disk) == before


def test_damage_is_found_beside_a_liar_and_a_down_server(cluster: Cluster) -> None:
    disk = cluster.nodes[NODE].disk
    before = rows(disk)
    cluster.nodes[5].crash(down_us=None)
    lying(cluster, {NODE + 1})
    rot_answer(disk)
    assert scrub(cluster).found_damaged == 1
    assert rows(disk) == before


# --- must fail: without the check, the damage stays ------------------------------------------


@pytest.mark.parametrize(
    ("damage", "check", "instead"),
    [
        (rot_state, (scrubbing, "is_as_written"), lambda *_: True),
        (rot_past, (scrubbing, "is_as_written"), lambda *_: True),
        (rot_answer, (VersionScrubber, "_refuted"), None),
        (rot_history, (HistoryScrubber, "_is_sound"), lambda *_: True),
    ],
)
def test_must_fail_without_the_check_damage_stays(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Disk], None],
    check: tuple[object, str],
    instead: Callable[..., object] | None,
) -> None:
    async def nothing(*_: object) -> list[bytes]:
        return []

    monkeypatch.setattr(*check, instead or nothing)
    disk = cluster.nodes[NODE].disk
    before = rows(disk)
    damage(disk)
    assert scrub(cluster).found_damaged == 0
    assert rows(disk) != before


# --- the pace --------------------------------------------------------------------------------


def test_a_pass_goes_on_where_a_crash_has_stopped_it(cluster: Cluster) -> None:
    client = cluster.client()
    stamps = [client.write(block(number), b"item %d" % number) for number in range(100)]
    cluster.run_for(10 * SECOND_US)
    node = cluster.nodes[NODE]
    before = fragments(cluster, NODE)
    scrubber = cluster.deployment.scrubbers[NodeId(NODE)]
    scrubber.throttle.set_rate(4096)
    scrubber.throttle.start()
    cluster.run_until(lambda: scrubber.tally.place.rows >= 48)
    assert scrubber.tally.under_way
    assert 0 < scrubber.tally.progress < 1
    node.disk.rot(Table.FRAGMENT, version_key(block(99), stamps[99]), 1)
    node.crash(down_us=1_000)
    cluster.run_for(SECOND_US)
    again = cluster.deployment.scrubbers[NodeId(NODE)]
    assert again is not scrubber
    assert again.throttle.rate_bytes == 4096  # as it was told
    again.throttle.set_rate(limits.SCRUB_RATE_BYTES)
    cluster.run_until(lambda: again.tally.passes == 1)
    assert again.tally.checked_rows < again.tally.place.rows
    cluster.run_for(5 * SECOND_US)
    assert fragments(cluster, NODE) == before


def test_a_paused_pass_reads_nothing_until_it_is_resumed(cluster: Cluster) -> None:
    scrubber = cluster.deployment.scrubbers[NodeId(NODE)]
    scrubber.throttle.start()
    scrubber.throttle.pause()
    cluster.run_for(20 * SECOND_US)
    assert scrubber.tally.under_way
    assert scrubber.tally.checked_rows == 0
    cluster.nodes[NODE].crash(down_us=1_000)
    cluster.run_for(20 * SECOND_US)
    again = cluster.deployment.scrubbers[NodeId(NODE)]
    assert again.throttle.paused
    again.throttle.start()
    cluster.run_for(SECOND_US)
    assert again.tally.passes == 1


def test_scrubbing_waits_for_moments_in_which_clients_are_idle(cluster: Cluster) -> None:
    client = cluster.client()
    for number in range(64):
        client.write(block(number), b"item %d" % number)
    scrubber = cluster.deployment.scrubbers[NodeId(NODE)]
    scrubber.throttle.start()
    began_us = cluster.now_us
    while scrubber.tally.passes == 0:
        client.read(block(0))
    pages = 64 // 16 + 3
    assert cluster.now_us - began_us >= pages * limits.SCRUB_YIELD_US // 2


def test_scrubbing_is_due_once_a_week(cluster: Cluster) -> None:
    node = cluster.nodes[NODE]
    before = rows(node.disk)
    rot_state(node.disk)
    cluster.run_for(60 * SECOND_US)
    assert rows(node.disk) != before
    long_ago_us = cluster.now_us - limits.SCRUB_EVERY_US
    node.disk.apply([Write(Table.META, b"scrubbed", long_ago_us.to_bytes(8, "big"))])
    node.disk.commit()
    node.crash(down_us=1_000)
    cluster.run_for(20 * SECOND_US)
    assert rows(node.disk) == before


# --- the past --------------------------------------------------------------------------------


def test_a_server_that_lost_its_store_gets_long_histories_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that is longer than a page of object sync is taken page by page."""
    monkeypatch.setattr(limits, "SYNC_LINKS", 3)
    monkeypatch.setattr(limits, "LINKS_IN_CHAIN_PAGE", 2)
    counting = Counting(cluster)
    for _ in range(8):
        counting.increment(NODE)
    disk = cluster.nodes[NODE].disk
    before = rows(disk, Table.VERSION, Table.STATE, Table.PAST)
    head = LogicalTimestamp(keys(disk, Table.VERSION)[-1][16:])
    cluster.lose_store(NODE)
    cluster.run_for(30 * SECOND_US)
    disk = cluster.nodes[NODE].disk
    assert Replica(disk, counter(NODE)).head == head
    assert rows(disk, Table.VERSION, Table.STATE, Table.PAST) == before
