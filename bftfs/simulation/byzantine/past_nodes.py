"""Nodes that lie about the past of replicated objects."""

from __future__ import annotations

from typing import Any

import msgspec

from bftfs.identifiers import ClientId
from bftfs.query_update.history import (
    LogicalTimestamp,
    client_of,
    time_of,
)
from bftfs.query_update.messages import (
    Looked,
    PastQuery,
    PastReply,
    PastVersion,
    VersionsReply,
    VersionsRequest,
)
from bftfs.server.step import Ready, Sender
from bftfs.simulation.byzantine.positions import NodePosition, mutated
from bftfs.storage import StorageView
from bftfs.wire.codec import encode

_SECOND_US = 1_000_000

_decode_page = msgspec.msgpack.Decoder(tuple[PastVersion, ...]).decode


class PastLiar:
    """Rewrites the past: what was there, which versions there were, when, and who made them.

    [Q/U §4.3.2] b + 1 equal answers include a correct one: so many have to tell the same of what
    came before a version that a quorum shows to be established. Shown by the checker of the past,
    whose model keeps every state.
    """

    def __init__(self, position: NodePosition) -> None:
        self._position = position
        self._lies = position.random.choice((0.3, 1.0))

    def step(
        self, view: StorageView, sender: Sender, message: Any, body: bytes | memoryview, now_us: int
    ) -> Ready:
        """Another past than the real one."""
        position = self._position
        if not isinstance(message, PastQuery | VersionsRequest) or (
            position.random.random() >= self._lies
        ):
            return position.honest(view, sender, message, body, now_us)
        message = msgspec.structs.replace(message, whole_answer_from=position.node)
        if isinstance(message, PastQuery):
            return self._elsewhen(view, sender, message, body, now_us)
        ready = position.honest(view, sender, message, body, now_us)
        if isinstance(ready.reply, VersionsReply):
            ready.reply = self._another_list(ready.reply)
        return ready

    def _elsewhen(
        self,
        view: StorageView,
        sender: Sender,
        message: PastQuery,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """An answer about another time, or one that never was true."""
        random = self._position.random
        choice = random.randrange(5)
        if choice == 0:  # as if the latest versions had not been, or later ones already
            moved_us = message.at_us + random.choice((-1, 1)) * random.randrange(_SECOND_US)
            message = msgspec.structs.replace(message, at_us=max(0, moved_us))
        ready = self._position.honest(view, sender, message, body, now_us)
        reply = ready.reply
        if not isinstance(reply, PastReply):
            return ready
        replaced = msgspec.structs.replace
        match choice:
            case 0:
                pass
            case 1:  # other contents
                ready.reply = replaced(
                    reply,
                    looked=Looked.FOUND,
                    error=random.choice((reply.error, 2, 13, 116)),
                    answer=mutated(reply.answer, random),
                )
            case 2:  # another time
                ready.reply = replaced(reply, version=self._another_time(reply.version))
            case 3:  # nothing that anybody knows
                ready.reply = replaced(
                    reply, looked=random.choice((Looked.UNKNOWN, Looked.FURTHER)), answer=b""
                )
            case _:  # an answer of its own
                ready.reply = replaced(reply, answer=random.randbytes(24))
        return ready

    def _another_list(self, reply: VersionsReply) -> VersionsReply:
        random = self._position.random
        if random.random() < 0.2:
            return random.choice((VersionsReply(False), VersionsReply(True, 13)))
        versions = list(_decode_page(reply.page)) if reply.page else []
        if not versions:
            return VersionsReply(True, 0, random.randbytes(32), whole=False)
        place = random.randrange(len(versions))
        version = versions[place]
        match random.randrange(4):
            case 0:  # one that nobody is to know of
                del versions[place]
            case 1:  # at another time
                changed = self._another_time(version.timestamp)
                versions[place] = msgspec.structs.replace(version, timestamp=changed)
            case 2:  # by somebody else
                changed = self._another_author(version.timestamp)
                versions[place] = msgspec.structs.replace(version, timestamp=changed)
            case _:  # that did something else
                versions[place] = msgspec.structs.replace(version, operation=None, changes=())
        return VersionsReply(True, 0, encode(tuple(versions)))

    def _another_time(self, timestamp: LogicalTimestamp) -> LogicalTimestamp:
        moved_us = time_of(timestamp) + self._position.random.randrange(1, _SECOND_US)
        return LogicalTimestamp(moved_us.to_bytes(8, "big") + timestamp[8:])

    def _another_author(self, timestamp: LogicalTimestamp) -> LogicalTimestamp:
        author = ClientId(self._position.random.randbytes(16))
        return LogicalTimestamp(bytes(timestamp).replace(client_of(timestamp), author))
