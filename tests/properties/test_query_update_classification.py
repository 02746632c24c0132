"""Classification of Query/Update, exhaustively: small systems, all object history sets over a few
candidates, all sets of liars, all views.

The judge is definition (4.1), with quorums and repairable sets listed one by one, and what follows
from constraints (4.3) and (4.4). [Q/U §4.3.3]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, combinations, combinations_with_replacement, product
from random import Random
from typing import NamedTuple

import pytest

from bftfs.asking.quorum import NOBODY, Nodes, ThresholdQuorums
from bftfs.identifiers import ClientId, ObjectId
from bftfs.query_update.classification import (
    Classification,
    Facts,
    OperationType,
    classify,
    shared_candidates,
)
from bftfs.query_update.history import (
    INITIAL,
    ZERO,
    Candidate,
    CulledObjectHistorySet,
    Hosted,
    LogicalTimestamp,
    history_of,
    is_barrier,
    logical_timestamp,
    parse_history,
)
from bftfs.thresholds import QueryUpdateThresholds

OBJECT = ObjectId(bytes(16))
FOUR = QueryUpdateThresholds.smallest(t=1, b=0)  # n = 4, q = 3, r = 2
SIX = QueryUpdateThresholds.smallest(t=1, b=1)  # n = 6, q = 5, r = 3
LARGER = QueryUpdateThresholds.for_nodes(7, t=1, b=1)  # n = 7, q = 6, r = 4


def at(time: int, *, barrier: bool = False) -> LogicalTimestamp:
    client, digest = ClientId(bytes(16)), bytes(32)
    return logical_timestamp(time_us=time, barrier=barrier, client=client, digest=digest)


ONE = Candidate(at(1), ZERO)
TWO = Candidate(at(2), ZERO)  # contends with ONE
TWO_ON_ONE = Candidate(at(2), at(1))  # the same operation, or so a liar says
BARRIER = Candidate(at(3, barrier=True), ZERO)
COPY = Candidate(at(4), at(1), copy=True)
LATE_BARRIER = Candidate(at(4, barrier=True), at(1))

RICH = (
    (INITIAL,),
    (None, ONE),
    (None, TWO, TWO_ON_ONE),
    (None, BARRIER),
    (None, COPY, LATE_BARRIER),
)
PLAIN = ((INITIAL,), (None, ONE), (None, TWO), (None, BARRIER), (None, COPY))
PRUNED = ((None, INITIAL), *PLAIN[1:])  # where ⟨0, 0⟩ may be pruned

Alphabet = tuple[tuple[Candidate | None, ...], ...]  # what may be reported at each time
History = tuple[Candidate, ...]  # what one server reports, ascending


def histories(alphabet: Alphabet) -> list[History]:
    """Every history over the alphabet: at most one candidate at each time, and at least one."""
    found = [tuple(each for each in choice if each is not None) for choice in product(*alphabet)]
    return [history for history in found if history]


@cache
def hosted(history: History, nodes: Nodes) -> Hosted:
    candidates = [each for each in history if each != INITIAL]
    return Hosted(parse_history(history_of(candidates, initial=INITIAL in history)), nodes)


def view(reports: Iterable[tuple[int, History]]) -> CulledObjectHistorySet:
    """The object history set of what these servers report; ⟨0, 0⟩ alone is left out."""
    nodes: dict[History, Nodes] = {}
    for node, history in reports:
        if history != (INITIAL,):
            nodes[history] = nodes.get(history, NOBODY).plus(node)
    return CulledObjectHistorySet(
        OBJECT, tuple(hosted(history, mask) for history, mask in nodes.items())
    )


# --- the judge -----------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A threshold system as sets of sets: Q, R and the fail-prone B, one by one."""

    n: int
    quorums: tuple[frozenset[int], ...]
    repairable: tuple[frozenset[int], ...]
    malevolent: tuple[frozenset[int], ...]

    def verdict(self, nodes: frozenset[int]) -> str:
        """(4.1)"""
        if any(quorum <= nodes for quorum in self.quorums):
            return "complete"
        if any(repairable <= nodes for repairable in self.repairable):
            return "repairable"
        return "incomplete"


