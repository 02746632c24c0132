"""Bookkeeping of one read: what a reply is worth."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import NodeId
from bftfs.read_write.messages import Below, Listed, ReadReply
from bftfs.read_write.responses import ReplyVerdict, Responses
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, successor_of
from bftfs.read_write.writing import Encoded, encode
from bftfs.simulation.deployment import client_named
from tests.unit.read_write.harness import DEFAULT

CODE = ErasureCode(3, 6)
ENCODED = encode(CODE, b"the item" * 10)
OTHER = encode(CODE, b"another!" * 10)


def at(time: int, encoded: Encoded = ENCODED) -> BlockTimestamp:
    return BlockTimestamp(time, client_named("alice"), encoded.verifier)


def listing(*times: int, below: Below = Below.ORIGIN) -> ReadReply:
    return ReadReply(tuple(Listed(at(time), False) for time in times), below, b"")


def with_data(time: int, encoded: Encoded = ENCODED) -> ReadReply:
    return ReadReply((Listed(at(time, encoded), False),), Below.ORIGIN, encoded.cross_checksum)


@pytest.fixture
def responses() -> Responses:
    return Responses(DEFAULT, rotation=0)


def add(
    responses: Responses,
    node: int,
    reply: ReadReply,
    fragment: Any = b"",
    *,
    before: BlockTimestamp | None = None,
    want_data: bool = False,
    lists: bool = True,
) -> ReplyVerdict:
    return responses.add(
        NodeId(node), reply, fragment, before=before, want_data=want_data, lists=lists
    )


def test_the_candidate_is_the_greatest_valid_timestamp(
    responses: Responses,
) -> None:
    assert responses.candidate(None) is None
    add(responses, 0, listing(7, 3))
    add(responses, 1, listing(5))
    add(responses, 2, listing())
    assert responses.candidate(None) == at(7)
    assert responses.candidate(at(7)) == at(5)
    assert responses.candidate(at(5)) == at(3)
    assert responses.candidate(at(3)) == ZERO
    assert responses.candidate(ZERO) is None
    assert responses.hosts(at(5)) == [1]
    assert responses.hosts(ZERO) == [0, 1, 2]


def test_a_truncated_history_says_nothing_below_it(responses: Responses) -> None:
    add(responses, 0, listing(7, 5, below=Below.MORE))
    add(responses, 1, listing(7, below=Below.MORE))
    assert responses.heard(at(7)) == [0, 1]
    assert responses.heard(at(5)) == [0]
    assert responses.heard(at(4)) == []
    add(responses, 1, listing(2), before=at(7))
    assert responses.heard(ZERO) == [1]
    assert responses.hosts(ZERO) == [1]


def test_collected_versions_are_not_absent_but_unknown(responses: Responses) -> None:
    assert add(responses, 0, listing(9, below=Below.COLLECTED)) is ReplyVerdict.VALID
    assert responses.heard(at(9)) == [0]
    assert responses.heard(at(8)) == []
    assert add(responses, 1, listing(below=Below.COLLECTED), before=at(5)) is ReplyVerdict.VALID
    assert responses.heard(at(4)) == []
    assert responses.collected == {0, 1}


def test_fragments_in_hand_match_what_their_timestamp_binds(responses: Responses) -> None:
    for node in (0, 3, 5):
        fragment = ENCODED.fragments[node]
        assert add(responses, node, with_data(7), fragment, want_data=True) is ReplyVerdict.VALID
    assert sorted(responses.fragments(at(7))) == [0, 3, 5]
    assert responses.has_fragment_of(NodeId(3), at(7))
    assert not responses.has_fragment_of(NodeId(1), at(7))
    assert responses.cross_checksum(at(7)) == ENCODED.cross_checksum


def test_fragments_go_by_the_rotation_of_the_block() -> None:
    responses = Responses(DEFAULT, rotation=2)
    assert (
        add(responses, 2, with_data(7), ENCODED.fragments[0], want_data=True) is ReplyVerdict.VALID
    )
    assert (
        add(responses, 1, with_data(7), ENCODED.fragments[5], want_data=True) is ReplyVerdict.VALID
    )
    assert sorted(responses.fragments(at(7))) == [0, 5]


@pytest.mark.parametrize(
    "fragment", [b"", ENCODED.fragments[1], bytes(ENCODED.fragments[0])[:-1], OTHER.fragments[0]]
)
def test_a_false_fragment_convicts_the_node(responses: Responses, fragment: Any) -> None:
    assert add(responses, 0, with_data(7), fragment, want_data=True) is ReplyVerdict.DAMAGED
    assert responses.discarded == {0}
    assert responses.heard(at(7)) == []
    assert add(responses, 0, listing(7)) is ReplyVerdict.IMPOSSIBLE


@pytest.mark.parametrize(
    ("reply", "fragment", "before", "want_data"),
    [
        pytest.param(listing(3, 5), b"", None, False, id="history does not descend"),
        pytest.param(listing(5, 5), b"", None, False, id="history repeats"),
        pytest.param(listing(5), b"", at(5), False, id="not strictly below"),
        pytest.param(listing(6), b"", at(5), False, id="above the bound"),
        pytest.param(
            ReadReply((Listed(ZERO, True),), Below.ORIGIN, b""), b"", None, False, id="lists zero"
        ),
        pytest.param(listing(5), b"data", None, False, id="a witness with data"),
        pytest.param(with_data(5), b"", None, False, id="a witness with a cross-checksum"),
        pytest.param(listing(below=Below.MORE), b"", at(5), False, id="more below nothing"),
        pytest.param(listing(below=Below.COLLECTED), b"", None, False, id="has lost the latest"),
        pytest.param(
            ReadReply((), Below.ORIGIN, ENCODED.cross_checksum), b"", None, True, id="⊥ with CC"
        ),
        pytest.param(listing(5), ENCODED.fragments[0], None, True, id="no cross-checksum"),
        pytest.param(
            ReadReply((Listed(at(5), False),), Below.ORIGIN, OTHER.cross_checksum),
            OTHER.fragments[0],
            None,
            True,
            id="cross-checksum and verifier differ",
        ),
    ],
)
def test_what_no_correct_node_sends_convicts_it(
    responses: Responses,
    reply: ReadReply,
    fragment: Any,
    before: BlockTimestamp | None,
    *,
    want_data: bool,
) -> None:
    verdict = add(responses, 0, reply, fragment, before=before, want_data=want_data)
    assert verdict is ReplyVerdict.IMPOSSIBLE
    assert responses.discarded == {0}
    assert responses.candidate(None) is None


def test_a_second_cross_checksum_for_one_timestamp_is_a_lie(responses: Responses) -> None:
    add(responses, 0, with_data(7), ENCODED.fragments[0], want_data=True)
    lie = ReadReply((Listed(at(7), False),), Below.ORIGIN, OTHER.cross_checksum)
    assert add(responses, 1, lie, OTHER.fragments[1], want_data=True) is ReplyVerdict.IMPOSSIBLE


def test_conviction_takes_back_what_the_node_had_said(responses: Responses) -> None:
    add(responses, 0, listing(7))
    add(responses, 1, listing(7))
    add(responses, 0, listing(3, 5), before=at(7))
    assert responses.hosts(at(7)) == [1]
    assert responses.heard(at(7)) == [1]


def test_what_a_damaged_node_lists_is_kept_apart(responses: Responses) -> None:
    add(responses, 0, with_data(7), b"rotten", want_data=True)
    assert responses.hosts(at(7)) == responses.heard(at(7)) == []
    assert responses.damaged_hosts(at(7)) == [0]
    assert responses.damaged_hosts(at(6)) == []
    assert responses.damaged_heard(at(6)) == [0]
    more = ReadReply((Listed(at(7), False),), Below.MORE, ENCODED.cross_checksum)
    add(responses, 1, more, b"rotten", want_data=True)
    assert responses.damaged_heard(at(6)) == [0]
    assert responses.damaged_hosts(at(7)) == [0, 1]
    assert responses.fragments(at(7)) == {}
    assert responses.discarded == {0, 1}


def test_lies_are_no_damage(responses: Responses) -> None:
    for node in (0, 1, 2):
        add(responses, node, listing(3, 5))
    assert responses.candidate(None) is None
    assert not responses.damaged


def test_a_fetched_fragment_tells_of_no_other_version(responses: Responses) -> None:
    add(responses, 0, listing(9, below=Below.MORE))
    reply = ReadReply((Listed(at(7), False),), Below.MORE, ENCODED.cross_checksum)
    verdict = add(
        responses,
        0,
        reply,
        ENCODED.fragments[0],
        before=successor_of(at(7)),
        want_data=True,
        lists=False,
    )
    assert verdict is ReplyVerdict.VALID
    assert responses.heard(at(7)) == []
    assert list(responses.fragments(at(7))) == [0]


def test_a_withdrawn_version_is_not_hosted(responses: Responses) -> None:
    add(responses, 0, listing(7))
    add(responses, 1, listing(7))
    responses.withdraw(NodeId(0), at(7), collected=False)
    assert responses.hosts(at(7)) == [1]
    assert responses.heard(at(7)) == [0, 1]
    responses.withdraw(NodeId(1), at(7), collected=True)
    assert responses.heard(at(7)) == [0]
    assert responses.collected == {1}


def test_verified_by_b_plus_one(responses: Responses) -> None:
    verified = ReadReply((Listed(at(7), True),), Below.ORIGIN, b"")
    add(responses, 0, verified)
    add(responses, 1, listing(7))
    assert not responses.verified(at(7))
    add(responses, 2, verified)
    assert responses.verified(at(7))
    assert not responses.verified(ZERO)
