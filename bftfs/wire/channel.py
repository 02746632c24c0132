"""A secret channel between a principal and a node: bytes in, frames out, no I/O.

    principal → node   HELLO      "bft3", first message of Noise IK: who I am
    node → principal   WELCOME    "bft3", second message of Noise IK: whether the cluster knows you
    principal → node   REQUEST …  node → principal   REPLY …

Both ends hold a static key that the cluster description lists. `bftfs.crypto.noise` derives a key
for each direction from both static keys, from two keys that are made for this session and then
forgotten, and from all that has been said, which begins with what the session is for: version,
cluster, node, view. So nobody else reads a session, and a later thief of static keys reads no
earlier one. WELCOME proves the node; the principal's first frame proves the principal. HELLO alone
proves nothing, as it may be a recorded one. So that first frame is an empty one, a *confirmation*:
until it has come, a node keeps the few bytes of it and delivers nothing.

A node tells a principal that is not in its cluster so in WELCOME. Nobody else can say that, for
WELCOME answers this HELLO.

Frames, in either direction:

    length  8 bytes        of the front as it is here, and the CRC-32 of these four bytes
    front   … + 16 bytes   request number, length of the body, and an encoded message, the metadata
    body    … + 16 bytes   a fragment; left out if it has no bytes

Front and body are encrypted and authenticated (AES-256-GCM), each as the next message of its
direction. So they cannot be read, dropped, repeated, reordered, reflected or moved to another
session; and bytes that the network has damaged end the session, instead of passing for what the
other end has sent.

The length of a front is not secret, as the sizes of what is sent never are, and not authenticated:
one tag for a whole message costs half of two. Its CRC is there since a length that the network has
damaged announces bytes that never come, and would silence the session. Whoever writes another
length with its CRC ends the session, or stalls it, which he can do by keeping bytes back as well;
nothing is delivered, for the front does not open. Memory is spent on what has arrived, never on
what was announced.

One version is spoken, and none is negotiated: a peer that speaks another one is told so, and no
network can make two ends speak an older one.

**Invariants.** A frame is delivered only after it was opened. Bytes are waited for only if the
other end has announced them; if it is gone, TCP tells. (Of greetings and confirmations the host
limits the time.) Any PeerFault raised here ends the session: its host closes the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Generic, TypeVar
from zlib import crc32

import msgspec

from bftfs import limits
from bftfs.crypto.digest import Body
from bftfs.crypto.keys import AGREEMENT_BYTES, PUBLIC_KEY_BYTES, AgreementKey, Identity
from bftfs.crypto.noise import (
    FIRST_MESSAGE_BYTES,
    SECOND_MESSAGE_BYTES,
    TAG_BYTES,
    Buffer,
    CipherState,
    Initiator,
    Responder,
)
from bftfs.errors import (
    InvalidAuthenticator,
    MalformedMessage,
    NotAdmitted,
    OtherVersion,
    ProtocolViolation,
)
from bftfs.identifiers import NodeId

MAGIC = b"bft3"  # the version
LENGTH = Struct("!I")
PREFIX = Struct("!II")  # the length of a front, and its CRC
HEAD = Struct("!QI")  # of a front: number, length of the body
EMPTY_BYTES = HEAD.size + TAG_BYTES  # of a front without metadata
FRONT_BYTES = limits.FRAME_METADATA_BYTES + EMPTY_BYTES  # the most
ENTROPY_BYTES = 32

_FAMILY = MAGIC[:3]
_SIGNING_BYTES = PUBLIC_KEY_BYTES - AGREEMENT_BYTES  # the part of a public key that HELLO adds
HELLO_BYTES = len(MAGIC) + FIRST_MESSAGE_BYTES + _SIGNING_BYTES
WELCOME_BYTES = len(MAGIC) + SECOND_MESSAGE_BYTES + 1
_KNOWN, _UNKNOWN = b"\1", b"\0"
_PURPOSE = Struct(f"!{len(MAGIC)}s16sHI")  # version, cluster, node, view

Principal = TypeVar("Principal")


class Frame(msgspec.Struct, gc=False):
    """One authentic frame."""

    number: int
    metadata: bytes
    body: bytes


class FrameReader:
    """Opens the frames of one direction, incrementally."""

    def __init__(self, cipher: CipherState, *, proven: bool) -> None:
        """`proven`: whether it is certain who is at the other end, without a confirmation."""
        self.proven = proven  # True once a confirmation has been opened
        self._open = cipher.open
        # Of the frame whose body is waited for: its front, opened, and the length of its body.
        self._front: tuple[int, bytes, int] | None = None
        self._partial = bytearray()
        self._wanted = PREFIX.size

    @property
    def buffered(self) -> int:
        """Bytes kept of a frame that is not complete yet."""
        front = self._front
        return len(self._partial) + (len(front[1]) if front else 0)

    def feed(self, data: Buffer) -> list[Frame]:
        """The frames that `data` completes. Raises PeerFault; the stream is then lost.

        Nothing of `data` is kept, but copied where a frame is not complete.
        """
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            data, self._partial = self._partial, bytearray()
        frames: list[Frame] = []
        opened = self._open
        with memoryview(data) as view:
            start, end = 0, len(view)
            while True:
                front = self._front
                if front is None:
                    begin = start + PREFIX.size
                    if begin > end:
                        self._wanted = PREFIX.size
                        break
                    stop = begin + self._length(view[start:begin])
                    if stop > end:
                        self._wanted = stop - start
                        break
                    front = self._opened_front(view[begin:stop])
                    start = stop
                number, metadata, body_length = front
                if body_length:
                    stop = start + body_length + TAG_BYTES
                    if stop > end:
                        self._front = front
                        self._wanted = stop - start
                        break
                    self._front = None
                    frames.append(Frame(number, metadata, opened(view[start:stop])))
                    start = stop
                elif metadata:
                    frames.append(Frame(number, metadata, b""))
                elif self.proven:
                    raise ProtocolViolation("a frame that says nothing")
                else:
                    self.proven = True
            if start < end:
                self._partial += view[start:]
        return frames

    def _length(self, prefix: memoryview) -> int:
        """The length of the front that follows."""
        length, checksum = PREFIX.unpack(prefix)
        if crc32(prefix[: LENGTH.size]) != checksum:
            raise InvalidAuthenticator("the length of a frame is damaged")
        most = FRONT_BYTES if self.proven else EMPTY_BYTES
        if not EMPTY_BYTES <= length <= most:
            # Nobody has authenticated it, so it is nobody's lie.
            raise InvalidAuthenticator(
                f"a front of {length} bytes where {EMPTY_BYTES} are the least and "
                f"{most} are the limit"
            )
        return int(length)

    def _opened_front(self, sealed: memoryview) -> tuple[int, bytes, int]:
        front = self._open(sealed)
        number, body_length = HEAD.unpack_from(front)
        if body_length > limits.FRAME_BODY_BYTES:
            raise MalformedMessage(
                f"a body of {body_length} bytes where {limits.FRAME_BODY_BYTES} are the limit"
            )
        if body_length and not self.proven:
            raise ProtocolViolation("a body in the place of a confirmation")
        return number, front[HEAD.size :], body_length


def _sealed(cipher: CipherState, number: int, metadata: bytes, body: Body) -> list[Buffer]:
    """The buffers of one frame, in order."""
    seal, size = cipher.seal, len(body)
    length = EMPTY_BYTES + len(metadata)
    prefix = PREFIX.pack(length, crc32(LENGTH.pack(length)))
    front = prefix + seal(HEAD.pack(number, size) + metadata)
    return [front, seal(body)] if size else [front]


class _Greeting:
    """The other end's first bytes, until all of them are here."""

    __slots__ = ("_partial", "_size")

    def __init__(self, size: int) -> None:
        self._partial = b""
        self._size = size

    def take(self, data: Buffer) -> tuple[bytes, Buffer] | None:
        """The greeting without its version, and what follows; None while bytes are missing.

        Raises PeerFault as soon as it cannot be one.
        """
        missing = self._size - len(self._partial)
        self._partial += bytes(data[:missing])
        self._check_version()
        if len(data) < missing:
            return None
        return self._partial[len(MAGIC) :], data[missing:]

    def _check_version(self) -> None:
        version = self._partial[: len(MAGIC)]
        if MAGIC.startswith(version):
            return
        if len(version) == len(MAGIC) and version.startswith(_FAMILY):
            raise OtherVersion(
                f"it speaks version {version.decode('latin-1')!a} of the channel and this program "
                f"version {MAGIC.decode()!a}; install the same release of bftfs on both machines"
            )
        if not _FAMILY.startswith(version[: len(_FAMILY)]):
            raise MalformedMessage("what should be a greeting is none")


