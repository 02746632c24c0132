"""Which candidate a read looks at, and which node it asks for what: one line per question.

Node i hosts fragment i. N = 6, t = b = 1: five nodes are asked first, three of them for data; five
hosts make a version complete, and three make it repairable.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.lives import Lives, Told
from bftfs.asking.refusal import Refused
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.errors import NoLongerKept, VersionUnrecoverable
from bftfs.identifiers import NodeId
from bftfs.read_write.classification import CandidateClass
from bftfs.read_write.descent import Decision, Descent, Question, Usable
from bftfs.read_write.messages import Below, Listed, ReadReply
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, successor_of
from bftfs.read_write.writing import encode
from bftfs.simulation.deployment import client_named
from tests.unit.read_write.harness import BLOCK, DEFAULT

ENCODED = encode(ErasureCode(3, 6), b"the item" * 10)
NODES = tuple(NodeId(node) for node in range(6))
COMPLETE, REPAIRABLE = CandidateClass.COMPLETE, CandidateClass.REPAIRABLE


def at(time: int) -> BlockTimestamp:
    return BlockTimestamp(time, client_named("alice"), ENCODED.verifier)


class Play:
    """A descent, and the questions on their way."""

    def __init__(self, before: BlockTimestamp | None = None) -> None:
        self.descent = Descent(DEFAULT, BLOCK, before, NODES, Lives())
        self.asked: list[Question] = []
        self.ask(self.descent.begin())

    def ask(self, decision: Decision) -> Any:
        """Questions as text; anything else as it is."""
        if not isinstance(decision, list):
            return decision
        self.asked += decision
        return [_shown(question) for question in decision]

    def reply(
        self,
        node: int,
        *times: int,
        below: Below = Below.ORIGIN,
        rotten: bool = False,
        lives: Told = (),
    ) -> Any:
        """`node` lists these versions, with its fragment of the first if data was wanted."""
        question = self._question(node)
        listed = tuple(Listed(at(time), False) for time in times)
        checksum, fragment = b"", b""
        if question.want_data and times:
            checksum = ENCODED.cross_checksum
            fragment = b"rotten" if rotten else bytes(ENCODED.fragments[node])
        return self._take(question, ReadReply(listed, below, checksum, lives=lives), fragment)

    def refuse(self, node: int) -> Any:
        return self._take(self._question(node), Refused(errno.EAGAIN, "busy"), b"")

    def lapse(self) -> Any:
        return self.ask(self.descent.lapse())

    def _question(self, node: int) -> Question:
        question = next(each for each in self.asked if each.node == node)
        self.asked.remove(question)
        return question

    def _take(self, question: Question, message: Any, body: Buffer) -> Any:
        self.descent.take(question, message, body)
        return self.ask(self.descent.decide())


def _shown(question: Question) -> str:
    if question.fetches is not None:
        return f"{question.node}: fragment of {question.fetches.time}"
    below = f" below {question.before.time}" if question.before is not None else ""
    return f"{question.node}: {'data' if question.want_data else 'list'}{below}"


def test_a_complete_version_takes_one_round() -> None:
    play = Play()
    assert [_shown(question) for question in play.asked] == [
        "0: data",
        "1: data",
        "2: data",
        "3: list",
        "4: list",
    ]
    for node in range(4):
        assert play.reply(node, 7) == []
    assert play.reply(4, 7) == Usable(at(7), COMPLETE)


def test_a_block_that_was_never_written() -> None:
    play = Play()
    for node in range(4):
        assert play.reply(node) == []
    assert play.reply(4) == Usable(ZERO, COMPLETE)


def test_a_repairable_version_may_still_become_complete() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    assert play.reply(4) == ["5: list"]
    assert play.reply(5, 7) == Usable(at(7), COMPLETE)


def test_what_nobody_can_make_better_is_used() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    play.reply(4)
    assert play.reply(5) == Usable(at(7), REPAIRABLE)


def test_an_incomplete_version_is_passed_over() -> None:
    play = Play()
    assert play.reply(0, 9, 7) == []
    for node in range(1, 4):
        play.reply(node, 7)
    assert play.reply(4, 7) == ["0: fragment of 7"]
    assert play.reply(0, 7) == Usable(at(7), COMPLETE)


def test_a_version_that_fails_validation_is_passed_over() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 9, 7)
    assert play.reply(4, 9, 7) == Usable(at(9), COMPLETE)
    play.descent.pass_over(at(9))
    assert play.ask(play.descent.decide()) == [f"{node}: fragment of 7" for node in range(3)]


def test_a_false_fragment_is_replaced_by_anothers() -> None:
    play = Play()
    assert play.reply(0, 7, rotten=True) == []
    for node in range(1, 4):
        assert play.reply(node, 7) == []
    assert play.reply(4, 7) == ["5: data"]
    assert play.reply(5, 7) == Usable(at(7), COMPLETE)


def test_fragments_are_fetched_from_witnesses() -> None:
    play = Play()
    play.reply(0)
    for node in range(1, 4):
        play.reply(node, 7)
    assert play.reply(4, 7) == ["5: data"]
    assert play.reply(5) == ["3: fragment of 7"]
    (question,) = play.asked
    assert (question.before, question.history) == (successor_of(at(7)), 0)
    assert play.reply(3, 7) == Usable(at(7), REPAIRABLE)


def test_short_listings_are_asked_for_more() -> None:
    play = Play()
    play.reply(0, 9, below=Below.MORE)
    for node in range(1, 4):
        play.reply(node, 7)
    assert play.reply(4, 7) == ["0: list below 9", "5: data below 9"]


def test_silence_widens_and_a_second_one_repeats() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    assert play.lapse() == ["5: list"]
    assert play.lapse() == ["4: list", "5: list"]
    assert play.reply(5, 7) == Usable(at(7), COMPLETE)


def test_a_withheld_fragment_counts_as_silence() -> None:
    play = Play()
    play.reply(0)
    for node in range(1, 5):
        play.reply(node, 7)
    assert play.reply(5) == ["3: fragment of 7"]
    assert play.lapse() == []
    assert play.ask(play.descent.decide()) == ["4: fragment of 7"]
    assert play.lapse() == ["3: fragment of 7"]


def test_a_refusal_is_silence_until_the_next_reply() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    assert play.refuse(4) == ["5: list"]


def test_too_few_fragments_are_said_to_be_so() -> None:
    play = Play()
    for node in range(3):
        play.reply(node, 7, rotten=True)
    play.reply(3, 7)
    assert play.reply(4, 7) == ["3: fragment of 7", "4: fragment of 7"]
    play.reply(3, 7, rotten=True)
    assert play.reply(4, 7, rotten=True) == ["5: data"]
    with pytest.raises(VersionUnrecoverable, match="1 of the 3 fragments"):
        play.reply(5, 7)


def test_a_read_overtaken_by_collection_starts_anew() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 9 - node, below=Below.COLLECTED)
    assert play.reply(4, 1, below=Below.COLLECTED) == ["5: data below 9"]
    assert play.reply(5, 1, below=Below.COLLECTED) is None


def test_a_past_that_more_than_b_have_collected_is_not_kept() -> None:
    play = Play(before=at(9))
    for node in range(4):
        play.reply(node, below=Below.COLLECTED)
    play.reply(4, below=Below.COLLECTED)
    with pytest.raises(NoLongerKept):
        play.reply(5, below=Below.COLLECTED)


def test_a_lister_without_end_is_asked_so_often() -> None:
    play = Play()
    for node in range(1, 5):
        play.reply(node)
    time = 10**6
    asked = play.reply(0, time, below=Below.MORE)
    for _ in range(limits.LISTINGS_AT_ONCE):
        if "0: list" not in " ".join(asked):
            break
        time -= 1
        asked = play.reply(0, time, below=Below.MORE)
    else:
        raise AssertionError("a liar keeps the read going")


# --- lives: node 5 has never hosted the version -------------------------------------------------


def test_a_host_of_an_earlier_life_is_asked_anew() -> None:
    """Node 0 has listed the version, and lost its store; others know that when they list it."""
    play = Play()
    for node in range(4):
        assert play.reply(node, 7) == []
    assert play.reply(4, 7, lives=(1, 0, 0, 0, 0, 0)) == ["0: list", "5: list"]
    assert play.reply(0, lives=(1, 0, 0, 0, 0, 0)) == []
    assert play.reply(5) == Usable(at(7), REPAIRABLE)


def test_nor_does_a_false_fragment_of_an_earlier_life_count() -> None:
    """Its node has listed the version as well, and is not heard any more."""
    play = Play()
    for node in (1, 2, 3):
        play.reply(node, 7)
    assert play.reply(0, 7, rotten=True) == []
    assert play.reply(4, 7, lives=(1, 0, 0, 0, 0, 0)) == ["5: data"]
    assert play.reply(5, 7) == Usable(at(7), COMPLETE)


def test_it_counts_again_when_it_says_so_in_its_new_life() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    play.reply(4, 7, lives=(1, 0, 0, 0, 0, 0))
    assert play.reply(0, 7, lives=(1, 0, 0, 0, 0, 0)) == Usable(at(7), COMPLETE)


def test_a_liars_claim_holds_a_read_up_for_one_question() -> None:
    play = Play()
    for node in range(4):
        play.reply(node, 7)
    assert play.reply(4, 7, lives=(1, 1, 0, 0, 0, 0)) == ["0: list", "1: list", "5: list"]
    play.reply(0, 7)
    assert play.reply(1, 7) == Usable(at(7), COMPLETE)


def test_lists_of_two_lives_are_not_put_together() -> None:
    play = Play()
    play.reply(0, 9, below=Below.MORE)
    for node in range(1, 4):
        play.reply(node, 7)
    assert play.reply(4, 7) == ["0: list below 9", "5: data below 9"]
    assert play.reply(0, 7, lives=(1, 0, 0, 0, 0, 0)) == []
    assert play.reply(5) == ["0: data below 9"]
    assert play.reply(0, 7, lives=(1, 0, 0, 0, 0, 0)) == Usable(at(7), COMPLETE)


def test_a_list_that_comes_late_refutes_no_claim() -> None:
    """Node 0 was asked twice before it lost its store; both answers come after the others'."""
    play = Play()
    for node in range(1, 5):
        play.reply(node, 7, lives=(1, 0, 0, 0, 0, 0))
    play.lapse()
    assert "0: data" in play.lapse()
    assert play.reply(0, 7) == ["0: list"]
    assert play.reply(0, 7) == []
    assert play.reply(5) == []
    play.lapse()
    assert play.ask(play.descent.decide()) == Usable(at(7), REPAIRABLE)
