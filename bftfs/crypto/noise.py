"""`Noise_IK_25519_AESGCM_BLAKE2b`: the key exchange and the ciphers of a secret connection.

The Noise Protocol Framework (revision 34, noiseprotocol.org) prescribes each step here. Its pattern
IK is for an initiator that knows the responder's static key, and sends its own, encrypted, at once:

    <- s
    ...
    -> e, es, s, ss
    <- e, ee, se

What it gives, by section 7.7 of the specification: only the responder can read who the initiator
is; after both messages each end knows that the other one holds its static key; nobody else can read
what they send then, not even a thief who later gets both static keys. An attacker who has recorded
the first message can repeat it. So it carries the initiator's name only, and proves nothing until a
message has come under the keys that the second one brings.

The cipher of one direction numbers its messages: none can be left out, repeated or reordered. After
each `MESSAGES_PER_KEY` messages both ends go on with the key that the specification's REKEY makes
of the last. This bounds what is encrypted under one key, and a thief of one key cannot open what
was sent under those before it.

Unlike [Noise §3]: a message is not limited to 65,535 bytes, but by its caller. That limit spares
programs large buffers; AES-GCM's own is 64 GiB.

Entropy is an argument: nothing here draws randomness.
"""

from __future__ import annotations

import hashlib
import hmac
from struct import Struct
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bftfs.crypto.keys import AGREEMENT_BYTES, AgreementKey
from bftfs.errors import InvalidAuthenticator

Buffer: TypeAlias = bytes | bytearray | memoryview

PROTOCOL = b"Noise_IK_25519_AESGCM_BLAKE2b"
TAG_BYTES = 16
MESSAGES_PER_KEY = 1 << 16
FIRST_MESSAGE_BYTES = 2 * (AGREEMENT_BYTES + TAG_BYTES)  # and its payload
SECOND_MESSAGE_BYTES = AGREEMENT_BYTES + TAG_BYTES  # and its payload

_KEY_BYTES = 32
_HASH_BYTES = 64
_NONCE = Struct("!IQ")  # zeros, and the message's number
_REKEYING = _NONCE.pack(0, (1 << 64) - 1)


class CipherState:
    """The messages of one direction, in their order: seals them, or opens them. [Noise §5.1]"""

    __slots__ = ("_cipher", "_number", "_until")

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0
        self._until = MESSAGES_PER_KEY  # the first message under the next key

    def seal(self, plaintext: Buffer) -> bytes:
        """The next message, sealed: `TAG_BYTES` longer than `plaintext`."""
        number = self._number
        if number == self._until:
            self._rekey()
        self._number = number + 1
        return self._cipher.encrypt(_NONCE.pack(0, number), plaintext, None)

    def open(self, sealed: Buffer) -> bytes:
        """The plaintext of the next message that the other end has sealed.

        Raises InvalidAuthenticator for any other bytes: the connection cannot be used any more.
        """
        number = self._number
        if number == self._until:
            self._rekey()
        try:
            opened = self._cipher.decrypt(_NONCE.pack(0, number), sealed, None)
        except InvalidTag as error:
            raise InvalidAuthenticator(f"message {number} is not what was sealed") from error
        self._number = number + 1
        return opened

    def _rekey(self) -> None:
        """The next key. [Noise §4.2, REKEY]"""
        if self._until + MESSAGES_PER_KEY >= 1 << 64:
            raise OverflowError("2**64 messages in one direction")
        self._until += MESSAGES_PER_KEY
        renewed = self._cipher.encrypt(_REKEYING, bytes(_KEY_BYTES), None)
        self._cipher = AESGCM(renewed[:_KEY_BYTES])


