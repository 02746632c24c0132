"""Byzantine behaviours of a node for the harness: what it does instead of the honest step.

Each has the node's own keys and state, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import (
    LIFE_BYTES,
    AuthenticatorKeys,
    deduction_digest,
    replica_history_digest,
)
from bftfs.query_update.history import (
    Candidate,
    client_of,
    logical_timestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    DeduceReply,
    DeduceRequest,
    FetchReply,
    Query,
    QueryReply,
    Status,
    SyncReply,
    UpdateReply,
    Verdict,
)
from bftfs.server.step import Ready, Sender
from bftfs.storage import MemoryStorage

Step = Callable[..., Ready]


def names_of(message: Any) -> list[bytes]:
    """The objects that a reply to `message` reports on, ascending."""
    from bftfs.query_update.history import decode_conditioned

    if isinstance(message, Query):
        return sorted(set(message.objects))
    if hasattr(message, "conditioned"):
        return [each.object for each in decode_conditioned(message.conditioned).sets]
    return [message.evidence.object]


def replace_histories(
    reply: Any, keys: AuthenticatorKeys, names: list[bytes], change: Callable[[bytes], bytes]
) -> Any:
    """The reply with other histories, authentically this node's."""
    histories = tuple(change(history) for history in reply.histories)
    authenticators = tuple(
        keys.make(replica_history_digest(object=name, encoded=history)) if history else b""
        for name, history in zip(names, histories, strict=True)
    )
    return msgspec.structs.replace(reply, histories=histories, authenticators=authenticators)


def forger(
    keys: AuthenticatorKeys,
    *,
    barrier: bool,
    ahead_us: int = 1_000_000,
    now: Callable[[], int] | None = None,
) -> Any:
    """Refuses every update for the sake of a candidate that nobody made. [Q/U §4.3.5]"""
    made = [0]

    def change(history: bytes) -> bytes:
        parsed = parse_history(history)
        made[0] += 1
        start = now() if now is not None else time_of(parsed.latest)
        forged = Candidate(
            logical_timestamp(
                time_us=start + ahead_us + made[0],
                barrier=barrier,
                client=b"c" * 16,
                digest=made[0].to_bytes(32, "big"),
            ),
            parsed.latest_object.timestamp,
        )
        return (history or b"\1") + forged.encoded

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        reply = ready.reply
        if isinstance(reply, UpdateReply | QueryReply):
            reply = replace_histories(reply, keys, names_of(message), change)
            if isinstance(reply, UpdateReply):
                reply = msgspec.structs.replace(reply, status=Status.NOT_CURRENT)
            return Ready(reply, wants=ready.wants)
        return ready

    return behave


def selective(victims: tuple[int, ...]) -> Any:
    """Authenticators that are invalid for `victims` alone."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        reply = ready.reply
        if isinstance(reply, UpdateReply | QueryReply):
            spoilt = []
            for authenticator in reply.authenticators:
                macs = bytearray(authenticator)
                for victim in victims:
                    if macs:
                        macs[LIFE_BYTES + 16 * victim] ^= 1
                spoilt.append(bytes(macs))
            ready.reply = msgspec.structs.replace(reply, authenticators=tuple(spoilt))
        return ready

    return behave


def mute() -> Any:
    """Accepts everything and says nothing."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        ready.reply = None
        return ready

    return behave


def wrong_answers() -> Any:
    """Gives other answers than the methods do, and other pages than the state has."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        reply = ready.reply
        if isinstance(reply, UpdateReply | QueryReply | DeduceReply) and reply.answer:
            answer = reply.answer[:-1] + bytes((reply.answer[-1] ^ 1,))
            ready.reply = msgspec.structs.replace(reply, answer=answer)
        elif isinstance(reply, SyncReply) and reply.page:
            page = reply.page[:-1] + bytes((reply.page[-1] ^ 1,))
            ready.reply = msgspec.structs.replace(reply, page=page)
        elif isinstance(reply, FetchReply):
            ready.reply = FetchReply(reply.conditioned[:-1] + b"\0")
        return ready

    return behave


def amnesiac() -> Any:
    """Answers from an empty store, whatever it has accepted."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(MemoryStorage(), sender, message, b"", now_us)
        return Ready(ready.reply if not ready.wants else Refused(22, "nothing here"))

    return behave


def yes_sayer() -> Any:
    """Claims to have accepted everything, and accepts nothing."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, UpdateReply):
            status = Status.SUCCESS
            return Ready(msgspec.structs.replace(ready.reply, status=status, answer=b"\x91\x00"))
        return ready

    return behave


def accuser(forged: int) -> Any:
    """Says that it had to cull the histories of the servers `forged`."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, UpdateReply):
            return Ready(msgspec.structs.replace(ready.reply, status=Status.CULLED, forged=forged))
        return ready

    return behave


def deducer(keys: AuthenticatorKeys, verdict: Verdict) -> Any:
    """Says of every candidate that it is established, or dead."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = step(view, sender, message, b"", now_us)
        established = verdict is Verdict.ESTABLISHED
        if isinstance(ready.reply, DeduceReply):
            assert isinstance(message, DeduceRequest)
            voucher = keys.make(
                deduction_digest(
                    timestamp=message.timestamp, objects=message.objects, established=established
                )
            )
            ready.reply = DeduceReply(verdict, voucher, b"\x91\x00")
        elif isinstance(ready.reply, QueryReply) and message.deduce:
            candidate = parse_history(ready.reply.histories[0]).latest_object
            voucher = keys.make(
                deduction_digest(
                    timestamp=candidate.timestamp,
                    objects=candidate.objects,
                    established=established,
                )
            )
            ready.reply = msgspec.structs.replace(ready.reply, verdict=verdict, voucher=voucher)
        return ready

    return behave


def rejecter() -> Any:
    """Rejects everything."""

    def behave(step: Step, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        return Ready(Refused(1, "no"))

    return behave


def drawn(random: Random, node: Any, n: int) -> Any:
    """One of them."""
    keys = node.keys
    others = [other for other in range(n) if other != node.number]
    return random.choice(
        [
            forger(keys, barrier=True),
            forger(keys, barrier=False),
            forger(keys, barrier=True, ahead_us=299_000_000, now=node.now_us),
            forger(keys, barrier=False, ahead_us=10_000_000_000),
            selective(tuple(random.sample(others, random.randrange(1, n)))),
            mute(),
            wrong_answers(),
            amnesiac(),
            yes_sayer(),
            accuser(sum(1 << other for other in random.sample(others, random.randrange(1, n)))),
            deducer(keys, Verdict.ESTABLISHED),
            deducer(keys, Verdict.DEAD),
            rejecter(),
        ]
    )


__all__ = ["client_of"]
