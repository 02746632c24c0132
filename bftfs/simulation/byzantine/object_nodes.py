"""Nodes that lie about replicated objects. [Q/U §4.3.3, §4.3.5 Malevolent components]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from bftfs import limits
from bftfs.conversation import Send
from bftfs.crypto.digest import (
    LIFE_BYTES,
    LIFE_DIGEST,
    LIFE_MOST,
    MAC_BYTES,
    deduction_digest,
    replica_history_digest,
    sync_page_digest,
)
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    client_of,
    decode_conditioned,
    history_of,
    logical_timestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    AttestReply,
    Bundle,
    BundleReply,
    Catalogued,
    CatalogueReply,
    ChainRequest,
    DeduceReply,
    DeduceRequest,
    FetchReply,
    Found,
    HistoryReply,
    InlineBarrier,
    InlineUpdate,
    LatestReply,
    LifeRequest,
    Looked,
    PastQuery,
    PastReply,
    PastVersion,
    Query,
    QueryReply,
    Status,
    SyncReply,
    SyncRequest,
    Update,
    UpdateReply,
    Verdict,
    VersionsReply,
    VersionsRequest,
)
from bftfs.server.step import Ready
from bftfs.simulation.byzantine.positions import Asked, NodeAdversary, NodePosition, mutated
from bftfs.wire.codec import encode

_SECOND_US = 1_000_000

_decode_page = msgspec.msgpack.Decoder(tuple[PastVersion, ...]).decode


class HistoryForger(NodeAdversary):
    """Reports candidates that it has not accepted, or leaves out those that it has.

    [Q/U §4.3.5] "malevolent servers cannot forge a potential or established candidate: any forged
    candidate is classifiable as incomplete"; "any barrier candidate not classified as complete is
    inline repaired. This bounds the number of barriers". Shown by serializability and progress.
    """

    chances = (0.1, 0.5, 1.0)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._forged: dict[ObjectId, bytes] = {}  # lies that are told consistently

    def answer(self, asked: Asked) -> Ready:
        """Give an invented history, with the node's own authenticator."""
        ready = self.honest(asked)
        reply = ready.reply
        if not isinstance(reply, QueryReply | UpdateReply | BundleReply) or not self.misbehaves():
            return ready
        names = objects_of(asked.message)
        if isinstance(reply, BundleReply):
            names = [names[position] for position in reply.positions]
        histories = [
            self._forge(name, history, asked.now_us)
            for name, history in zip(names, ready.reply.histories, strict=True)
        ]
        reported = map(self.position.reported, names, histories)
        authenticators = tuple(known.authenticator for known in reported)
        ready.reply = replace(
            ready.reply, histories=tuple(histories), authenticators=authenticators
        )
        return ready

    def _forge(self, name: ObjectId, history: bytes, now_us: int) -> bytes:
        random = self.random
        if name in self._forged and random.random() < 0.5:
            return self._forged[name]
        honest = parse_history(history)
        candidates = list(honest.candidates)
        choice = random.randrange(4)
        if choice == 0:
            del candidates[random.randrange(len(candidates) + 1) :]
        else:
            latest_us = time_of(honest.latest)
            time_us = random.choice(
                (latest_us + 1, latest_us + 1, max(latest_us, now_us) + 1_000, now_us + 100_000_000)
            )
            if choice == 1:
                bound = limits.CLOCK_SKEW_US
                time_us = now_us + random.choice(
                    (bound - 1_000_000, bound - 1_000, bound + 1_000, 2 * bound, 1 << 61)
                )
            barrier = random.random() < 0.5
            timestamp = logical_timestamp(
                time_us=time_us,
                barrier=barrier,
                client=ClientId(random.randbytes(16)),
                digest=random.randbytes(32),
            )
            candidates.append(Candidate(timestamp, honest.latest_object.timestamp))
        initial = random.choice((honest.initial, True, False))
        forged = history_of(candidates, initial=initial) if candidates else b""
        self._forged[name] = forged
        return forged


