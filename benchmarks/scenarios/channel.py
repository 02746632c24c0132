"""The cost of encrypting a message of the channel, for each construction that was compared.

Each construction joins two ends in memory. A message has a head of 16 bytes, encoded metadata, and
for the largest size a body. The channel of bftfs seals its head together with the metadata; the
others seal each part, as the channel did when they were compared. "seal" is what its
sender does until the bytes could be sent, "open" what its receiver does from these bytes until it
has metadata and body; "greet" is all that both ends do before the first message. Figures are
processor time, in turns. "MACs" encrypts nothing: what the channel did before, with the hash of the
body that a receiver needs in any case to compare a fragment with its cross-checksum.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Protocol

from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from nacl import bindings

from benchmarks.errors import WorkloadError
from benchmarks.measurement import Measure, Sample
from benchmarks.session import Place, Session
from bftfs.crypto.keys import Identity
from bftfs.crypto.noise import Buffer
from bftfs.identifiers import NodeId
from bftfs.limits import KIB
from bftfs.wire.channel import ClientChannel, ServerChannel

NAME = "channel"
SIZES = (200, 4 * KIB, 128 * KIB)  # of a message; the last one is a body behind the first
_METADATA = SIZES[0]
_HEAD = Struct("!QII")
_NONCE = Struct("!IQ")
_TAG = 16
_CLUSTER_ID = b"benchmark.......".ljust(16)

_AT_ONCE = 16  # messages that are sealed before they are opened

Message = tuple[bytes, Buffer]  # metadata, body


class Ends(Protocol):
    """A session: what one end seals, the other one opens."""

    def seal(self, metadata: bytes, body: bytes) -> list[Buffer]:
        """The buffers to send."""

    def open(self, stream: bytes) -> Message:
        """The message in these bytes."""


class Product:
    """The channel as nodes and clients use it."""

    def __init__(self) -> None:
        client, node = (Identity(os.urandom(32)) for _ in range(2))
        self._client = ClientChannel(
            identity=client,
            node=NodeId(0),
            node_public_key=node.public_key,
            cluster_id=_CLUSTER_ID,
            view=1,
            entropy=os.urandom(32),
        )
        self._node = ServerChannel[bool](
            identity=node,
            node=NodeId(0),
            cluster_id=_CLUSTER_ID,
            view=1,
            principal=lambda _: True,
            entropy=os.urandom(32),
        )
        self._node.receive(self._client.opening())
        self._client.receive(self._node.pending_output())
        self._node.receive(b"".join(self._client.confirmation()))

    def seal(self, metadata: bytes, body: bytes) -> list[Buffer]:
        return self._client.seal_request(1, metadata, body)

    def open(self, stream: bytes) -> Message:
        (frame,) = self._node.receive(stream)
        return frame.metadata, frame.body


class Parts:
    """Head, metadata and body, each sealed by itself by two ends of one cipher."""

    def __init__(self, seal: Callable[[bytes], bytes], open_: Callable[[Buffer], bytes]) -> None:
        self._seal, self._open = seal, open_

    def seal(self, metadata: bytes, body: bytes) -> list[Buffer]:
        front = self._seal(_HEAD.pack(1, len(metadata), len(body))) + self._seal(metadata)
        return [front, self._seal(body)] if body else [front]

    def open(self, stream: bytes) -> Message:
        extra = self._extra
        at = _HEAD.size + extra
        _, metadata, body = _HEAD.unpack(self._open(stream[:at]))
        behind = at + metadata + extra
        with memoryview(stream) as view:
            return self._open(view[at:behind]), self._open(view[behind:]) if body else b""

    _extra = _TAG


class SecretStreamParts(Parts):
    """The same with one byte more for each part: its tag says what it is."""

    _extra = bindings.crypto_secretstream_xchacha20poly1305_ABYTES


def _numbered(
    encrypt: Callable[[bytes, bytes], bytes], decrypt: Callable[[bytes, Buffer], bytes]
) -> Parts:
    """Parts whose nonces are their numbers."""
    sent = received = 0

    def seal(part: bytes) -> bytes:
        nonlocal sent
        sent += 1
        return encrypt(_NONCE.pack(0, sent), part)

    def open_(part: Buffer) -> bytes:
        nonlocal received
        received += 1
        return decrypt(_NONCE.pack(0, received), part)

    return Parts(seal, open_)


def _aead(cipher: AESGCM | ChaCha20Poly1305) -> Parts:
    return _numbered(
        lambda nonce, part: cipher.encrypt(nonce, part, None),
        lambda nonce, part: cipher.decrypt(nonce, part, None),
    )


def _sodium() -> Parts:
    key = os.urandom(32)
    return _numbered(
        lambda nonce, part: bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            part, None, nonce, key
        ),
        lambda nonce, part: bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
            bytes(part), None, nonce, key
        ),
    )


def _secret_stream() -> Parts:
    key = bindings.crypto_secretstream_xchacha20poly1305_keygen()
    push, pull = (bindings.crypto_secretstream_xchacha20poly1305_state() for _ in range(2))
    header = bindings.crypto_secretstream_xchacha20poly1305_init_push(push, key)
    bindings.crypto_secretstream_xchacha20poly1305_init_pull(pull, header, key)
    return SecretStreamParts(
        lambda part: bindings.crypto_secretstream_xchacha20poly1305_push(push, part),
        lambda part: bindings.crypto_secretstream_xchacha20poly1305_pull(pull, bytes(part))[0],
    )


class Macs:
    """Keyed BLAKE2b over head and metadata, and over the BLAKE3 digest of the body."""

    def __init__(self) -> None:
        self._keyed = hashlib.blake2b(key=os.urandom(32), digest_size=_TAG)

    def seal(self, metadata: bytes, body: bytes) -> list[Buffer]:
        head = _HEAD.pack(1, len(metadata), len(body))
        first, second = self._macs(head, metadata, body)
        return [b"".join((head, first, second, metadata)), body]

    def open(self, stream: bytes) -> Message:
        at = _HEAD.size
        _, metadata_length, _ = _HEAD.unpack(stream[:at])
        front, behind = at + 2 * _TAG, at + 2 * _TAG + metadata_length
        metadata, body = stream[front:behind], memoryview(stream)[behind:]
        if stream[at:front] != b"".join(self._macs(stream[:at], metadata, body)):
            raise WorkloadError("a MAC that does not match")
        return metadata, body

    def _macs(self, head: bytes, metadata: bytes, body: Buffer) -> tuple[bytes, bytes]:
        state = self._keyed.copy()
        state.update(head)
        first = state.digest()
        state.update(first + metadata)
        if body:
            state.update(blake3(body).digest())
        return first, state.digest()


class Tls:
    """TLS 1.3 of the standard library, both ends with certificates that each other pins."""

    def __init__(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        self._forth, self._back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client, node = contexts
        self._client = client.wrap_bio(self._back, self._forth)
        self._node = node.wrap_bio(self._forth, self._back, server_side=True)
        waiting = [self._client, self._node, self._client, self._node]
        for end in waiting:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue

    def seal(self, metadata: bytes, body: bytes) -> list[Buffer]:
        self._client.write(_HEAD.pack(1, len(metadata), len(body)) + metadata)
        if body:
            self._client.write(body)
        return [self._forth.read()]

    def open(self, stream: bytes) -> Message:
        self._forth.write(stream)
        _, metadata, body = _HEAD.unpack(self._exactly(_HEAD.size))
        return self._exactly(metadata), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            read = self._node.read(size)
            pieces.append(read)
            size -= len(read)
        return b"".join(pieces)


def _contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a node's, with a certificate each that the other one trusts alone."""
    files = [_certificate(directory, name) for name in ("client", "node")]
    contexts = []
    for purpose, own, other in (
        (ssl.PROTOCOL_TLS_CLIENT, files[0], files[1]),
        (ssl.PROTOCOL_TLS_SERVER, files[1], files[0]),
    ):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(own)
        context.load_verify_locations(other)
        contexts.append(context)
    return contexts[0], contexts[1]


