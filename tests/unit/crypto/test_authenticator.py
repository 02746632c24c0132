"""Authenticators: every server can check who reported a history, and nobody can pretend."""

import hashlib
from collections.abc import Sequence
from itertools import permutations

import pytest

from bftfs.crypto.digest import (
    LIFE_BYTES,
    MAC_BYTES,
    AuthenticatorKeys,
    authenticator_bytes,
    entries_of,
    entry_bytes,
    life_of,
    padded,
)
from bftfs.crypto.keys import Identity, authenticator_key
from bftfs.identifiers import NodeId

N = 6
WHOLE = authenticator_bytes(N)
DIGEST = b"d" * 32
IDENTITIES = [Identity.generate(bytes([node + 1]) * 32) for node in range(N)]
SERVERS = [
    AuthenticatorKeys(
        NodeId(node),
        tuple(authenticator_key(identity, peer.public_key) for peer in IDENTITIES),
    )
    for node, identity in enumerate(IDENTITIES)
]


def test_vector() -> None:
    keys = AuthenticatorKeys(NodeId(1), tuple(bytes([node]) * 32 for node in range(3)))
    assert keys.make(bytes(32)).hex() == (
        "0000000000000000"
        "bd3f97b024aed82a8f3362a55c782c6747fd39553f06a7872f10cca26cb397460805e59797b31b1a1d17f301521ed067"
    )


def test_a_mac_covers_the_maker_its_life_and_the_digest() -> None:
    key = bytes([2]) * 32
    authenticator = AuthenticatorKeys(NodeId(1), (bytes(32), bytes(32), key)).make(DIGEST)
    expected = hashlib.blake2b(
        b"\x00\x01" + bytes(LIFE_BYTES) + DIGEST, key=key, digest_size=16, person=b"bftfs.entry"
    ).digest()
    assert authenticator[LIFE_BYTES + 2 * MAC_BYTES :] == expected


@pytest.mark.parametrize("maker", range(N))
def test_every_server_accepts_what_a_server_made(maker: int) -> None:
    authenticator = SERVERS[maker].make(DIGEST)
    assert len(authenticator) == authenticator_bytes(N)
    for server in SERVERS:
        assert server.check(claimed_by=maker, digest=DIGEST, authenticator=authenticator)


def test_it_convinces_of_no_other_maker_or_digest() -> None:
    authenticator = SERVERS[1].make(DIGEST)
    for server in SERVERS:
        for claimed in range(-1, N + 1):
            if claimed != 1:
                assert not server.check(
                    claimed_by=claimed, digest=DIGEST, authenticator=authenticator
                )
        assert not server.check(claimed_by=1, digest=b"e" * 32, authenticator=authenticator)


def test_a_servers_own_mac_does_not_pass_as_its_peers() -> None:
    """The pair's key is the same in both directions; the maker's number tells them apart."""
    mine = SERVERS[1].make(DIGEST)
    reflected = bytearray(authenticator_bytes(N))
    reflected[24:40] = mine[72:88]  # the entries of 1 and 4
    assert not SERVERS[1].check(claimed_by=4, digest=DIGEST, authenticator=bytes(reflected))


@pytest.mark.parametrize("length", [0, 15, MAC_BYTES, N * MAC_BYTES, WHOLE - 1, WHOLE + 1])
def test_a_wrong_length_is_false_not_an_error(length: int) -> None:
    assert not SERVERS[0].check(claimed_by=1, digest=DIGEST, authenticator=bytes(length))


def test_only_ones_own_entry_counts() -> None:
    """A Byzantine server can convince some servers and not others; [Q/U §4.3.4] lives with it."""
    authenticator = bytearray(SERVERS[1].make(DIGEST))
    authenticator[LIFE_BYTES + 3 * MAC_BYTES] ^= 1
    verdicts = [
        server.check(claimed_by=1, digest=DIGEST, authenticator=bytes(authenticator))
        for server in SERVERS
    ]
    assert verdicts == [True, True, True, False, True, True]


# --- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("makers", [(), (4,), (0, 1, 2, 3, 5), range(N)])
def test_a_server_checks_its_entries_alone(makers: Sequence[int]) -> None:
    """And every other server's entries in their place are refuted."""
    whole = b"".join(SERVERS[maker].make(DIGEST) for maker in makers)
    of_all = entries_of(whole, N)
    assert {len(each) for each in of_all} == {len(makers) * entry_bytes(N)}
    for server, other in permutations(range(N), 2) if makers else ():
        numbers = bytes(makers)
        refuted = SERVERS[server].refuted
        assert refuted(makers=numbers, digest=DIGEST, entries=of_all[server]) == ([], [])
        assert refuted(makers=numbers, digest=DIGEST, entries=of_all[other])[0] == list(makers)


def test_entries_tell_the_lives_that_authenticators_tell() -> None:
    one, other, third = servers()
    other.learn(2, 3)
    whole = padded([one.make_knowing(DIGEST), other.make_knowing(DIGEST)])
    of_all = entries_of(whole, 3)
    assert [len(each) for each in of_all] == [2 * entry_bytes(3, knowing=True)] * 3
    for server in (one, other, third):
        entries = of_all[server.node]
        assert server.refuted(makers=b"\0\1", digest=DIGEST, entries=entries) == ([], [])
        spoilt = entries[:-1] + b"\4"
        assert server.refuted(makers=b"\0\1", digest=DIGEST, entries=spoilt) == ([1], [])


@pytest.mark.parametrize("length", [1, WHOLE - 1, WHOLE + 1, 2 * WHOLE - 8])
def test_what_cannot_be_authenticators_has_no_entries(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes"):
        entries_of(bytes(length), N)


# --- lives ---------------------------------------------------------------------------------------


def servers() -> list[AuthenticatorKeys]:
    return [
        AuthenticatorKeys(
            NodeId(node), tuple(bytes([1 + node * peer, 1 + node + peer]) for peer in range(3))
        )
        for node in range(3)
    ]


def refuted(judge: AuthenticatorKeys, authenticator: bytes) -> tuple[list[int], list[int]]:
    """What `judge` says of the first server's authenticator, of which it sees its entry."""
    entry = entries_of(authenticator, 3)[judge.node]
    return judge.refuted(makers=b"\0", digest=DIGEST, entries=entry)


def test_what_was_made_in_an_earlier_life_is_outlived() -> None:
    one, other, _ = servers()
    before = one.make(DIGEST)
    one.learn(0, 1)
    after = one.make(DIGEST)
    assert (life_of(before), life_of(after)) == (0, 1)
    assert refuted(other, before) == ([], [])
    assert refuted(other, after) == ([], [])
    assert other.lives == (1, 0, 0)  # which a valid one of that life has told
    assert refuted(other, before) == ([], [0])
    assert not other.check(claimed_by=0, digest=DIGEST, authenticator=before)


def test_nobody_can_say_that_another_has_begun_a_new_life() -> None:
    one, other, _ = servers()
    forged = (7).to_bytes(LIFE_BYTES, "big") + one.make(DIGEST)[LIFE_BYTES:]
    assert refuted(other, forged) == ([0], [])
    assert other.lives == (0, 0, 0)


def test_of_its_own_lives_a_server_knows_by_itself() -> None:
    one, _, _ = servers()
    later = one.make(DIGEST, life=3)
    assert refuted(one, later) == ([], [0])
    assert one.lives == (0, 0, 0)