class SelectiveAuthenticator(NodeAdversary):
    """Makes authenticators that are valid for some servers and invalid for others.

    [Q/U §4.3.5] "If a malevolent server corrupts more than b HMACs in its authenticator, then a
    client can conclude […] that the server is malevolent"; fewer, and it "is sufficient for the
    client to solicit more responses from additional servers and make progress." Shown by progress.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        n = position.sizes.n
        self._spoilt = position.random.sample(range(n), position.random.randint(1, n))

    def answer(self, asked: Asked) -> Ready:
        """Give the right answer, with an authenticator that some servers find invalid."""
        ready = self.honest(asked)
        reply = ready.reply
        if isinstance(reply, QueryReply | DeduceReply):
            reply = replace(reply, voucher=self._spoil(reply.voucher))
        if isinstance(reply, QueryReply | UpdateReply | BundleReply):
            reply = replace(reply, authenticators=tuple(map(self._spoil, reply.authenticators)))
        ready.reply = reply
        return ready

    def _spoil(self, authenticator: bytes) -> bytes:
        spoilt = bytearray(authenticator)
        for server in self._spoilt:
            position = LIFE_BYTES + MAC_BYTES * server
            if len(spoilt) > position:
                spoilt[position] ^= 1
        return bytes(spoilt)


class LivesLiar(NodeAdversary):
    """Signs in another life for each principal that asks, and shows new lives to some nodes only.

    What it signs tells of lives that others have not begun.

    [Q/U §4.3.5; docs/protocols-query-update.md, A server that lost its store]
    "the liar is left out like one that corrupts its authenticators". Shown by progress, and by
    serializability.
    """

    chances = (0.02, 0.3)
    _LIVES = (0, 1, 2, 3, LIFE_MOST, LIFE_MOST + 1, (1 << 64) - 1)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._lives: dict[ClientId, int] = {}
        self._denies = position.random.random() < 0.5  # to all clients that it has begun any

    def answer(self, asked: Asked) -> Ready:
        """The right answer, signed in the life that this client is to believe in."""
        if self.misbehaves() and self.is_new(asked.message):
            keys = self.position.keys
            proof = keys.make(LIFE_DIGEST, life=self.random.choice(self._LIVES))
            told = self.random.sample(self.others(), self.random.randint(1, len(self.others())))
            return self.after(*(Send(node, LifeRequest(proof)) for node in told))
        ready = self.honest(asked)
        if isinstance(ready.reply, QueryReply | UpdateReply) and not self._denies:
            ready.reply = self._signed(asked, ready.reply)
        return ready

    def _signed(self, asked: Asked, reply: QueryReply | UpdateReply) -> QueryReply | UpdateReply:
        keys, client = self.position.keys, asked.sender.client
        if client not in self._lives or self.misbehaves():
            self._lives[client] = self.random.choice(self._LIVES)
        life = self._lives[client]
        if isinstance(asked.message, Query):
            names: Sequence[ObjectId] = sorted(set(asked.message.objects))
        elif isinstance(asked.message, InlineBarrier):
            names = (asked.message.evidence.object,)
        else:
            names = [each.object for each in decode_conditioned(asked.message.conditioned).sets]
        knowing = b""
        if self.misbehaves():
            known = (self.random.choice(self._LIVES) for _ in keys.lives)
            knowing = b"".join(each.to_bytes(LIFE_BYTES, "big") for each in known)
        alike = life.to_bytes(LIFE_BYTES, "big") + bytes(MAC_BYTES * len(keys.lives)) + knowing
        authenticators = tuple(
            keys.made_alike(replica_history_digest(object=name, encoded=history), alike)
            if history
            else b""
            for name, history in zip(names, reply.histories, strict=True)
        )
        if life > LIFE_MOST or self.misbehaves():
            return replace(reply, authenticators=authenticators)
        me = keys.node  # it may be that it signs in the life, and does not say so
        lives = (*reply.lives[:me], life, *reply.lives[me + 1 :])
        return replace(reply, authenticators=authenticators, lives=lives)


class WrongAnswers(NodeAdversary):
    """Gives answers, errors and statuses that are not the method's, and claims to have accepted.

    [Q/U §4.3.2] q equal successes finish an update, and b + 1 equal answers include a correct one.
    Shown by serializability, whose model knows every answer.
    """

    chances = (0.2, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Give a wrong answer."""
        ready = self.honest(asked)
        random = self.random
        if not self.misbehaves():
            return ready
        match ready.reply:
            case QueryReply(error=error, answer=answer, whole=whole):
                ready.reply = replace(
                    ready.reply,
                    answered=True,
                    error=random.choice((error, 2, 122)),
                    answer=mutated(answer, random),
                    whole=random.choice((whole, True, False)),
                )
            case BundleReply(errors=errors, answers=answers):
                ready.reply = replace(
                    ready.reply,
                    errors=tuple([random.choice((error, error, 2)) for error in errors]),
                    answers=tuple([mutated(answer, random) for answer in answers]),
                )
            case UpdateReply(status=status, answer=answer, whole=whole):
                ready.reply = replace(
                    ready.reply,
                    status=random.choice((status, *Status)),
                    error=random.choice((0, 2, 122)),
                    answer=random.choice((answer, mutated(answer, random))),
                    whole=random.choice((whole, True, False)),
                    forged=random.randrange(1 << self.position.sizes.n),
                    insane=random.choice((0, random.randrange(1 << self.position.sizes.n))),
                )
            case _:
                pass
        return ready


