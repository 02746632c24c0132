"""Which long-lived objects of a client keep something about one node.

A client is played twice, once with the node correct and once with it misbehaving, and everything
else the same. A place remembers the misbehaviour if it says of that node what it said neither
before, nor says after the correct run. An attribute says something of node i in one of these forms:

- the value at i of a mapping whose keys are nodes, or of a sequence with one element for each node;
- membership of i, or of a tuple that has i, in a set;
- membership of i in a `Nodes`; in trees from before there was that type, bit i of a small integer.

Only objects that can be reached from the file system of the mount when no operation is under way
are looked at. What a round keeps about its own replies goes with the round, and does not count.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from types import FunctionType
from typing import Any

_DEPTH_MOST = 8  # of what is compared about a node; records are flatter
_ATOMS = str | bytes | bytearray | memoryview  # sequences that are not looked into


class Memory:
    """What can be reached from an object, and what that says about `node` among `n`."""

    def __init__(self, root: object, node: int, n: int, *, integers: bool) -> None:
        """With `integers`, these may be sets of nodes."""
        self._node = node
        self._integers = integers
        self._n = n
        self._seen: set[int] = set()
        # Path from the root: the class and attribute that hold it, and what it says.
        self.places: dict[str, tuple[str, str]] = {}
        self._walk(root, "")

    def _walk(self, value: object, path: str) -> None:
        """Record what the instances in `value` say, and those that they refer to."""
        if _is_instance(value) and not _is_node_set(value):
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
            kind = type(value)
            for name, attribute in _attributes(value):
                place = f"{path}.{name}"
                said = self._about(attribute)
                if said is not None:
                    holder = f"{_file(kind)}: {kind.__qualname__}.{name}"
                    self.places[place] = holder, said
                self._walk(attribute, place)
        elif isinstance(value, Mapping):
            per_node = self._is_per_node(value)
            for key, each in value.items():
                if not per_node or key != self._node:  # that was compared as a whole
                    self._walk(each, f"{path}[{key!r}]")
        elif isinstance(value, Sequence | Set) and not isinstance(value, _ATOMS):
            for position, each in enumerate(value):
                if len(value) != self._n or position != self._node:
                    self._walk(each, f"{path}[{position}]")

    def _is_per_node(self, value: Mapping[Any, Any]) -> bool:
        return bool(value) and all(type(key) is int and 0 <= key < self._n for key in value)

    def _about(self, value: object) -> str | None:
        """What `value` says of the node; None for nothing."""
        node = self._node
        if isinstance(value, bool | Enum | _ATOMS):
            return None
        if _is_node_set(value):
            return "in it" if node in value else None  # type: ignore[operator]
        if isinstance(value, int):
            if not self._integers:
                return None
            return "in it" if 0 < value < 1 << self._n and value >> node & 1 else None
        if isinstance(value, Mapping):
            if self._is_per_node(value):
                return _text(value[node]) if node in value else None
            return _joined((repr(key), self._about(each)) for key, each in value.items())
        if isinstance(value, Set):
            found = [each for each in value if each == node or _has(each, node)]
            return ", ".join(sorted(map(repr, found))) or None
        if isinstance(value, Sequence) and not hasattr(value, "_fields"):
            if len(value) == self._n:
                return _text(value[node])
            return _joined((str(at), self._about(each)) for at, each in enumerate(value))
        return None


def _is_node_set(value: object) -> bool:
    """True for `bftfs.asking.quorum.Nodes`: trees from before it used integers instead."""
    return type(value).__name__ == "Nodes"


def _has(value: object, node: int) -> bool:
    return isinstance(value, tuple) and node in value


def _joined(parts: Iterator[tuple[str, str | None]]) -> str | None:
    return "; ".join(f"{key}: {said}" for key, said in parts if said is not None) or None


def _is_instance(value: object) -> bool:
    """True for instances of the product's classes; those of the simulator are left out."""
    module = type(value).__module__
    return (
        module.startswith("bftfs.")
        and not module.startswith("bftfs.simulation")
        and not isinstance(value, type | Enum | FunctionType)
    )


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """Attributes of an instance, however its class stores them."""
    names = dict.fromkeys(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names.update(dict.fromkeys((slots,) if isinstance(slots, str) else slots))
    for listing in ("__struct_fields__", "_fields"):  # of msgspec, and of named tuples
        names.update(dict.fromkeys(getattr(type(value), listing, ())))
    for name in names:
        if not name.startswith("__") and hasattr(value, name):
            yield name, getattr(value, name)


def _text(value: object, depth: int = 0) -> str:
    """The whole of a value, comparable between two runs."""
    if depth > _DEPTH_MOST or isinstance(value, type | FunctionType):
        return type(value).__name__
    if _is_instance(value):
        inner = ", ".join(f"{name}={_text(it, depth + 1)}" for name, it in _attributes(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, Mapping):
        return repr({_text(k, depth + 1): _text(v, depth + 1) for k, v in value.items()})
    if isinstance(value, Set):
        return repr(sorted(_text(each, depth + 1) for each in value))
    if isinstance(value, tuple | list):
        return repr([_text(each, depth + 1) for each in value])
    return repr(value) if isinstance(value, int | str | bytes | Enum) else type(value).__name__


def _file(kind: type) -> str:
    return kind.__module__.replace(".", "/") + ".py"


def learned(before: Memory, after: Memory, honest: Memory) -> list[str]:
    """`file: Class.attribute` of the places that say of the node what they else would not.

    What they said before it misbehaved is no news, even if a correct node would have changed it.
    """
    return sorted(
        {
            place[0]
            for path, place in after.places.items()
            if place not in (before.places.get(path), honest.places.get(path))
        }
    )
