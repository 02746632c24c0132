"""Puts the protocols and the background work of a correct node together."""

from __future__ import annotations

from functools import partial
from typing import get_args

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.cluster import ClusterDescription
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.envelope import REPLIES, REQUESTS, ClockRequest
from bftfs.filesystem import object_types
from bftfs.filesystem.inode_authority import InodeAuthority
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Request as QueryUpdateRequest
from bftfs.query_update.server import QueryUpdateServer
from bftfs.read_write.messages import Notice
from bftfs.read_write.messages import Request as ReadWriteRequest
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.session import Session
from bftfs.runtime.log import PROCESS_LOG
from bftfs.server import clock_comparison, known_lives, scrubbing
from bftfs.server.block_healing import BlockHealer
from bftfs.server.block_verification import LazyVerifier
from bftfs.server.clock_comparison import ClockComparison, ClockServer
from bftfs.server.file_collection import Collector
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.kept_blocks import CollectedPast
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.room import ClientQuota, Room
from bftfs.server.runs import Runs
from bftfs.server.tally import Figure, figures
from bftfs.server.worker import healing_throttle
from bftfs.storage import StorageView
from nodes.configuration import NodeConfiguration
from nodes.control import PassState, Work
from nodes.node import Protocols, Services


def honest_services(
    description: ClusterDescription,
    identity: Identity,
    node: NodeId,
    configuration: NodeConfiguration,
    recovery: Recovery,
) -> Services:
    """The servers and the background work of a correct node."""
    keys = description.authenticator_keys(identity, node)
    quorums = ThresholdQuorums(description.query_update)
    healing = healing_throttle()
    # A node, too, is a principal: it has one `Peers`, and believes itself.
    peers = Peers(quorums, trusted=Nodes.of([node]))
    object_healer = ObjectHealer(node, peers, keys, recovery, healing)
    clock = OwnClock(description.t, _report_clock, b=description.b, compared=description.n > 1)
    query_update = QueryUpdateServer(
        node, peers, keys, object_types(), recovery=recovery, doubts=object_healer, clock=clock
    )
    room = Room(client_bytes=configuration.client_bytes, pool_bytes=configuration.pool_bytes)
    quota = ClientQuota(room)
    session = Session(
        client_id_of(public_key=identity.public_key),
        description.read_write,
        peers,
        patience_total_us=limits.VERIFY_PATIENCE_US,
    )
    incomplete = query_update.incomplete
    finisher = Finisher(node, peers, incomplete, object_healer)
    past = CollectedPast()
    block_healer = BlockHealer(
        node,
        session,
        keys,
        recovery,
        wants=past.wants,
        throttle=healing,
    )
    scrubber = scrubbing.Scrubber(
        (
            scrubbing.BlockScrubber(node, description.n, healing.hurry),
            scrubbing.VersionScrubber(node, peers, object_healer),
            scrubbing.HistoryScrubber(keys, object_healer),
            scrubbing.RequestScrubber(description.n),
        ),
        report=_report,
    )
    collector = Collector(
        node,
        peers,
        description.volume,
        # A client may date a version back by as much as clocks may differ: so nothing that has
        # been the truth within the window counts as superseded before it.
        window_us=description.window_us + limits.CLOCK_SKEW_US,
        pool=room,
        clock=clock if description.n > 1 else None,
        knowledge=object_healer,
    )
    collector.let_go(description.let_go)
    verifier = LazyVerifier(node, session, configuration.verification)
    read_write = ReadWriteServer(
        node,
        description.read_write,
        keys,
        authority=InodeAuthority(recovery, object_healer),
        quota=quota,
        watch=verifier,
        memory=block_healer,
        past=past,
        clock=clock,
    )
    comparison = ClockComparison(node, peers, clock)

    def recall(view: StorageView) -> None:
        known_lives.recall(view, keys)
        clock_comparison.recall(view, clock)

    return Services(
        {
            **dict.fromkeys(get_args(QueryUpdateRequest), query_update),
            **dict.fromkeys(get_args(ReadWriteRequest), read_write),
            Notice: verifier,
            ClockRequest: ClockServer(clock),
        },
        peers,
        # A node without peers has nothing to heal from.
        (
            Runs(node, peers, keys, recovery, report=_report_copy),
            comparison,
            verifier,
            finisher,
            object_healer,
            block_healer,
            scrubber,
            collector,
        )
        if description.n > 1
        else (verifier, finisher, collector),
        lambda: (
            Figure("bftfs_members", "Nodes of the cluster.", description.n),
            Figure("bftfs_tolerated_faults", "Nodes that may fail.", description.t),
            Figure(
                "bftfs_possible_versions",
                "Versions of blocks not verified yet.",
                verifier.backlog.total,
            ),
            Figure(
                "bftfs_possible_versions_limit",
                "Number of unverified versions from which writers have to wait.",
                verifier.settings.node,
            ),
            Figure(
                "bftfs_possible_versions_fullness",
                "The unverified versions of some client, or of all, as a share of their limit: "
                "beyond a half, ever more writes wait for verification.",
                verifier.fullness(),
            ),
            Figure(
                "bftfs_possible_blocks", "Blocks with unverified versions.", verifier.backlog.blocks
            ),
            Figure("bftfs_possible_objects", "Objects with incomplete updates.", incomplete.total),
            Figure("bftfs_pool_bytes", "Bytes used of the history pool.", room.live_bytes),
            Figure("bftfs_pool_limit_bytes", "Size of the history pool.", room.limit_bytes),
            Figure("bftfs_damaged_objects", "Objects that need repair.", recovery.damaged),
            Figure(
                "bftfs_heal_pass_timestamp_seconds",
                "When the last pass began that compared everything with the others, since the "
                "epoch; 0: none has since the start.",
                min(object_healer.tally.whole_us, block_healer.tally.whole_us) / limits.SECOND_US,
            ),
            Figure("bftfs_heal_paused", "1 while healing is paused.", healing.paused),
            Figure("bftfs_scrub_paused", "1 while scrubbing is paused.", scrubber.throttle.paused),
            *figures(clock, "bftfs_clock_"),
            Figure("bftfs_recovering", "1 while a lost store is rebuilt.", recovery.rebuilding),
            *(
                each
                for tally in (verifier.tally, incomplete.tally, collector.tally, scrubber.tally)
                for each in figures(tally, "bftfs_")
            ),
            *figures(object_healer.tally, "bftfs_heal_objects_", what="objects"),
            *figures(block_healer.tally, "bftfs_heal_blocks_", what="blocks"),
        ),
        (
            Work(healing, partial(_healing_state, object_healer, block_healer, recovery)),
            Work(scrubber.throttle, partial(_scrubbing_state, scrubber)),
        ),
        object_healer.note_damage,
        room,
        recall=recall,
        own_clock=clock,
        ahead=lambda: object_healer.tally.ahead_names,
        described=lambda latest: collector.let_go(latest.let_go),
    )