class SyncLiar(NodeAdversary):
    """Lies to nodes that lack a version, and to clients that ask what became of an operation.

    [Q/U §4.3.2] "Responses from at least b + 1 host-servers are required for the sync-server to
    validate that the data it receives is correct." Statements used in deduction need as many, and
    so does what nodes that heal are told of each other's histories and versions. Shown by
    serializability and redundancy.
    """

    def answer(self, asked: Asked) -> Ready:
        """Give a false past."""
        ready = self.honest(asked)
        random = self.random
        message = asked.message
        match message, ready.reply:
            case SyncRequest() | ChainRequest(), SyncReply(found=Found.PAGE, page=page):
                false = (
                    _another_page(page) if message.whole else sync_page_digest(random.randbytes(8))
                )
                ready.reply = SyncReply(Found.PAGE, false)
            case SyncRequest() | ChainRequest(), SyncReply():
                ready.reply = SyncReply(random.choice(tuple(Found)), random.randbytes(32))
            case DeduceRequest(), DeduceReply(answer=answer, whole=whole):
                verdict = random.choice((Verdict.ESTABLISHED, Verdict.DEAD))
                voucher = self._voucher(message.timestamp, message.objects, verdict)
                ready.reply = DeduceReply(verdict, voucher, mutated(answer, random), whole)
            case Query(), QueryReply(histories=histories) if histories:
                verdict = random.choice((Verdict.ESTABLISHED, Verdict.DEAD))
                latest = parse_history(histories[0]).latest_object
                voucher = self._voucher(latest.timestamp, latest.objects, verdict)
                ready.reply = replace(ready.reply, verdict=verdict, voucher=voucher)
            case _, FetchReply(conditioned=conditioned):
                ready.reply = FetchReply(mutated(conditioned, random))
            case _, HistoryReply(history=history):
                ready.reply = replace(ready.reply, history=self._another_history(history))
            case _, LatestReply(latest=latest):
                ready.reply = LatestReply(tuple(map(self._another_time, latest)))
            case _, AttestReply(digests=digests):
                ready.reply = AttestReply(
                    tuple(random.choice((each, b"", random.randbytes(32))) for each in digests)
                )
            case _, CatalogueReply(objects=objects, more=more):
                ready.reply = CatalogueReply(self._another_catalogue(objects), more)
            case _:
                pass
        return ready

    def _another_time(self, timestamp: LogicalTimestamp) -> LogicalTimestamp:
        """The same, none, or one that never was and is a little later."""
        random = self.random
        later = logical_timestamp(
            time_us=time_of(timestamp) + random.randint(1, 1_000),
            barrier=random.random() < 0.5,
            client=ClientId(random.randbytes(16)),
            digest=random.randbytes(32),
        )
        return random.choice((timestamp, ZERO, later))

    def _another_history(self, history: bytes) -> bytes:
        """The history without a candidate, or with one that was never made."""
        honest = parse_history(history)
        candidates = list(honest.candidates)
        if candidates and self.random.random() < 0.5:
            candidates.pop()
        else:
            later = self._another_time(honest.latest)
            if later > honest.latest:
                candidates.append(Candidate(later, honest.latest_object.timestamp))
        return history_of(candidates, initial=honest.initial) if candidates else b""

    def _another_catalogue(self, objects: Sequence[Catalogued]) -> tuple[Catalogued, ...]:
        """Leave some out, show others at other versions, and add one that nobody has."""
        random = self.random
        told = [
            Catalogued(each.object, self._another_time(each.latest))
            for each in objects
            if random.random() < 0.8
        ]
        if told and random.random() < 0.5:
            place = random.randrange(len(told))
            name = ObjectId(told[place].object[:-4] + random.randbytes(4))
            told.append(Catalogued(name, self._another_time(told[place].latest)))
        unique = {each.object: each for each in told}
        return tuple(unique[name] for name in sorted(unique))

    def _voucher(self, timestamp: Any, objects: Sequence[ObjectId], verdict: Verdict) -> bytes:
        digest = deduction_digest(
            timestamp=timestamp, objects=objects, established=verdict is Verdict.ESTABLISHED
        )
        return self.position.keys.make(digest)


