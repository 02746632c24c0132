"""Authenticators: every server can check who reported a history, and nobody can pretend."""

import hashlib

import pytest

from bftfs.crypto.digest import MAC_BYTES, AuthenticatorKeys
from bftfs.crypto.keys import Identity, pairwise_key
from bftfs.identifiers import NodeId

N = 6
DIGEST = b"d" * 32
IDENTITIES = [Identity.generate(bytes([node + 1]) * 32) for node in range(N)]
SERVERS = [
    AuthenticatorKeys(
        NodeId(node),
        tuple(
            pairwise_key(identity, peer.public_key, purpose="authenticator") for peer in IDENTITIES
        ),
    )
    for node, identity in enumerate(IDENTITIES)
]


def test_vector() -> None:
    keys = AuthenticatorKeys(NodeId(1), tuple(bytes([node]) * 32 for node in range(3)))
    assert keys.make(bytes(32)).hex() == (
        "e5e0ad3670ff22a53ce578493c4f263f645aaf864413c9fc052c445ef36c03b24fe7a870fbfe6c17ad3ef46ee02b88e5"
    )


def test_a_mac_covers_the_maker_and_the_digest() -> None:
    key = bytes([2]) * 32
    authenticator = AuthenticatorKeys(NodeId(1), (bytes(32), bytes(32), key)).make(DIGEST)
    expected = hashlib.blake2b(
        b"\x00\x01" + DIGEST, key=key, digest_size=16, person=b"bftfs.entry"
    ).digest()
    assert authenticator[2 * MAC_BYTES :] == expected


@pytest.mark.parametrize("maker", range(N))
def test_every_server_accepts_what_a_server_made(maker: int) -> None:
    authenticator = SERVERS[maker].make(DIGEST)
    assert len(authenticator) == N * MAC_BYTES
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
    reflected = bytearray(N * MAC_BYTES)
    reflected[1 * MAC_BYTES : 2 * MAC_BYTES] = mine[4 * MAC_BYTES : 5 * MAC_BYTES]
    assert not SERVERS[1].check(claimed_by=4, digest=DIGEST, authenticator=bytes(reflected))


@pytest.mark.parametrize("length", [0, 15, MAC_BYTES, N * MAC_BYTES - 1, N * MAC_BYTES + 1])
def test_a_wrong_length_is_false_not_an_error(length: int) -> None:
    assert not SERVERS[0].check(claimed_by=1, digest=DIGEST, authenticator=bytes(length))


def test_only_ones_own_entry_counts() -> None:
    """A Byzantine server can convince some servers and not others; [Q/U §4.3.4] lives with it."""
    authenticator = bytearray(SERVERS[1].make(DIGEST))
    authenticator[3 * MAC_BYTES] ^= 1
    verdicts = [
        server.check(claimed_by=1, digest=DIGEST, authenticator=bytes(authenticator))
        for server in SERVERS
    ]
    assert verdicts == [True, True, True, False, True, True]
