"""Values of declared message types, as choices make them: new ones, and others nearly like given.

A message that is random in every byte is refused at its first field. So identifiers, timestamps,
histories and the like are taken from a `Pool` of those that a real run has seen, most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from tests.fuzz.choices import Choices

_MOST_LONG = 300
_MOST_ITEMS = 4
_LENGTHS_KEPT = 48  # values of one length that a pool keeps
_INTS = (0, 1, 2, 3, 5, 0x7F, 0xFF, 1000, 4095, (1 << 32) - 1, (1 << 62) - 1, (1 << 63) - 1)

# Fields that hold encoded structure, and how to change that instead of its bytes.
NESTED: dict[str, Callable[[Choices, Any, Pool], Any]] = {}

_infos: dict[Any, Any] = {}


def info_of(kind: Any) -> Any:
    """What msgspec knows of a type."""
    info = _infos.get(kind)
    if info is None:
        info = _infos[kind] = inspect.type_info(kind)
    return info


class Pool:
    """Byte strings and numbers that were seen in real messages, by their length."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[bytes]] = {}
        self._long: list[bytes] = []
        self.numbers: list[int] = []

    def learn(self, value: Any) -> None:
        """Keep what a message holds."""
        if isinstance(value, msgspec.Struct):
            for name in value.__struct_fields__:
                self.learn(getattr(value, name))
        elif isinstance(value, tuple | list):
            for item in value:
                self.learn(item)
        elif isinstance(value, bytes):
            self.add(value)
        elif (
            type(value) is int
            and value > 0xFFFF
            and value not in self.numbers
            and len(self.numbers) < _LENGTHS_KEPT
        ):
            self.numbers.append(value)

    def add(self, value: bytes) -> None:
        """Keep one byte string."""
        same = self._by_length.setdefault(len(value), [])
        if value not in same:
            same.append(value)
            if len(same) > _LENGTHS_KEPT:
                del same[1]
            if len(value) > 64:
                self._long.append(value)
                if len(self._long) > _LENGTHS_KEPT:
                    del self._long[1]

    def of_length(self, length: int) -> Sequence[bytes]:
        """Those of one length."""
        return self._by_length.get(length, ())

    def up_to(self, choices: Choices, most: int) -> bytes:
        """Some byte string that is not too long."""
        if self._long and choices.flag():
            return choices.pick(self._long)[:most]
        lengths = [length for length in self._by_length if length <= most]
        return choices.pick(self._by_length[choices.pick(lengths)]) if lengths else b""


def generate(choices: Choices, kind: Any, pool: Pool) -> Any:
    """A value of a declared type."""
    return _generate(choices, info_of(kind), pool)


def _generate(choices: Choices, info: Any, pool: Pool) -> Any:
    match info:
        case inspect.BoolType():
            return choices.flag()
        case inspect.NoneType():
            return None
        case inspect.FloatType():
            number = choices.pick((0.0, 1.5, -1.0, 1e300))
            low = number if info.ge is None else float(info.ge)
            return max(low, number if info.le is None else min(float(info.le), number))
        case inspect.LiteralType():
            return choices.pick(info.values)
        case inspect.DictType():
            return {
                _generate(choices, info.key_type, pool): _generate(choices, info.value_type, pool)
                for _ in range(choices.number(_MOST_ITEMS))
            }
        case inspect.ListType():
            return [
                _generate(choices, info.item_type, pool) for _ in range(choices.number(_MOST_ITEMS))
            ]
        case inspect.EnumType():
            return choices.pick(list(info.cls))
        case inspect.IntType():
            return _integer(choices, info, pool)
        case inspect.BytesType():
            return _octets(choices, info.min_length or 0, info.max_length, pool)
        case inspect.StrType():
            text = choices.octets(choices.number(12)).decode("latin-1")
            return text[: info.max_length]
        case inspect.VarTupleType():
            least = info.min_length or 0
            count = least + choices.number(_MOST_ITEMS)
            if info.max_length is not None:
                count = min(count, info.max_length)
            return tuple(_generate(choices, info.item_type, pool) for _ in range(count))
        case inspect.TupleType():
            return tuple(_generate(choices, item, pool) for item in info.item_types)
        case inspect.UnionType():
            return _generate(choices, choices.pick(info.types), pool)
        case inspect.StructType():
            return info.cls(*(_generate(choices, field.type, pool) for field in info.fields))
    raise TypeError(f"no values of {info} are known")


