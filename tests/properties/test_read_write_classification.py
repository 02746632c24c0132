"""CandidateClass, exhaustively: all small systems, all sets of hosts, liars and silent nodes.

The judge is the definition of completeness (QC benign hosts), not the thresholds.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest

from bftfs.read_write.classification import CandidateClass, Testimony, classify, judge
from bftfs.thresholds import ReadWriteThresholds


def systems(most_nodes: int) -> list[ReadWriteThresholds]:
    found = []
    for N, t in product(range(1, most_nodes + 1), range(3)):
        for b, QC in product(range(t + 1), range(1, N + 1)):
            if b + t < QC <= N - t - b:
                found.append(ReadWriteThresholds(N=N, t=t, b=b, QC=QC, m=QC - t))
    return found


@pytest.mark.parametrize("sizes", systems(8), ids=str)
def test_all_worlds(sizes: ReadWriteThresholds) -> None:
    """What a reader concludes from any N - t or more responses is true of the world.

    A world is how many benign nodes host a candidate, how many liars there are, how many of these
    claim to host it, and who is heard. Nodes are interchangeable, so numbers are enough.
    """
    N, t, b, QC = sizes.N, sizes.t, sizes.b, sizes.QC
    seen = set()
    for liars in range(b + 1):
        benign = N - liars
        for hosts in range(benign + 1):
            for heard_hosts, heard_others, claims, denials in product(
                range(hosts + 1), range(benign - hosts + 1), range(liars + 1), range(liars + 1)
            ):
                if claims + denials > liars:
                    continue
                heard = heard_hosts + heard_others + claims + denials
                verdict = classify(sizes, hosting=heard_hosts + claims, heard=heard)
                seen.add(verdict)
                if verdict is CandidateClass.COMPLETE:
                    assert hosts >= QC
                elif verdict is CandidateClass.INCOMPLETE:
                    assert hosts < QC
                elif verdict is CandidateClass.REPAIRABLE:
                    # Not fabricated, and decodable.
                    assert hosts > 0
                    assert heard_hosts + claims >= sizes.m
                else:
                    assert heard < N - t
    assert {CandidateClass.COMPLETE, CandidateClass.UNDECIDED} <= seen
    if t:
        assert CandidateClass.INCOMPLETE in seen


@pytest.mark.parametrize("sizes", systems(8), ids=str)
def test_a_complete_write_is_never_overlooked(sizes: ReadWriteThresholds) -> None:
    """Whatever N - t nodes answer, a complete write is not incomplete to them; and whatever nodes
    prove an older candidate complete, one benign node among them shows the newer write."""
    N, t, b, QC = sizes.N, sizes.t, sizes.b, sizes.QC
    for heard in range(N - t, N + 1):
        least_hosts_heard = max(0, QC - (N - heard))
        verdict = classify(sizes, hosting=least_hosts_heard, heard=heard)
        assert verdict is not CandidateClass.INCOMPLETE
    for hosting, heard in product(range(N + 1), repeat=2):
        if hosting <= heard and classify(sizes, hosting=hosting, heard=heard) in (
            CandidateClass.COMPLETE,
            CandidateClass.REPAIRABLE,
        ):
            assert QC - (N - heard) > 0
    assert QC + b <= N - t


@pytest.mark.parametrize("sizes", systems(7), ids=str)
def test_more_hosts_never_make_a_candidate_worse(sizes: ReadWriteThresholds) -> None:
    order = [CandidateClass.INCOMPLETE, CandidateClass.REPAIRABLE, CandidateClass.COMPLETE]
    for heard in range(sizes.N - sizes.t, sizes.N + 1):
        verdicts = [
            order.index(classify(sizes, hosting=hosting, heard=heard))
            for hosting in range(heard + 1)
        ]
        assert verdicts == sorted(verdicts)


@pytest.mark.parametrize("sizes", systems(7), ids=str)
def test_forgetful_nodes_mislead_nobody(sizes: ReadWriteThresholds) -> None:
    """Whatever nodes that have collected a candidate had hosted, and whichever of them lie."""
    N, b, QC = sizes.N, sizes.b, sizes.QC
    for hosts, heard_hosts, heard_others, forgotten_hosts, forgotten_others, liars in product(
        range(N + 1), range(N + 1), range(N + 1), range(b + 1), range(b + 1), range(b + 1)
    ):
        others = N - liars - hosts
        forgetful = forgotten_hosts + forgotten_others
        if heard_hosts + forgotten_hosts > hosts or heard_others + forgotten_others > others:
            continue
        for claims in range(liars + 1):
            hosting, heard = heard_hosts + claims, heard_hosts + heard_others + liars
            testimony = Testimony(hosting, heard, forgetful=forgetful)
            found, _ = judge(sizes, testimony, counts_damaged=False, counts_forgetful=True)
            if found is not classify(sizes, hosting=hosting, heard=heard):
                assert 0 < forgetful <= b
                assert heard + QC > N  # no newer complete version was overlooked
            if found is CandidateClass.COMPLETE:
                assert hosts >= QC
            elif found is CandidateClass.INCOMPLETE:
                assert hosts < QC
            elif found is CandidateClass.REPAIRABLE:
                assert hosts > 0
                assert hosting >= sizes.m


@pytest.mark.parametrize("sizes", systems(7), ids=str)
def test_a_reader_waits_if_and_only_if_it_may_help(sizes: ReadWriteThresholds) -> None:
    order = [CandidateClass.INCOMPLETE, CandidateClass.REPAIRABLE, CandidateClass.COMPLETE]
    for heard in range(sizes.responses, sizes.N + 1):
        for hosting, pending in product(range(heard + 1), range(sizes.N - heard + 1)):
            testimony = Testimony(hosting, heard, pending=pending)
            found, is_final = judge(sizes, testimony, counts_damaged=True, counts_forgetful=True)
            best = classify(sizes, hosting=hosting + pending, heard=heard + pending)
            assert found is classify(sizes, hosting=hosting, heard=heard)
            assert is_final == (not hosting or order.index(best) <= order.index(found))


@pytest.mark.parametrize("sizes", systems(7), ids=str)
def test_damaged_nodes_count_if_others_do_not_decide(sizes: ReadWriteThresholds) -> None:
    for heard, damaged in product(range(sizes.N + 1), range(sizes.N + 1)):
        for hosting, listing in product(range(heard + 1), range(damaged + 1)):
            testimony = Testimony(hosting, heard, listing, damaged)
            without, _ = judge(sizes, testimony, counts_damaged=False, counts_forgetful=False)
            found, _ = judge(sizes, testimony, counts_damaged=True, counts_forgetful=False)
            assert without is classify(sizes, hosting=hosting, heard=heard)
            if without is CandidateClass.UNDECIDED:
                assert found is classify(sizes, hosting=hosting + listing, heard=heard + damaged)
            else:
                assert found is without


def test_by_enumeration_of_the_sets_themselves() -> None:
    """The same for N = 6, without counting arguments."""
    sizes = ReadWriteThresholds.for_nodes(6, t=1, b=1)
    nodes = range(sizes.N)
    for liar, silent in product(nodes, nodes):
        for count in range(sizes.N + 1):
            for claimed in map(set, combinations(nodes, count)):
                heard = {node for node in nodes if node != silent}
                verdict = classify(sizes, hosting=len(claimed & heard), heard=len(heard))
                benign_hosts = claimed - {liar}
                possible_hosts = benign_hosts | ({silent} - {liar})
                if verdict is CandidateClass.COMPLETE:
                    assert len(benign_hosts & heard) >= sizes.QC
                if verdict is CandidateClass.INCOMPLETE:
                    assert len(possible_hosts) < sizes.QC
                if verdict is CandidateClass.REPAIRABLE:
                    assert benign_hosts & heard
