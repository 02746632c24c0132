"""Servers that do all as they should, but vouch for nothing: validly, or at all."""

from __future__ import annotations

from typing import Any

from bftfs.read_write.messages import VouchReply, WriteReply


class Forging:
    """A server whose vouchers are invalid, and which does all else as it should."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def step(self, *arguments: Any) -> Any:
        ready = self._honest.step(*arguments)
        reply = ready.reply
        if isinstance(reply, WriteReply) and reply.voucher:
            ready.reply = WriteReply(reply.lives, bytes(len(reply.voucher)))
        elif isinstance(reply, VouchReply) and reply.authenticator:
            ready.reply = VouchReply(bytes(len(reply.authenticator)), reply.lives)
        return ready


class Withholding:
    """A server that hosts versions, and says so, and vouches for none."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def step(self, *arguments: Any) -> Any:
        ready = self._honest.step(*arguments)
        reply = ready.reply
        if isinstance(reply, WriteReply):
            ready.reply = WriteReply(reply.lives)
        elif isinstance(reply, VouchReply):
            ready.reply = VouchReply(b"", reply.lives)
        return ready