def _integer(choices: Choices, info: Any, pool: Pool) -> int:
    low = info.ge if info.ge is not None else -(1 << 63)
    high = info.le if info.le is not None else (1 << 63) - 1
    if info.lt is not None:
        high = info.lt - 1
    how = choices.number(4)
    if how == 0:
        number = choices.pick(_INTS)
    elif how == 1 and pool.numbers:
        number = choices.pick(pool.numbers) + choices.pick((0, 1, -1, 10**9, -(10**9)))
    elif how == 2:
        number = high - choices.number(3)
    else:
        number = choices.number(1 << 16)
    return max(low, min(high, number))


def _octets(choices: Choices, least: int, most: int | None, pool: Pool) -> bytes:
    if least == most:
        known = pool.of_length(least)
        if known and not choices.flag(8):
            return choices.pick(known)
        return choices.octets(least)
    longest = min(most if most is not None else _MOST_LONG, _MOST_LONG)
    if choices.flag():
        found = pool.up_to(choices, most if most is not None else 1 << 20)
        if len(found) >= least:
            return found
    return choices.octets(least + choices.number(longest - least + 1))


def mutate(choices: Choices, value: Any, kind: Any, pool: Pool) -> Any:
    """A value of the declared type that is nearly `value`."""
    return _mutate(choices, value, info_of(kind), pool)


def _mutate(choices: Choices, value: Any, info: Any, pool: Pool) -> Any:
    if isinstance(info, inspect.UnionType):
        for one in info.types:
            if isinstance(one, inspect.StructType) and type(value) is one.cls:
                return _mutate(choices, value, one, pool)
        return _generate(choices, info, pool)
    if isinstance(info, inspect.StructType) and isinstance(value, info.cls):
        if not info.fields:
            return value
        field = choices.pick(info.fields)
        before = getattr(value, field.name)
        nested = NESTED.get(field.name) if isinstance(before, bytes | tuple) else None
        if nested is not None and before and not choices.flag(8):
            after: Any = nested(choices, before, pool)
        else:
            after = _mutate(choices, before, field.type, pool)
        return msgspec.structs.replace(value, **{field.name: after})
    if isinstance(info, inspect.VarTupleType):
        items = list(value)
        how = choices.number(5)
        if items and how < 3:
            at = choices.number(len(items))
            items[at] = _mutate(choices, items[at], info.item_type, pool)
        elif items and how == 3:
            del items[choices.number(len(items))]
        elif items and choices.flag():
            items.append(choices.pick(items))
        else:
            items.append(_generate(choices, info.item_type, pool))
        return tuple(items)
    if isinstance(info, inspect.BytesType):
        return mutate_octets(choices, value, info.min_length == info.max_length, pool)
    return _generate(choices, info, pool)


def mutate_octets(choices: Choices, value: bytes, fixed: bool, pool: Pool) -> bytes:
    """Bytes that are nearly `value`, as long as it is if `fixed`."""
    octets = bytearray(value)
    how = choices.number(6)
    if how == 0 or not octets:
        known = pool.of_length(len(value))
        if known and (fixed or choices.flag()):
            return choices.pick(known)
        if not fixed:
            return pool.up_to(choices, 1 << 20)
    if how <= 2 and octets:
        at = choices.number(len(octets))
        octets[at] ^= 1 << choices.number(8)
    elif how == 3 and octets:
        at = choices.number(len(octets))
        octets[at : at + 8] = (choices.pick((0, (1 << 64) - 1))).to_bytes(8, "big")
        del octets[len(value) :]
    elif not fixed and how == 4:
        del octets[choices.number(len(octets) + 1) :]
    elif not fixed:
        octets += choices.octets(1 + choices.number(80))
    return bytes(octets)
