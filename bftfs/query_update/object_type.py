"""What a replicated object is: deterministic queries and updates on ordered maps of bytes.

Object types are written against this module alone; it knows nothing of replicas, quorums or
timestamps. [Q/U §4.3.2] Objects expose an operations-based interface of deterministic methods, and
a narrow interface is what limits a faulty client. A method is given the states of all the objects
that the operation names together, so that it can check across them.

Object types may keep lists, below, in their states: servers read the past of these at the cost of
what was in them then.

Invariants: a method reads nothing but its states, its arguments and its caller, and gives the same
answer everywhere. A method that raises `Refusal` has changed nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, Protocol

import msgspec

from bftfs import limits
from bftfs.crypto.digest import Digest
from bftfs.errors import UnreadableAnswer
from bftfs.identifiers import ClientId, ObjectId, kind_of


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of arguments and answers: a frozen value, encoded as an array of its fields.

    Derived classes say `frozen=True` again, for the type checker.
    """


class ChangesAsked(Record, frozen=True):
    """What of an object's versions is asked for: changes of keys that begin with these."""

    prefixes: tuple[bytes, ...] = ()


class State(Protocol):
    """An object's state: an ordered map. The initial state of every object is the empty map."""

    @property
    def object(self) -> ObjectId:
        """Which object this is the state of."""

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`, or None."""

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order. Lazy."""


class MutableState(State, Protocol):
    """A state that an update may change; what it changes is the new version's delta.

    At most `limits.DELTA_ENTRIES` keys per object and update; a key has at most
    `limits.STATE_KEY_BYTES` bytes, at most half of them zero, and is not empty; a value has at most
    `limits.STATE_VALUE_BYTES`. Do not change a state while scanning it.
    """

    def put(self, key: bytes, value: bytes) -> None:
        """Make `value` the value at `key`."""

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it is not there."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """On whose behalf a method runs, and when.

    `time_us` is the time of the version that an update makes; for a query, that of the latest
    version it reads: both are the same at every server.
    """

    client: ClientId
    uid: int
    gid: int
    groups: tuple[int, ...]
    time_us: int


class Refusal(Exception):
    """A method's deterministic refusal with a POSIX errno: an agreed answer, no new version."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the service.

    `kinds` gives, for each object that the method takes (in the order of its roles), the kinds that
    the object may be of. One object may play two roles: its one state is then passed twice.
    `invoke(states, arguments, caller)` returns the answer: bytes, or a value of type `answer`.
    An update's states are `MutableState`s.

    An update that `frees` takes something away, so that room comes back: full disks take it. One
    `for_readers` changes nothing: a grant for reading only covers it.

    A query of the past answers on a state of then. If it has a `permit`, that is given the states
    of now, and refuses users who may not ask any more; its answer does not count. That of an
    update refuses users who may not know its arguments.

    An update may rest on what a quorum of nodes must vouch for: `rests_on` is given what `invoke`
    was, the states as they are after it, and tells of what; None: of nothing. A server asks that
    of the operation's author only. Another client that finishes it shows that so many servers have
    accepted it that one of them is benign, and has seen the vouchers.

    `names` are those fields of an update's arguments that are names in one of its objects, each
    with that object's role. The history of that object tells them; those of others do not.

    A `brief` query reads few rows, whatever is in the state: many may be asked in one message.

    With the errno `overtaken` it refuses what was prepared on what others have changed since: its
    client prepares it again, and stands in line meanwhile (`admission.Lines`).
    """

    name: str
    update: bool
    kinds: tuple[frozenset[int], ...]
    arguments: type[Record]
    invoke: Callable[[tuple[Any, ...], Any, Caller], Record | bytes]
    answer: type[Record] | None = None  # None: the answer is bytes
    permit: Callable[[tuple[Any, ...], Any, Caller], bytes] | None = None
    frees: bool = False
    rests_on: Callable[[tuple[Any, ...], Any, Caller], Digest | None] | None = None
    for_readers: bool = False
    names: tuple[tuple[str, int], ...] = ()
    overtaken: int = 0
    brief: bool = False

    def takes(self, names: tuple[ObjectId, ...]) -> bool:
        """True if the objects are of the kinds that the method takes."""
        kinds = self.kinds
        return len(names) == len(kinds) and all(
            map(frozenset.__contains__, kinds, map(kind_of, names))
        )


@cache
def _decode_as(kind: type[Record]) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(kind).decode


class ObjectTypes:
    """The methods that a service exports, by name, with the decoding of what they take and give."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods: dict[str, Method] = {}
        self.failures = 0  # exceptions that are no refusals: bugs of object types
        for method in methods:
            if method.name in self._methods:
                raise ValueError(f"two methods are called {method.name}")
            self._methods[method.name] = method

    def __or__(self, other: ObjectTypes) -> ObjectTypes:
        """The methods of both."""
        return ObjectTypes((*self._methods.values(), *other._methods.values()))

    def method(self, name: str) -> Method | None:
        """The method of that name, if the service exports one."""
        return self._methods.get(name)

    def decode_arguments(self, method: Method, encoded: bytes) -> Any:
        """The method's arguments; raises `msgspec.DecodeError` if they are none."""
        return _decode_as(method.arguments)(encoded)

    def invoke(
        self,
        function: Callable[[tuple[Any, ...], Any, Caller], Record | bytes],
        states: tuple[Any, ...],
        arguments: Any,
        caller: Caller,
    ) -> tuple[int, bytes]:
        """The errno with which a method refuses, or 0, and its answer."""
        try:
            answer = encode_record(function(states, arguments, caller))
        except Refusal as refusal:
            return refusal.code or errno.EIO, b""
        except Exception:
            # A client must not be able to stop nodes by finding a bug in an object type: the same
            # method fails alike everywhere, and nothing is changed.
            self.failures += 1
            return errno.EIO, b""
        if len(answer) > limits.ANSWER_BYTES:
            return errno.EOVERFLOW, b""
        return 0, answer

    def decode_answer(self, method: Method, encoded: bytes) -> Any:
        """The method's answer, on which servers agree; raises UnreadableAnswer if it is none."""
        try:
            return encoded if method.answer is None else _decode_as(method.answer)(encoded)
        except msgspec.DecodeError:
            raise UnreadableAnswer(method.name) from None


_ENCODER = msgspec.msgpack.Encoder()


def encode_record(record: Record | bytes) -> bytes:
    """The encoding of arguments or of an answer; bytes stand for themselves."""
    return record if isinstance(record, bytes) else _ENCODER.encode(record)


# --- lists in a state -------------------------------------------------------------------------
#
# A state's keys `key_of(serial)` are a list. A serial that is added is greater than all that were
# there before; its value may be overwritten, and when its key is removed it never comes back.
#
# A server that reads the list as it was at an old version would have to pass over everything that
# had been removed by then. So it notes, with each version that removes a serial, how far the hole
# reaches that this leaves: from behind the serial that was there below it, up to the next one that
# was there or may still come. A hole never closes, so a note holds at all later versions; and while
# the serial below is there, the latest note that begins behind it tells the whole hole. A removal
# costs one small row more, an addition nothing. The notes are each server's own index: no part of
# the state, and of no answer. `replica` writes them, `past_state` reads them.

SEQUENCE: Final = b"s"
BEYOND_SEQUENCE: Final = b"t"
FIRST_SERIAL: Final = 3  # 0 begins a listing; 1 and 2 are left to "." and ".."


@lru_cache(1024)  # a removal needs the same few, several times each
def serial_key(serial: int) -> bytes:
    """`serial` as a key that sorts as it does: its length, then seven bits to a byte, none zero."""
    length = max(1, -(-serial.bit_length() // 7))
    digits = (serial >> 7 * place & 0x7F | 0x80 for place in reversed(range(length)))
    return bytes((length, *digits))


def serial_from(encoded: bytes) -> int:
    """The serial that is encoded as `encoded`."""
    serial = 0
    for digit in encoded[1:]:
        serial = serial << 7 | digit & 0x7F
    return serial


def key_of(serial: int) -> bytes:
    """The key of a serial in the state."""
    return SEQUENCE + serial_key(serial)


def serial_at(key: bytes) -> int:
    """The serial whose key this is."""
    return serial_from(key[len(SEQUENCE) :])


def is_in_sequence(key: bytes) -> bool:
    """True if this is the key of a serial."""
    return key.startswith(SEQUENCE)