def _healing_state(
    objects: ObjectHealer, blocks: BlockHealer, recovery: Recovery, now_us: int
) -> PassState:
    tallies = objects.tally, blocks.tally
    remaining = [tally.remaining_us(now_us) for tally in tallies]
    weights = [max(tally.total, 1) for tally in tallies]
    done = sum(tally.progress * weight for tally, weight in zip(tallies, weights, strict=True))
    return PassState(
        under_way=any(tally.under_way for tally in tallies),
        progress=done / sum(weights),
        remaining_us=None if None in remaining else max(each or 0 for each in remaining),
        ended_us=min(tally.ended_us for tally in tallies),
        figures={
            "passes": min(tally.passes for tally in tallies),
            "objects rebuilt": objects.tally.rebuilt,
            "blocks rebuilt": blocks.tally.rebuilt,
            "bytes rebuilt": blocks.tally.rebuilt_bytes,
            "failed": sum(tally.failed for tally in tallies),
            "damaged objects": recovery.damaged,
        },
    )


def _scrubbing_state(scrubber: scrubbing.Scrubber, now_us: int) -> PassState:
    tally = scrubber.tally
    rate = min(scrubber.throttle.measured_rate(now_us), scrubber.throttle.rate_bytes)
    return PassState(
        under_way=tally.under_way,
        progress=tally.progress,
        remaining_us=tally.remaining_us(rate),
        ended_us=tally.ended_us,
        figures={
            "passes": tally.passes,
            "rows checked": tally.place.rows,
            "bytes checked": tally.place.volume,
            "bytes to come": tally.bytes_to_come if tally.under_way else 0,
            "damaged": tally.place.damaged,
        },
    )


def _report(table: str, damaged: int) -> None:
    PROCESS_LOG.warning("damaged", table=table, rows=damaged)


def _report_copy(reason: str) -> None:
    PROCESS_LOG.warning("forgotten", reason=reason)


def _report_clock(reason: str) -> None:
    if reason:
        PROCESS_LOG.warning("clock distrusted", reason=reason)
    else:
        PROCESS_LOG.info("clock agrees with its peers again")


HONEST = Protocols(honest_services, REQUESTS.decode, REPLIES.decode)
