"""Noise IK: another implementation's vectors, and that nothing else opens."""

from collections.abc import Callable

import pytest

from bftfs.crypto import noise
from bftfs.crypto.keys import AgreementKey
from bftfs.crypto.noise import (
    FIRST_MESSAGE_BYTES,
    MESSAGES_PER_KEY,
    SECOND_MESSAGE_BYTES,
    CipherState,
    Initiator,
    Responder,
)
from bftfs.errors import InvalidAuthenticator

# The inputs of the vectors that implementations of Noise exchange (cacophony's). The messages were
# made by the package noiseprotocol 0.3.1.
INITIATOR = AgreementKey(
    bytes.fromhex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1")
)
INITIATOR_EPHEMERAL = AgreementKey(
    bytes.fromhex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")
)
RESPONDER = AgreementKey(
    bytes.fromhex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893")
)
RESPONDER_EPHEMERAL = AgreementKey(
    bytes.fromhex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
)
PROLOGUE = b"John Galt"
PAYLOADS = (
    b"Ludwig von Mises",
    b"Murray Rothbard",
    b"F. A. Hayek",
    b"Carl Menger",
    b"Jean-Baptiste Say",
    "Eugen Böhm von Bawerk".encode("latin-1"),
)
MESSAGES = (
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c794410ade309f400533fbc81fb0e8b552880"
    "91ab5fe35d8c3d5033dbec503bcfa06269d8692447295ef3f3f47a1d6e6048bc4889db4631c5f5d18d37edd34e113a66"
    "4e2eb59ac55371831af42186f54915eb",
    "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f14480884361923da61bbe936aa0e52e679c8a0341"
    "ab3e9ebca061b0423d0758f1c92d86",
    "76c378c26ad0616d8b5d12fb30069a3d2006f09c736d133b1b00e2",
    "44256a9fc73f965bb05905cea2c7f42446fdaeaad4005e3bfd5363",
    "a760601455d420b671156c561657a8fdc110686208d9ef8f524ad3841f5718ffa9",
    "a718f0df83c0a5e0715f7212aff997d406a65f06660102a7f522d9d5dd8bbd711789825bd4",
)
REKEYED = "ee7c4499ef232184f3049ca5194ffafaa07c36354fa224"  # the initiator's third: "rekeyed"


def ends(prologue: bytes = PROLOGUE) -> tuple[Initiator, Responder]:
    initiator = Initiator(
        static=INITIATOR,
        ephemeral=INITIATOR_EPHEMERAL,
        responder=RESPONDER.public,
        prologue=PROLOGUE,
    )
    return initiator, Responder(static=RESPONDER, prologue=prologue)


def test_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    initiator, responder = ends()
    first = initiator.first_message(PAYLOADS[0])
    assert first.hex() == MESSAGES[0]
    assert responder.read_first(first) == (INITIATOR.public, PAYLOADS[0])
    second = responder.second_message(PAYLOADS[1], RESPONDER_EPHEMERAL)
    assert second.hex() == MESSAGES[1]
    assert initiator.read_second(second) == PAYLOADS[1]
    assert len(first) == FIRST_MESSAGE_BYTES + len(PAYLOADS[0])
    assert len(second) == SECOND_MESSAGE_BYTES + len(PAYLOADS[1])
    monkeypatch.setattr(noise, "MESSAGES_PER_KEY", 2)
    forth, back = initiator.ciphers()
    their_forth, their_back = responder.ciphers()
    for at in (2, 4):
        assert forth.seal(PAYLOADS[at]).hex() == MESSAGES[at]
        assert their_forth.open(bytes.fromhex(MESSAGES[at])) == PAYLOADS[at]
    for at in (3, 5):
        assert their_back.seal(PAYLOADS[at]).hex() == MESSAGES[at]
        assert back.open(bytes.fromhex(MESSAGES[at])) == PAYLOADS[at]
    assert forth.seal(b"rekeyed").hex() == REKEYED
    assert their_forth.open(bytes.fromhex(REKEYED)) == b"rekeyed"


def test_each_byte_of_the_first_message_matters() -> None:
    first = ends()[0].first_message(b"payload")
    for at in range(len(first)):
        altered = first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]
        with pytest.raises(InvalidAuthenticator):
            ends()[1].read_first(altered)


def test_each_byte_of_the_second_message_matters() -> None:
    for at in range(SECOND_MESSAGE_BYTES + 1):
        initiator, responder = ends()
        responder.read_first(initiator.first_message(b""))
        second = bytearray(responder.second_message(b"\1", RESPONDER_EPHEMERAL))
        second[at] ^= 0x80 if at == 31 else 1
        if at == 31:  # X25519 ignores the highest bit; the transcript does not
            assert AgreementKey(b"k" * 32).agree(bytes(second[:32]))
        with pytest.raises(InvalidAuthenticator):
            initiator.read_second(bytes(second))


def test_both_ends_mean_the_same() -> None:
    initiator, responder = ends(b"another purpose")
    with pytest.raises(InvalidAuthenticator):
        responder.read_first(initiator.first_message(b""))


def test_keys_of_low_order_agree_on_nothing() -> None:
    with pytest.raises(InvalidAuthenticator):
        ends()[1].read_first(bytes(FIRST_MESSAGE_BYTES))


def ciphers() -> tuple[CipherState, CipherState]:
    return CipherState(b"k" * 32), CipherState(b"k" * 32)


@pytest.mark.parametrize(
    "changed",
    [
        lambda one, two: two,
        lambda one, two: one[:-1],
        lambda one, two: one + b"\0",
        lambda one, two: b"",
    ],
    ids=["reordered", "cut", "longer", "empty"],
)
def test_messages_open_whole_and_in_order(changed: Callable[[bytes, bytes], bytes]) -> None:
    sender, receiver = ciphers()
    with pytest.raises(InvalidAuthenticator):
        receiver.open(changed(sender.seal(b"one"), sender.seal(b"two")))


def test_a_message_opens_once() -> None:
    sender, receiver = ciphers()
    sealed = sender.seal(b"one")
    assert receiver.open(sealed) == b"one"
    with pytest.raises(InvalidAuthenticator):
        receiver.open(sealed)


def test_a_key_is_good_for_so_many_messages() -> None:
    """Both ends take the next one; the last one opens nothing any more."""
    sender, receiver = ciphers()
    old = sender._cipher
    for _ in range(MESSAGES_PER_KEY):
        receiver.open(sender.seal(b""))
    assert sender._cipher is old
    sealed = sender.seal(b"under the next key")
    assert sender._cipher is not old
    assert receiver.open(sealed) == b"under the next key"


def test_must_fail_where_only_one_end_takes_the_next_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MESSAGES_PER_KEY", 2)
    sender, receiver = ciphers()
    receiver._until = 100
    for _ in range(2):
        receiver.open(sender.seal(b""))
    with pytest.raises(InvalidAuthenticator):
        receiver.open(sender.seal(b""))


def test_no_number_is_used_twice() -> None:
    sender, _ = ciphers()
    sender._number = sender._until = (1 << 64) - MESSAGES_PER_KEY
    with pytest.raises(OverflowError):
        sender.seal(b"")
