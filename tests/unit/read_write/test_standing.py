from __future__ import annotations

from bftfs import limits
from bftfs.identifiers import NodeId
from bftfs.read_write.standing import Patience, Standings

NODE, OTHER = NodeId(2), NodeId(4)


def test_a_silent_node_is_avoided_for_a_while() -> None:
    standings = Standings(6)
    assert not standings.marked
    standings.silent(NODE, 1_000)
    assert standings.marked
    assert standings.avoided(1_000) == {NODE}
    assert standings.avoided(1_000 + limits.AVOID_SILENT_US) == frozenset()
    assert not standings.marked


def test_an_answer_ends_the_suspicion_of_silence() -> None:
    standings = Standings(6)
    standings.silent(NODE, 1_000)
    standings.silent(NODE, 1_500)
    standings.heard(OTHER, 2_000)
    assert standings.marked
    standings.heard(NODE, 2_000)
    assert not standings.marked
    assert standings.avoided(2_000) == frozenset()


def test_who_answers_now_and_then_is_forgiven_once_in_a_while() -> None:
    standings = Standings(6)
    standings.silent(NODE, 1_000)
    standings.heard(NODE, 2_000)
    standings.silent(NODE, 3_000)
    standings.heard(NODE, 4_000)
    assert standings.avoided(4_000) == {NODE}
    assert standings.avoided(3_000 + limits.AVOID_SILENT_US) == frozenset()
    # A minute without another silence, and its word counts again.
    later_us = 2_000 + limits.WATCH_FORGIVEN_US
    standings.silent(NODE, later_us)
    standings.heard(NODE, later_us + 1)
    assert standings.avoided(later_us + 1) == frozenset()


def test_an_answer_does_not_excuse_a_false_fragment() -> None:
    standings = Standings(6)
    standings.faulty(NODE, 1_000)
    standings.silent(NODE, 2_000)
    standings.faulty(NODE, 2_000)
    standings.silent(NODE, 3_000)
    standings.heard(NODE, 4_000)
    assert standings.avoided(2_000 + limits.AVOID_SILENT_US) == {NODE}
    assert standings.faults == [0, 0, 2, 0, 0, 0]
    assert standings.avoided(2_000 + limits.AVOID_FAULTY_US) == frozenset()


def test_a_later_silence_does_not_shorten_the_suspicion_of_a_fault() -> None:
    standings = Standings(6)
    standings.faulty(NODE, 1_000)
    standings.silent(NODE, 2_000)
    assert standings.avoided(1_000 + limits.AVOID_FAULTY_US - 1) == {NODE}


def test_patience_grows_where_the_network_is_slow_and_shrinks_again() -> None:
    patience = Patience(1_000)
    patience.sufficed()
    assert patience.us == 1_000
    patience.was_too_short()
    patience.was_too_short()
    assert patience.us == 4_000
    patience.sufficed()
    assert 1_000 < patience.us < 4_000
    for _ in range(1_000):
        patience.sufficed()
    assert patience.us < 1_064
    for _ in range(100):
        patience.was_too_short()
    assert patience.us == limits.PATIENCE_MOST_US