def _purpose(cluster_id: bytes, node: NodeId, view: int) -> bytes:
    return _PURPOSE.pack(MAGIC, cluster_id, node, view)


def _ephemeral(entropy: bytes) -> AgreementKey:
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a session needs {ENTROPY_BYTES} random bytes, not {len(entropy)}")
    return AgreementKey(entropy)


class ClientChannel:
    """The initiating end: a client's, or a node's that asks its peers."""

    def __init__(
        self,
        *,
        identity: Identity,
        node: NodeId,
        node_public_key: bytes,
        cluster_id: bytes,
        view: int,
        entropy: bytes,
    ) -> None:
        """`entropy`: 32 random bytes that nobody else knows, for this channel only."""
        self.node = node
        self.established = False  # True once the node has proven its identity: requests may be sent
        self._exchange = Initiator(
            static=identity.agreement,
            ephemeral=_ephemeral(entropy),
            responder=node_public_key[:AGREEMENT_BYTES],
            prologue=_purpose(cluster_id, node, view),
        )
        self._opening = MAGIC + self._exchange.first_message(identity.public_key[AGREEMENT_BYTES:])
        self._greeting = _Greeting(WELCOME_BYTES)
        self._requests: CipherState | None = None
        self._replies: FrameReader | None = None

    def opening(self) -> bytes:
        """The first bytes to send: HELLO."""
        return self._opening

    def receive(self, data: Buffer) -> list[Frame]:
        """The replies that `data` completes. Raises PeerFault."""
        if self._replies is None:
            taken = self._greeting.take(data)
            if taken is None:
                return []
            welcome, data = taken
            self._welcome(welcome)
            assert self._replies is not None
        return self._replies.feed(data)

    def confirmation(self) -> list[Buffer]:
        """The first frame, which proves to the node who we are. Requests follow it."""
        return self.seal_request(0, b"")

    def seal_request(self, number: int, metadata: bytes, body: Body = b"") -> list[Buffer]:
        """The buffers to send, in order, for one request.

        Requires: the channel is established, and its confirmation is sealed. Frames are sent in
        the order in which they are sealed.
        """
        assert self._requests is not None
        return _sealed(self._requests, number, metadata, body)

    def _welcome(self, message: bytes) -> None:
        if self._exchange.read_second(message) != _KNOWN:
            raise NotAdmitted("the node does not know this key")
        self._requests, replies = self._exchange.ciphers()
        self._replies = FrameReader(replies, proven=True)
        del self._exchange  # and the key that nobody may learn any more
        self.established = True