@cache
def listed(sizes: QueryUpdateThresholds) -> Listed:
    everyone = range(sizes.n)

    def subsets(size: int) -> tuple[frozenset[int], ...]:
        return tuple(frozenset(each) for each in combinations(everyone, size))

    return Listed(sizes.n, subsets(sizes.q), subsets(sizes.r), subsets(sizes.b))


@cache
def verdicts(sizes: QueryUpdateThresholds) -> list[str]:
    """By bit mask."""
    judge = listed(sizes)
    return [
        judge.verdict(frozenset(node for node in range(sizes.n) if mask >> node & 1))
        for mask in range(1 << sizes.n)
    ]


def judged(
    reports: tuple[History, ...], sizes: QueryUpdateThresholds, facts: Facts
) -> tuple[OperationType, Candidate] | None:
    """The operation that a set of reports dictates, from the table in the source, and ObjCand.

    None if a candidate is complete that is said to be dead: then the facts are none.
    """
    verdict = verdicts(sizes)
    objects: dict[Candidate, Nodes] = {}
    barriers: dict[LogicalTimestamp, Nodes] = {}
    for node, history in enumerate(reports):
        for each in history:
            if is_barrier(each.timestamp):
                barriers[each.timestamp] = barriers.get(each.timestamp, NOBODY).plus(node)
            else:
                objects[each] = objects.get(each, NOBODY).plus(node)
    eligible = {INITIAL: verdict[objects.get(INITIAL, NOBODY).bits]}
    for each, nodes in objects.items():
        if facts.get(each.timestamp) is not False:
            if verdict[nodes.bits] != "incomplete":
                eligible[each] = verdict[nodes.bits]
        elif verdict[nodes.bits] == "complete":
            return None
    candidate = max(eligible, key=lambda each: each.encoded)
    complete = eligible[candidate] == "complete" or facts.get(candidate.timestamp) is True
    latest = max((each.timestamp for history in reports for each in history), default=ZERO)
    if latest == candidate.timestamp:
        return (OperationType.METHOD if complete else OperationType.INLINE_METHOD), candidate
    if not is_barrier(latest):
        return OperationType.BARRIER, candidate
    if verdict[barriers[latest].bits] == "complete":
        return OperationType.COPY, candidate
    return OperationType.INLINE_BARRIER, candidate


# --- (4.1) and the table -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [FOUR, SIX, LARGER], ids=str)
def test_threshold_quorums_are_what_the_definition_says(sizes: QueryUpdateThresholds) -> None:
    """'complete if some quorum Q ⊆ S; repairable if some repairable set R ⊆ S; else incomplete.'"""
    quorums = ThresholdQuorums(sizes)
    for mask, verdict in enumerate(verdicts(sizes)):
        assert quorums.is_quorum(Nodes(mask)) == (verdict == "complete")
        assert quorums.is_repairable(Nodes(mask)) == (verdict != "incomplete")
        nodes = {node for node in range(sizes.n) if mask >> node & 1}
        covered = any(nodes <= malevolent for malevolent in listed(sizes).malevolent)
        assert quorums.includes_benign(Nodes(mask)) == (not covered)


@pytest.mark.parametrize("sizes", [FOUR, SIX, LARGER], ids=str)
def test_the_constraints_hold_of_the_sets(sizes: QueryUpdateThresholds) -> None:
    """(4.2), (4.3) and (4.4), for all quorums, repairable sets and fail-prone sets."""
    system = listed(sizes)
    for faulty in combinations(range(sizes.n), sizes.t):
        assert any(quorum.isdisjoint(faulty) for quorum in system.quorums)
    for one, other in product(system.quorums, repeat=2):
        for malevolent in system.malevolent:
            left = (one & other) - malevolent
            assert any(repairable <= left for repairable in system.repairable if repairable <= one)
            assert all(
                (one & repairable) - malevolent
                for repairable in system.repairable
                if repairable <= other
            )