class _SymmetricState:
    """The hash of all that was sent so far, and the keys derived from it. [Noise §5.2]"""

    __slots__ = ("_chaining", "_cipher", "_hash", "_number")

    def __init__(self, prologue: bytes) -> None:
        self._hash = self._chaining = PROTOCOL.ljust(_HASH_BYTES, b"\0")
        self._cipher: AESGCM | None = None
        self._number = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.blake2b(self._hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining, key = _derived(self._chaining, secret)
        self._cipher = AESGCM(key[:_KEY_BYTES])
        self._number = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        assert self._cipher is not None
        sealed = self._cipher.encrypt(_NONCE.pack(0, self._number), plaintext, self._hash)
        self._number += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        assert self._cipher is not None
        try:
            plaintext = self._cipher.decrypt(_NONCE.pack(0, self._number), sealed, self._hash)
        except InvalidTag as error:
            raise InvalidAuthenticator("a greeting that is not for us, or is damaged") from error
        self._number += 1
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = _derived(self._chaining, b"")
        return CipherState(first[:_KEY_BYTES]), CipherState(second[:_KEY_BYTES])


def _derived(chaining: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Two outputs of HKDF. [Noise §4.3]"""
    pseudorandom = hmac.digest(chaining, secret, "blake2b")
    first = hmac.digest(pseudorandom, b"\1", "blake2b")
    return first, hmac.digest(pseudorandom, first + b"\2", "blake2b")


class Initiator:
    """The end that begins. Each method is called once, in this order."""

    def __init__(
        self, *, static: AgreementKey, ephemeral: AgreementKey, responder: bytes, prologue: bytes
    ) -> None:
        """`responder`: its static public key. `ephemeral` is used for this exchange only."""
        self._state = _SymmetricState(prologue)
        self._state.mix_hash(responder)
        self._static, self._ephemeral, self._responder = static, ephemeral, responder

    def first_message(self, payload: bytes) -> bytes:
        """e, es, s, ss. The payload is secret, but a recorded one can be sent again."""
        state, ephemeral = self._state, self._ephemeral
        state.mix_hash(ephemeral.public)
        state.mix_key(ephemeral.agree(self._responder))
        static = state.encrypt(self._static.public)
        state.mix_key(self._static.agree(self._responder))
        return ephemeral.public + static + state.encrypt(payload)

    def read_second(self, message: bytes) -> bytes:
        """The payload of the responder's answer. Raises InvalidAuthenticator if it is none."""
        state, theirs = self._state, message[:AGREEMENT_BYTES]
        state.mix_hash(theirs)
        state.mix_key(self._ephemeral.agree(theirs))
        state.mix_key(self._static.agree(theirs))
        return state.decrypt(message[AGREEMENT_BYTES:])

    def ciphers(self) -> tuple[CipherState, CipherState]:
        """Two ciphers: of the messages to the responder, and of those to the initiator."""
        return self._state.split()


class Responder:
    """The end that answers. Each method is called once, in this order."""

    def __init__(self, *, static: AgreementKey, prologue: bytes) -> None:
        self._state = _SymmetricState(prologue)
        self._state.mix_hash(static.public)
        self._static = static
        self._initiator = self._theirs = b""

    def read_first(self, message: bytes) -> tuple[bytes, bytes]:
        """The initiator's static public key, as it claims, and the payload.

        Raises InvalidAuthenticator if nobody who holds this key has made the message.
        """
        state, static = self._state, self._static
        theirs, rest = message[:AGREEMENT_BYTES], message[AGREEMENT_BYTES:]
        state.mix_hash(theirs)
        state.mix_key(static.agree(theirs))
        initiator = state.decrypt(rest[: AGREEMENT_BYTES + TAG_BYTES])
        state.mix_key(static.agree(initiator))
        self._initiator, self._theirs = initiator, theirs
        return initiator, state.decrypt(rest[AGREEMENT_BYTES + TAG_BYTES :])

    def second_message(self, payload: bytes, ephemeral: AgreementKey) -> bytes:
        """e, ee, se. `ephemeral` is used for this exchange only."""
        state = self._state
        state.mix_hash(ephemeral.public)
        state.mix_key(ephemeral.agree(self._theirs))
        state.mix_key(ephemeral.agree(self._initiator))
        return ephemeral.public + state.encrypt(payload)

    def ciphers(self) -> tuple[CipherState, CipherState]:
        """Two ciphers: of the messages to the responder, and of those to the initiator."""
        return self._state.split()
