"""Which statements of servers a client counts together, and whom it believes about others."""

from __future__ import annotations

from bftfs.asking.lives import Lives, Told
from bftfs.identifiers import NodeId

ONE, TWO, THREE = NodeId(0), NodeId(1), NodeId(2)


def heard(*told: Told) -> dict[NodeId, Told]:
    return {NodeId(node): each for node, each in enumerate(told)}


def test_servers_that_agree_count_together() -> None:
    lives = Lives()
    assert lives.agree(heard((0, 0, 0), (0, 0, 0)), lives.begin())
    assert lives.agree(heard((1, 0, 0), (0, 0, 0)), lives.begin())  # two has not heard of it yet
    assert lives.agree(heard((1, 0, 0), (1, 0, 5)), lives.begin())  # three is not among them


def test_one_that_is_known_to_have_begun_a_new_life_does_not_count() -> None:
    lives = Lives()
    assert not lives.agree(heard((0, 0, 0), (1, 0, 0)), lives.begin())
    assert lives.agree(heard((1, 0, 0), (1, 0, 0)), lives.begin())


def test_who_claims_it_falsely_is_not_listened_to_again() -> None:
    lives = Lives()
    assert not lives.agree(heard((0, 0, 0), (1, 0, 0)), lives.begin())
    assert lives.agree(heard((0, 0, 0), (1, 0, 0)), lives.begin())
    assert lives.agree(heard((0, 0, 0), (9, 0, 0)), lives.begin())
    assert not lives.believes(TWO, ONE)
    assert not lives.agree({ONE: (0, 0, 0), THREE: (1, 0, 0)}, lives.begin())


def test_a_liar_gains_nothing_by_ever_higher_claims() -> None:
    lives = Lives()
    outcomes = [lives.agree(heard((0, 0, 0), (life, 0, 0)), lives.begin()) for life in range(1, 9)]
    assert outcomes == [False] + [True] * 7


def test_a_claim_is_not_refuted_by_a_round_that_began_before() -> None:
    """The server may have answered that round before it lost its store."""
    lives = Lives()
    earlier, later = lives.begin(), lives.begin()
    assert not lives.agree(heard((0, 0, 0), (1, 0, 0)), later)
    assert not lives.agree(heard((0, 0, 0), (1, 0, 0)), earlier)
    assert lives.believes(TWO, ONE)


def test_a_server_may_lose_its_store_again() -> None:
    lives = Lives()
    assert not lives.agree(heard((0, 0, 0), (1, 0, 0)), lives.begin())
    assert lives.agree(heard((1, 0, 0), (1, 0, 0)), lives.begin())
    assert not lives.agree(heard((1, 0, 0), (2, 0, 0)), lives.begin())
    assert lives.believes(TWO, ONE)


def test_who_answers_only_where_its_victim_is_not_asked_is_refuted_all_the_same() -> None:
    lives, told = Lives(), {TWO: (9, 0, 0)}
    victim = {ONE: (0, 0, 0), THREE: (0, 0, 0)}
    assert not lives.agree(victim, lives.begin(), told)
    assert lives.agree(victim, lives.begin(), told)
    assert not lives.believes(TWO, ONE)


def test_rounds_that_overlap_do_not_keep_a_false_claim_alive() -> None:
    lives, lie = Lives(), heard((0, 0, 0), (1, 0, 0))
    began = lives.begin()
    assert not lives.agree(lie, began)
    again = lives.begin()
    assert not lives.agree(lie, began)
    assert lives.agree(lie, again)
    assert not lives.believes(TWO, ONE)