class ServerChannel(Generic[Principal]):
    """A node's end of a connection that it has accepted."""

    def __init__(
        self,
        *,
        identity: Identity,
        node: NodeId,
        cluster_id: bytes,
        view: int,
        principal: Callable[[bytes], Principal | None],
        entropy: bytes,
    ) -> None:
        """`principal` gives the holder of a public key, if the cluster knows it.

        `entropy`: 32 random bytes that nobody else knows, for this channel only.
        """
        if len(entropy) != ENTROPY_BYTES:
            raise ValueError(f"a session needs {ENTROPY_BYTES} random bytes, not {len(entropy)}")
        self.peer: Principal | None = None  # set once the other end has proven its identity
        # The other end's identity as HELLO claims it: true, unless HELLO was recorded and replayed.
        self.claimed: Principal | None = None
        self._identity = identity
        self._purpose = _purpose(cluster_id, node, view)
        self._principal = principal
        self._entropy = entropy
        self._output = b""
        # Until it is authenticated, the other end may make us keep the bytes of one HELLO.
        self._greeting = _Greeting(HELLO_BYTES)
        self._requests: FrameReader | None = None
        self._replies: CipherState | None = None

    @property
    def buffered(self) -> int:
        """Bytes kept of a request that is not complete yet."""
        return self._requests.buffered if self._requests is not None else 0

    def receive(self, data: Buffer) -> list[Frame]:
        """The authentic requests that `data` completes. Raises PeerFault.

        Ensures: `peer` is set if any are returned.
        """
        requests = self._requests
        if requests is None:
            try:
                taken = self._greeting.take(data)
            except OtherVersion:
                self._output = MAGIC
                raise
            if taken is None:
                return []
            hello, data = taken
            requests = self._requests = self._hello(hello)
        frames = requests.feed(data)
        if self.peer is None and requests.proven:
            self.peer = self.claimed
        return frames

    def pending_output(self) -> bytes:
        """The handshake's bytes to send, once; there may be some even when it has failed."""
        output, self._output = self._output, b""
        return output

    def seal_reply(self, number: int, metadata: bytes, body: Body = b"") -> list[Buffer]:
        """The buffers to send, in order, for one reply.

        Requires: a request has been received. The frames are sent in the order they are sealed.
        """
        assert self._replies is not None
        return _sealed(self._replies, number, metadata, body)

    def _hello(self, message: bytes) -> FrameReader:
        exchange = Responder(static=self._identity.agreement, prologue=self._purpose)
        agreement, signing = exchange.read_first(message)
        claimed = self._principal(agreement + signing)
        told = _KNOWN if claimed is not None else _UNKNOWN
        self._output = MAGIC + exchange.second_message(told, _ephemeral(self._entropy))
        self._entropy = b""
        if claimed is None:
            raise InvalidAuthenticator(f"HELLO with an unknown key, {agreement[:8].hex()}…")
        self.claimed = claimed
        requests, self._replies = exchange.ciphers()
        return FrameReader(requests, proven=False)