def _another_page(page: bytes) -> bytes:
    """A page of object sync with other values in it, as well-formed as the right one."""
    return msgspec.msgpack.encode(_changed(msgspec.msgpack.decode(page)))


def _changed(value: Any) -> Any:
    """`value` with the last byte of each short byte string in it changed, but for keys."""
    if isinstance(value, list):
        pair = len(value) == 2 and isinstance(value[0], bytes)
        return [
            each if pair and position == 0 else _changed(each)
            for position, each in enumerate(value)
        ]
    if isinstance(value, bytes) and 0 < len(value) <= 12:
        return value[:-1] + bytes((value[-1] ^ 1,))
    return value


def objects_of(message: Any) -> Sequence[ObjectId]:
    """The objects whose histories a reply to `message` reports."""
    match message:
        case Query(objects=objects):
            return sorted(set(objects))
        case Bundle(objects=objects):
            return objects
        case Update(conditioned=encoded) | InlineUpdate(conditioned=encoded):
            try:
                return [each.object for each in decode_conditioned(encoded).sets]
            except MalformedMessage:
                return ()
        case InlineBarrier(evidence=evidence):
            return (evidence.object,)
        case _:
            return ()


# --- the past --------------------------------------------------------------------------------


class PastLiar(NodeAdversary):
    """Lies about the past: its states, which versions there were, when, and who made them.

    [Q/U §4.3.2] b + 1 equal answers include a correct one: so many servers have to agree on what
    came before an established version. Shown by the checker of the past, whose model keeps every
    state.
    """

    chances = (0.3, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Give a false past."""
        if not isinstance(asked.message, PastQuery | VersionsRequest) or not self.misbehaves():
            return self.honest(asked)
        whole = replace(asked.message, whole_answer_from=self.position.node)
        asked = asked._replace(message=whole)
        if isinstance(whole, PastQuery):
            return self._elsewhen(asked)
        ready = self.honest(asked)
        if isinstance(ready.reply, VersionsReply):
            ready.reply = self._another_list(ready.reply)
        return ready

    def _elsewhen(self, asked: Asked) -> Ready:
        """Answer for another time, or with something that never was true."""
        random = self.random
        choice = random.randrange(5)
        if choice == 0:  # as of an earlier or a later time
            moved_us = asked.message.at_us + random.choice((-1, 1)) * random.randrange(_SECOND_US)
            asked = asked._replace(message=replace(asked.message, at_us=max(0, moved_us)))
        ready = self.honest(asked)
        reply = ready.reply
        if not isinstance(reply, PastReply):
            return ready
        match choice:
            case 0:
                pass
            case 1:  # other contents
                ready.reply = replace(
                    reply,
                    looked=Looked.FOUND,
                    error=random.choice((reply.error, 2, 13, 116)),
                    answer=mutated(reply.answer, random),
                )
            case 2:  # another time
                ready.reply = replace(reply, version=self._moved(reply.version))
            case 3:  # nothing that anybody knows
                ready.reply = replace(
                    reply, looked=random.choice((Looked.UNKNOWN, Looked.FURTHER)), answer=b""
                )
            case _:  # an answer of its own
                ready.reply = replace(reply, answer=random.randbytes(24))
        return ready

    def _another_list(self, reply: VersionsReply) -> VersionsReply:
        random = self.random
        if random.random() < 0.2:
            return random.choice((VersionsReply(False), VersionsReply(True, 13)))
        versions = list(_decode_page(reply.page)) if reply.page else []
        if not versions:
            return VersionsReply(True, 0, random.randbytes(32), whole=False)
        place = random.randrange(len(versions))
        version = versions[place]
        match random.randrange(4):
            case 0:  # leave one out
                del versions[place]
            case 1:  # at another time
                moved = self._moved(version.timestamp)
                versions[place] = replace(version, timestamp=moved)
            case 2:  # by somebody else
                author = self.random.randbytes(16)
                renamed = bytes(version.timestamp).replace(client_of(version.timestamp), author)
                versions[place] = replace(version, timestamp=LogicalTimestamp(renamed))
            case _:  # that did something else
                versions[place] = replace(version, operation=None, changes=())
        return VersionsReply(True, 0, encode(tuple(versions)))

    def _moved(self, timestamp: LogicalTimestamp) -> LogicalTimestamp:
        moved_us = time_of(timestamp) + self.random.randrange(1, _SECOND_US)
        return LogicalTimestamp(moved_us.to_bytes(8, "big") + timestamp[8:])