@pytest.mark.parametrize(
    ("sizes", "alphabet", "facts"),
    [
        (FOUR, RICH, {}),
        (FOUR, PLAIN, {at(1): True}),
        (FOUR, PLAIN, {at(1): False}),
        (FOUR, PLAIN, {at(2): False, at(1): True}),
        (FOUR, PLAIN, {at(4): False}),
        (SIX, PLAIN, {}),
        (SIX, PLAIN, {at(2): False, at(4): True}),
        (SIX, RICH[:4], {}),
        (LARGER, PLAIN[:4], {}),
        (FOUR, PRUNED, {}),
        (SIX, PRUNED[:4], {}),
    ],
)
def test_every_object_history_set(
    sizes: QueryUpdateThresholds,
    alphabet: Alphabet,
    facts: dict[LogicalTimestamp, bool],
) -> None:
    """What `classify` says of every set of reports is what the definition says.

    Servers are interchangeable, so that it is enough to try every multiset of histories.
    """
    seen = {
        compared(reports, sizes, facts)
        for reports in combinations_with_replacement(histories(alphabet), sizes.n)
    }
    assert {OperationType.METHOD, OperationType.BARRIER, OperationType.COPY} <= seen
    assert OperationType.INLINE_BARRIER in seen
    assert OperationType.INLINE_METHOD in seen


def compared(
    reports: tuple[History, ...], sizes: QueryUpdateThresholds, facts: Facts
) -> OperationType | None:
    expected = judged(reports, sizes, facts)
    if expected is None:
        return None
    found = classify(view(enumerate(reports)), ThresholdQuorums(sizes), facts)
    assert (found.type, found.object_candidate) == expected, reports
    if found.type is OperationType.METHOD:
        assert found.complete
        assert found.latest == found.object_candidate.timestamp
    return found.type


def test_object_history_sets_of_six_servers_drawn() -> None:
    """Of the 4.5 million of this alphabet, some."""
    draw = Random(0)
    every = histories(RICH)
    for _ in range(20_000):
        few = draw.choices(every, k=draw.randrange(1, 4))
        reports = tuple(draw.choice(few) for _ in range(SIX.n))
        compared(reports, SIX, {})


def test_servers_are_interchangeable() -> None:
    quorums = ThresholdQuorums(FOUR)
    plain = histories(PLAIN)
    for number, reports in enumerate(combinations_with_replacement(plain, FOUR.n)):
        if number % 7:
            continue
        once = classify(view(enumerate(reports)), quorums)
        turned = view((3 - node, history) for node, history in enumerate(reports))
        again = classify(CulledObjectHistorySet(OBJECT, tuple(reversed(turned.hosted))), quorums)
        assert once._replace(nodes=NOBODY) == again._replace(nodes=NOBODY)
        assert len(once.nodes) == len(again.nodes)


# --- what follows from (4.3) ---------------------------------------------------------------------


def views(sizes: QueryUpdateThresholds) -> list[tuple[int, ...]]:
    """The sets of servers that a client may have heard: quorums, and more."""
    return [
        each for size in range(sizes.q, sizes.n + 1) for each in combinations(range(sizes.n), size)
    ]


def liars_reports(
    sizes: QueryUpdateThresholds, lies: list[History]
) -> Iterator[tuple[History, ...]]:
    """What the malevolent servers may report: each of them anything."""
    return product(lies, repeat=sizes.b)