def _certificate(directory: Path, name: str) -> Path:
    key = Ed25519PrivateKey.generate()
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    path = directory / f"{name}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


PRODUCT = "Noise IK, AES-256-GCM (bftfs)"
_GREETING = ("TLS 1.3", PRODUCT)
CONSTRUCTIONS = (
    PRODUCT,
    "AES-256-GCM alone",
    "ChaCha20-Poly1305 (OpenSSL) alone",
    "ChaCha20-Poly1305 (libsodium) alone",
    "secretstream (libsodium)",
    "TLS 1.3",
    "MACs, nothing encrypted",
)


def _makers(directory: Path) -> dict[str, Callable[[], Ends]]:
    contexts = _contexts(directory)
    makers: Sequence[Callable[[], Ends]] = (
        Product,
        lambda: _aead(AESGCM(os.urandom(32))),
        lambda: _aead(ChaCha20Poly1305(os.urandom(32))),
        _sodium,
        _secret_stream,
        lambda: Tls(contexts),
        Macs,
    )
    return dict(zip(CONSTRUCTIONS, makers, strict=True))


@dataclass(frozen=True, slots=True)
class Parameters:
    """`messages` of each size are sealed, and then opened, in each of `repeat` turns."""

    repeat: int
    messages: int


def run(session: Session, parameters: Parameters) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="benchmark-channel-") as directory:
        makers = _makers(Path(directory))
        for number in range(parameters.repeat):
            for name in _GREETING:
                _greet(
                    session, Place(name, number), makers[name], max(1, parameters.messages // 10)
                )
            for size in SIZES:
                for name, make in makers.items():
                    place = Place(name, number, f"{size} B" if size < KIB else f"{size // KIB} KiB")
                    _carry(session, place, make(), size, parameters.messages)


def _greet(session: Session, place: Place, make: Callable[[], Any], count: int) -> None:
    started = time.process_time()
    for _ in range(count):
        make()
    _add(session, place, "greet", time.process_time() - started, count)


def _carry(session: Session, place: Place, ends: Ends, size: int, count: int) -> None:
    body = os.urandom(size) if size > SIZES[1] else b""
    metadata = os.urandom(_METADATA if body else size)
    sealing = opening = 0.0
    batches = max(1, count // _AT_ONCE)
    for _ in range(batches):
        started = time.process_time()
        sealed = [ends.seal(metadata, body) for _ in range(_AT_ONCE)]
        sealing += time.process_time() - started
        streams = [b"".join(buffers) for buffers in sealed]
        started = time.process_time()
        opened = [ends.open(stream) for stream in streams]
        opening += time.process_time() - started
        if opened != [(metadata, body)] * _AT_ONCE:
            raise WorkloadError(f"{place.target} opens other messages")
    _add(session, place, "seal", sealing, batches * _AT_ONCE, size)
    _add(session, place, "open", opening, batches * _AT_ONCE, size)


def _add(
    session: Session, place: Place, phase: str, seconds: float, count: int, size: int = 0
) -> None:
    session.add(
        Sample(
            target=place.target,
            variant=place.variant,
            phase=phase,
            round=place.round,
            measure=Measure.MICROSECONDS_PER_OPERATION,
            seconds=seconds,
            amount=count,
            started_s=0.0,
            details={"mb_s": size * count / seconds / 1e6} if size else {},
        )
    )
