"""An authenticated channel between a principal and a node: bytes in, frames out, no I/O.

    principal → node   HELLO    cluster id, the node meant, public key, nonce
    node → principal   WELCOME  nonce; or FAREWELL, if the cluster does not know the key
    principal → node   REQUEST …          node → principal   REPLY …

Both ends hold a static key that the cluster description lists. Session keys, one per direction,
derive from their pairwise secret and from everything that names the session: cluster, node, both
public keys, both nonces. A MAC under them proves possession of the secret key *and* freshness:
WELCOME proves the node, the first request proves the principal; until then nothing is delivered.
HELLO itself carries a MAC under the static secret, so that a node spends little on a connection
without a listed key; FAREWELL carries one for this HELLO, so that only the node can send it.

A MAC covers the frame's position in its direction's stream, its header, its metadata and the digest
of its body. So frames cannot be dropped, repeated, reordered or moved to another session; and bytes
that the network has damaged end the session, instead of passing for what the other end has sent.
The head has a MAC of its own, which is checked before the rest of a frame is waited for: a length
that the network has damaged announces bytes that never come, and would silence the session.

    header  28 bytes  "bft1", kind, flags (0), reserved (0), view, request number,
                      length of the metadata, length of the body
    mac     16 bytes  of position and header
    mac     16 bytes  of position, header, first MAC, metadata and the body's digest
    metadata          an encoded message
    body              a fragment

Memory is spent on what has arrived, never on what was announced.

**Invariants.** A frame is delivered only after its MAC has been checked. Bytes are waited for only
if the other end has announced them; if it is gone, TCP tells. (Of a greeting the host limits the
time.) Any PeerFault raised here ends the session: its host closes the connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum
from hmac import compare_digest
from struct import Struct
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from bftfs import limits
from bftfs.crypto.digest import Body, HashedFragment, data_of, fragment_digest
from bftfs.crypto.keys import PUBLIC_KEY_BYTES, Identity, pairwise_key
from bftfs.errors import InvalidAuthenticator, MalformedMessage, NotAdmitted, ProtocolViolation
from bftfs.identifiers import NodeId

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"bft1"
HEADER = Struct("!4sBBHIQII")
MAC_BYTES = 16
HEAD_BYTES = HEADER.size + MAC_BYTES
PREAMBLE_BYTES = HEAD_BYTES + MAC_BYTES


class FrameKind(IntEnum):
    """The step of the channel's protocol that a frame takes."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    FAREWELL = 5


# How the headers of each kind begin.
_KINDS = {MAGIC + bytes((kind, 0, 0, 0)): int(kind) for kind in FrameKind}
_PARSED_HEADER = Struct("!8sIQII")  # HEADER, with this beginning in one
# A member of a class takes longer to find.
_REQUEST, _REPLY = int(FrameKind.REQUEST), int(FrameKind.REPLY)


class Frame(msgspec.Struct, gc=False):
    """One frame. `body` is a view of what was received; hashed, once the frame is authentic."""

    kind: int
    view: int
    number: int
    metadata: bytes
    body: Body
    head: bytes  # header and its MAC
    mac: bytes


class FrameParser:
    """Cuts a stream of bytes into frames, incrementally."""

    def __init__(
        self,
        *,
        metadata_limit: int = limits.FRAME_METADATA_BYTES,
        body_limit: int = limits.FRAME_BODY_BYTES,
    ) -> None:
        self._metadata_limit = metadata_limit
        self._body_limit = body_limit
        self._partial = bytearray()
        self._wanted = PREAMBLE_BYTES
        self.announced = b""  # the head of the frame that is waited for, until it is checked

    def raise_limits(self) -> None:
        """The peer is known: it may send frames of any size."""
        self._metadata_limit = limits.FRAME_METADATA_BYTES
        self._body_limit = limits.FRAME_BODY_BYTES

    @property
    def buffered(self) -> int:
        """Bytes kept of a frame that is not complete yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises MalformedMessage; the stream is then lost.

        Requires: `data` never changes afterwards, for bodies are views of it.
        """
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            data, self._partial = bytes(self._partial), bytearray()
        frames: list[Frame] = []
        start, end = 0, len(data)
        self._wanted = PREAMBLE_BYTES
        self.announced = b""
        while end - start >= PREAMBLE_BYTES:
            beginning, view, number, metadata_length, body_length = _PARSED_HEADER.unpack_from(
                data, start
            )
            kind = _KINDS.get(beginning)
            if kind is None:
                raise MalformedMessage("what should be the header of a frame is none")
            if metadata_length > self._metadata_limit or body_length > self._body_limit:
                raise MalformedMessage(
                    f"a frame of {metadata_length} + {body_length} bytes where "
                    f"{self._metadata_limit} + {self._body_limit} are the limit"
                )
            mac = start + HEAD_BYTES
            head = data[start:mac]
            metadata = start + PREAMBLE_BYTES
            body = metadata + metadata_length
            stop = body + body_length
            if stop > end:
                self._wanted = stop - start
                self.announced = head
                break
            frames.append(
                Frame(
                    kind,
                    view,
                    number,
                    data[metadata:body],
                    memoryview(data)[body:stop] if body_length else b"",
                    head,
                    data[mac:metadata],
                )
            )
            start = stop
        if start < end:
            self._partial += memoryview(data)[start:]
        return frames