@pytest.mark.parametrize("sizes", [FOUR, SIX], ids=str)
def test_an_established_candidate_is_never_incomplete(sizes: QueryUpdateThresholds) -> None:
    """'Constraint (4.3) ensures that some repairable set of an established candidate is contained
    in every other quorum.' Whatever the others have accepted besides, whatever liars say, and
    whoever is heard."""
    quorums = ThresholdQuorums(sizes)
    system = listed(sizes)
    lies = histories(RICH)
    for established, rival in ((ONE, TWO), (TWO, ONE)):
        for quorum, malevolent in product(system.quorums, system.malevolent):
            base: dict[int, History] = {
                node: (INITIAL, established) if node in quorum else (INITIAL, rival)
                for node in range(sizes.n)
                if node not in malevolent
            }
            for lie, heard in product(liars_reports(sizes, lies), views(sizes)):
                reports = {**base, **dict(zip(sorted(malevolent), lie, strict=True))}
                history_set = view((node, reports[node]) for node in heard)
                shared = [each.candidate for each in shared_candidates(history_set, quorums)]
                assert established in shared
                # No liar's word makes another one repairable, hence it is what is built on.
                found = classify(history_set, quorums)
                assert found.object_candidate == established


# --- what follows from (4.4) ---------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [FOUR, SIX], ids=str)
def test_two_potential_candidates_preclude_establishment(
    sizes: QueryUpdateThresholds,
) -> None:
    """'at most one of any concurrent updates in the Q/U protocol establishes a candidate and …, if
    a candidate is established, no other concurrent updates yield a potential candidate.'

    A benign server accepts at most one of the candidates that are conditioned on one version.
    Established: at all benign servers of some quorum; potential: … of some repairable set.
    """
    system = listed(sizes)
    quorums = ThresholdQuorums(sizes)
    rivals = (ONE, TWO, Candidate(at(5), ZERO))
    both = 0
    malevolent = system.malevolent[-1]  # servers are interchangeable
    benign = [node for node in range(sizes.n) if node not in malevolent]
    for accepted in product((None, *rivals), repeat=len(benign)):
        hosts = {
            rival: frozenset(
                node for node, has in zip(benign, accepted, strict=True) if has is rival
            )
            for rival in rivals
        }
        established = [
            rival
            for rival in rivals
            if any(quorum - malevolent <= hosts[rival] for quorum in system.quorums)
        ]
        potential = [
            rival
            for rival in rivals
            if any(each - malevolent <= hosts[rival] for each in system.repairable)
        ]
        assert len(established) <= 1
        assert not established or potential == established
        if len(potential) < 2:
            continue
        both += 1
        # Nor does anybody take one of them for complete, if the liars claim to have them all.
        history_set = view(
            chain(
                ((node, (INITIAL, has)) for node, has in zip(benign, accepted, strict=True) if has),
                ((node, (INITIAL, *rivals)) for node in malevolent),
            )
        )
        found: Classification = classify(history_set, quorums)
        assert found.type is not OperationType.METHOD
        assert not found.complete or found.object_candidate == INITIAL
    assert both > 0


# --- what follows for those who act on it --------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "alphabet"), [(FOUR, PLAIN), (SIX, PLAIN[:4])], ids=["n=4", "n=6"]
)
def test_all_views_of_one_moment_that_dictate_a_method_agree(
    sizes: QueryUpdateThresholds, alphabet: Alphabet
) -> None:
    """'this ensures that benign servers only accept requests conditioned on the latest complete
    object version': two quorums that are heard at one moment never dictate methods on different
    versions, whatever liars tell each; nor a method here and a copy there."""
    quorums = ThresholdQuorums(sizes)
    every = histories(alphabet)
    benign_count = sizes.n - sizes.b
    agreed = 0
    for reports in combinations_with_replacement(every, benign_count):
        methods = set()
        copies = False
        for heard in views(sizes):
            benign = [(node, reports[node]) for node in heard if node < benign_count]
            lying = [node for node in heard if node >= benign_count]
            for lie in product(every, repeat=len(lying)):
                found = classify(view((*benign, *zip(lying, lie, strict=True))), quorums)
                if found.type is OperationType.METHOD:
                    methods.add(found.object_candidate)
                copies |= found.type is OperationType.COPY
        assert len(methods) <= 1, reports
        assert not (methods and copies), reports
        agreed += len(methods)
    assert agreed > len(every)
