"""One block as all nodes together show it: which node has its fragment, and what may still fail.

Evidence comes from the fragments themselves: all N nodes are asked, and each fragment is checked
against the cross-checksum that the version's timestamp binds; the version counts as valid once all
N fragments, generated from m of them, match it. [PASIS §3.4.2.3] That a node has verified a
version, and when, is only its claim, and is reported as such.

**Concurrency.** As any client procedure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from bftfs import limits
from bftfs.asking.ask import inspect_nodes
from bftfs.asking.peers import Peers
from bftfs.coding.erasure import ErasureCode
from bftfs.conversation import Compute, Now
from bftfs.credentials import Credentials
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.classification import CandidateClass, classify
from bftfs.read_write.messages import ReadReply, ReadRequest
from bftfs.read_write.placement import fragment_index, rotation_of
from bftfs.read_write.responses import Responses
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, successor_of
from bftfs.read_write.validation import validate
from bftfs.thresholds import ReadWriteThresholds


class Fragment(Enum):
    """What a node has of a version."""

    GOOD = "good"  # the fragment came, and is the one that the version binds
    FALSE = "false"  # something else came
    LACKING = "lacking"  # the node says that it does not host the version
    SILENT = "silent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Holding:
    """One node's part of a block's latest version."""

    node: NodeId
    index: int  # of the fragment that belongs there
    fragment: Fragment
    claims_verified: bool  # the node says that it has verified the version…
    claims_since_us: int = 0  # …since this time; 0: it does not say since when


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A version that readers pass over: it is incomplete, poisonous, or beyond repair."""

    version: BlockTimestamp
    hosts: int
    poisonous: bool


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One block, as all nodes together show it."""

    block: BlockId
    # What a reader gets: generated from m fragments just now, and compared with the cross-checksum
    # (unless too few are at hand). None: a hole.
    version: BlockTimestamp | None
    classification: CandidateClass
    holdings: tuple[Holding, ...]
    survives: int  # so many more nodes may fail and it can be read; below 0: it cannot be now
    reasons: tuple[str, ...]  # why it survives less than it might
    passed_over: tuple[PassedOver, ...] = ()  # later ones, newest first
    verified_since_us: int | None = None  # by b + 1 claims, one of them true; 0: at a time unknown

    @property
    def degraded(self) -> bool:
        """True if some node lacks its part."""
        return bool(self.reasons)


async def inspect(
    peers: Peers, thresholds: ReadWriteThresholds, block: BlockId, who: Credentials
) -> BlockReport:
    """What can be shown to `who` of `block` now."""
    responses = Responses(thresholds, rotation_of(block, thresholds.N))
    everyone = tuple(NodeId(node) for node in range(thresholds.N))
    request = ReadRequest(block, None, True, limits.HISTORY_IN_REPLY, *who)
    refused = await _ask(peers, responses, everyone, request, lists=True)
    silent = set(everyone) - refused - responses.depth.keys() - responses.discarded
    away = dict.fromkeys(refused, Fragment.REFUSED) | dict.fromkeys(silent, Fragment.SILENT)
    below: BlockTimestamp | None = None
    passed_over: list[PassedOver] = []
    while True:
        version = responses.candidate(below)
        if version is None or version == ZERO:
            report = _unwritten(block, thresholds.N, thresholds.t, away)
            break
        hosts = responses.hosts(version)
        found = classify(
            thresholds,
            hosting=len(hosts) + len(responses.damaged_hosts(version)),
            heard=len(responses.heard(version)) + len(responses.damaged_heard(version)),
        )
        further = [node for node in hosts if not responses.has_fragment_of(node, version)]
        request = ReadRequest(block, successor_of(version), True, 0, *who)
        await _ask(peers, responses, further, request, lists=False)
        valid = await _is_valid(thresholds, responses, version)
        poisonous = not valid and len(responses.fragments(version)) >= thresholds.m
        if found is not CandidateClass.INCOMPLETE and not poisonous:
            now_us = await Now()
            holdings = tuple(
                _holding(responses, node, version, block, thresholds.N, away, now_us)
                for node in everyone
            )
            report = _judged(thresholds, block, version, found, holdings)
            break
        passed_over.append(PassedOver(version, len(hosts), poisonous=poisonous))
        below = version
    return replace(report, passed_over=tuple(passed_over))


async def _ask(
    peers: Peers,
    responses: Responses,
    nodes: Iterable[NodeId],
    request: ReadRequest,
    *,
    lists: bool,
) -> set[NodeId]:
    """Take the replies of `nodes` that answer in time; return which nodes have refused."""
    refused: set[NodeId] = set()
    for node, delivery in (await inspect_nodes(peers, dict.fromkeys(nodes, request))).items():
        if isinstance(delivery.message, ReadReply):
            responses.add(
                node,
                delivery.message,
                delivery.body,
                before=request.before,
                want_data=True,
                lists=lists,
            )
        else:
            refused.add(node)
    return refused


async def _is_valid(
    thresholds: ReadWriteThresholds, responses: Responses, version: BlockTimestamp
) -> bool:
    """True if m fragments generate all N that the version binds. [PASIS §3.4.2.3]"""
    fragments = responses.fragments(version)
    if len(fragments) < thresholds.m:
        return False
    code, checksum = ErasureCode(thresholds.m, thresholds.N), responses.cross_checksum(version)
    return await Compute(partial(validate, code, checksum, fragments)) is not None


# --- judging ------------------------------------------------------------------------------------


def _holding(
    responses: Responses,
    node: NodeId,
    version: BlockTimestamp,
    block: BlockId,
    n: int,
    away: dict[NodeId, Fragment],
    now_us: int,
) -> Holding:
    claims = bool(responses.hosted.get(node, {}).get(version))
    since_us = responses.verified_us.get((node, version), 0) if claims else 0
    if not version.time - limits.CLOCK_SKEW_US <= since_us <= now_us + limits.CLOCK_SKEW_US:
        since_us = 0  # no correct node says that
    if node in away:
        fragment = away[node]
    elif node in responses.discarded:
        fragment = Fragment.FALSE
    elif responses.has_fragment_of(node, version):
        fragment = Fragment.GOOD
    else:
        fragment = Fragment.LACKING
    return Holding(node, fragment_index(block, node, n), fragment, claims, since_us)


_WHY = {
    Fragment.FALSE: "sent a fragment that is not the version's: its disk is damaged, or it lies",
    Fragment.LACKING: "does not host this version (yet): it has to heal",
    Fragment.SILENT: "does not answer",
    Fragment.REFUSED: "refuses to answer: it rebuilds its store, or you may not read the file",
}


def _judged(
    thresholds: ReadWriteThresholds,
    block: BlockId,
    version: BlockTimestamp,
    found: CandidateClass,
    holdings: tuple[Holding, ...],
) -> BlockReport:
    good = sum(holding.fragment is Fragment.GOOD for holding in holdings)
    failed = sum(
        holding.fragment in {Fragment.SILENT, Fragment.FALSE, Fragment.REFUSED}
        for holding in holdings
    )
    # A reader hears N - t nodes, and takes what QC - t of them host. [PASIS §3.4.4]
    survives = min(thresholds.t - failed, good - thresholds.repairable)
    reasons = tuple(
        f"node {holding.node} {_WHY[holding.fragment]}"
        for holding in holdings
        if holding.fragment is not Fragment.GOOD
    )
    return BlockReport(
        block,
        version,
        found,
        holdings,
        survives,
        reasons,
        verified_since_us=_verified_since_us(holdings, thresholds.b),
    )


def _verified_since_us(holdings: tuple[Holding, ...], b: int) -> int | None:
    """When a correct node had verified the version, whichever b claims are lies.

    The (b + 1)-st of the times that nodes claim: of those that claim it or an earlier one, one is
    correct. None if no more than b claim at all, 0 if too few of them say when.
    """
    claims = [holding.claims_since_us for holding in holdings if holding.claims_verified]
    if len(claims) <= b:
        return None
    dated = sorted(since_us for since_us in claims if since_us)
    return dated[b] if len(dated) > b else 0


def _unwritten(block: BlockId, n: int, t: int, away: dict[NodeId, Fragment]) -> BlockReport:
    """A block that no node hosts: a hole, unless too few have said so."""
    reasons = tuple(f"node {node} {_WHY[away[node]]}" for node in sorted(away))
    found = CandidateClass.COMPLETE if len(away) <= t else CandidateClass.UNDECIDED
    holdings = tuple(
        Holding(node, fragment_index(block, node, n), away.get(node, Fragment.LACKING), False)
        for node in map(NodeId, range(n))
    )
    return BlockReport(block, None, found, holdings, t - len(away), reasons)