NONCE_BYTES = 32

_HELLO = Struct(f"!16sH{PUBLIC_KEY_BYTES}s{NONCE_BYTES}s")
_SEQUENCED_HEADER = Struct("!Q" + HEADER.format.lstrip("!"))
_SEQUENCE_BYTES = 8

Principal = TypeVar("Principal")


class _Stream:
    """One direction of a session: makes or checks the MACs of successive frames."""

    __slots__ = ("_keyed", "_sequence", "_view")

    def __init__(self, key: bytes, view: int) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES, person=b"bftfs.frame")
        self._sequence = 0
        self._view = view

    def seal(self, kind: int, number: int, metadata: bytes, body: Body) -> list[Buffer]:
        data = data_of(body)
        size = len(data)
        header = _SEQUENCED_HEADER.pack(
            self._sequence, MAGIC, kind, 0, 0, self._view, number, len(metadata), size
        )
        self._sequence += 1
        state = self._keyed.copy()
        state.update(header)
        head_mac = state.digest()
        state.update(head_mac + metadata)
        if size:
            state.update(fragment_digest(body))
        sealed = b"".join((header[_SEQUENCE_BYTES:], head_mac, state.digest(), metadata))
        return [sealed, data] if size else [sealed]

    def check_head(self, head: bytes) -> None:
        """Raises PeerFault if the other end does not announce what `head` does as the next frame.

        Requires: all frames before it have been checked.
        """
        state = self._keyed.copy()
        state.update(self._sequence.to_bytes(_SEQUENCE_BYTES, "big") + head[:-MAC_BYTES])
        if not compare_digest(state.digest(), head[-MAC_BYTES:]):
            raise InvalidAuthenticator(f"the head of frame {self._sequence} has another MAC")

    def check(self, frame: Frame) -> None:
        state = self._keyed.copy()
        sequence = self._sequence.to_bytes(_SEQUENCE_BYTES, "big")
        state.update(sequence + frame.head + frame.metadata)
        body = frame.body
        if body:
            digest = fragment_digest(body)
            frame.body = HashedFragment(data_of(body), digest)
            state.update(digest)
        if not compare_digest(state.digest(), frame.mac):
            raise InvalidAuthenticator(f"frame {self._sequence} has a MAC that does not match")
        if frame.view != self._view:
            raise ProtocolViolation(f"a frame of view {frame.view} in view {self._view}")
        self._sequence += 1


class _Handshake(NamedTuple):
    """What both ends know of a session before the node's nonce."""

    pairwise: bytes
    hello: bytes  # names cluster, node, initiator and its nonce
    responder: bytes  # the node's public key
    view: int

    def stream(self, tag: bytes, nonce: bytes = b"") -> _Stream:
        """The stream for one use: HELLO and FAREWELL precede the node's nonce."""
        key = hashlib.blake2b(
            self.hello + self.responder + nonce, key=self.pairwise, digest_size=32, person=tag
        ).digest()
        return _Stream(key, self.view)

    def session(self, nonce: bytes) -> tuple[_Stream, _Stream]:
        """The streams of requests and of replies."""
        return self.stream(b"bftfs.requests", nonce), self.stream(b"bftfs.replies", nonce)


def _require_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")


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
        nonce: bytes,
    ) -> None:
        _require_nonce(nonce)
        self.node = node
        self.established = False  # True once the node has proven its identity: requests may be sent
        self._handshake = _Handshake(
            pairwise_key(identity, node_public_key, purpose="channel"),
            _HELLO.pack(cluster_id, node, identity.public_key, nonce),
            node_public_key,
            view,
        )
        self._parser = FrameParser(metadata_limit=NONCE_BYTES, body_limit=0)
        self._requests: _Stream | None = None
        self._replies: _Stream | None = None

    def opening(self) -> bytes:
        """The first bytes to send: HELLO."""
        stream = self._handshake.stream(b"bftfs.hello")
        return bytes(stream.seal(FrameKind.HELLO, 0, self._handshake.hello, b"")[0])

    def receive(self, data: bytes) -> list[Frame]:
        """The replies that `data` completes. Raises PeerFault."""
        frames = self._parser.feed(data)
        if not self.established and frames:
            self._welcome(frames.pop(0))
        replies = self._replies
        for frame in frames:
            if replies is None or frame.kind != _REPLY:
                raise ProtocolViolation(f"a frame of kind {frame.kind} where a reply is due")
            replies.check(frame)
        if self._parser.announced and replies is not None:
            replies.check_head(self._parser.announced)
            self._parser.announced = b""
        return frames

    def seal_request(self, number: int, metadata: bytes, body: Body = b"") -> list[Buffer]:
        """The buffers to send, in order, for one request. `body` is not copied.

        Requires: the channel is established. The frames are sent in the order they are sealed.
        """
        assert self._requests is not None
        return self._requests.seal(_REQUEST, number, metadata, body)

    def _welcome(self, frame: Frame) -> None:
        if frame.kind == FrameKind.FAREWELL:
            self._handshake.stream(b"bftfs.farewell").check(frame)
            raise NotAdmitted("the node does not know this key")
        if frame.kind != FrameKind.WELCOME or len(frame.metadata) != NONCE_BYTES:
            raise ProtocolViolation(f"a frame of kind {frame.kind} where WELCOME is due")
        self._requests, replies = self._handshake.session(frame.metadata)
        replies.check(frame)
        self._replies = replies
        self._parser.raise_limits()
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
        nonce: bytes,
    ) -> None:
        """`principal` gives the holder of a public key, if the cluster knows it."""
        _require_nonce(nonce)
        self.peer: Principal | None = None  # set once the other end has proven its identity
        # The other end's identity as HELLO claims it: true, unless HELLO was recorded and replayed.
        self.claimed: Principal | None = None
        self._identity = identity
        self._node = node
        self._cluster_id = cluster_id
        self._view = view
        self._principal = principal
        self._nonce = nonce
        self._output: list[bytes] = []
        # Until it is authenticated, the other end may make us keep the bytes of one HELLO.
        self._parser = FrameParser(metadata_limit=_HELLO.size, body_limit=0)
        self._requests: _Stream | None = None
        self._replies: _Stream | None = None

    @property
    def buffered(self) -> int:
        """Bytes kept of a request that is not complete yet."""
        return self._parser.buffered

    def receive(self, data: bytes) -> list[Frame]:
        """The authentic requests that `data` completes. Raises PeerFault.

        Ensures: `peer` is set if any are returned.
        """
        frames = self._parser.feed(data)
        if self._requests is None and frames:
            self._hello(frames.pop(0))
        requests = self._requests
        for frame in frames:
            if requests is None or frame.kind != _REQUEST:
                raise ProtocolViolation(f"a frame of kind {frame.kind} where a request is due")
            requests.check(frame)
            self.peer = self.claimed
        if self._parser.announced and requests is not None:
            requests.check_head(self._parser.announced)
            self._parser.announced = b""
        return frames

    def pending_output(self) -> bytes:
        """The handshake's bytes to send, once; there may be some even when it has failed."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def seal_reply(self, number: int, metadata: bytes, body: Body = b"") -> list[Buffer]:
        """The buffers to send, in order, for one reply. `body` is not copied.

        Requires: a request has been received. The frames are sent in the order they are sealed.
        """
        assert self._replies is not None
        return self._replies.seal(_REPLY, number, metadata, body)

    def _hello(self, frame: Frame) -> None:
        if frame.kind != FrameKind.HELLO or len(frame.metadata) != _HELLO.size:
            raise ProtocolViolation(f"a frame of kind {frame.kind} where HELLO is due")
        cluster_id, node, public_key, _nonce = _HELLO.unpack(frame.metadata)
        if cluster_id != self._cluster_id:
            raise ProtocolViolation(f"HELLO to another cluster, {cluster_id.hex()}")
        if node != self._node:
            raise ProtocolViolation(f"HELLO to node {node}")
        self.claimed = self._principal(public_key)
        handshake = _Handshake(
            pairwise_key(self._identity, public_key, purpose="channel"),
            frame.metadata,
            self._identity.public_key,
            self._view,
        )
        handshake.stream(b"bftfs.hello").check(frame)
        if self.claimed is None:
            farewell = handshake.stream(b"bftfs.farewell")
            self._output += map(bytes, farewell.seal(FrameKind.FAREWELL, 0, b"", b""))
            raise InvalidAuthenticator(f"HELLO with an unknown key, {public_key[:8].hex()}…")
        self._requests, self._replies = handshake.session(self._nonce)
        self._output += map(bytes, self._replies.seal(FrameKind.WELCOME, 0, self._nonce, b""))
        self._parser.raise_limits()
