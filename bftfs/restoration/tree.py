"""Trees of names: as they are, as they are to be, and in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, takewhile
from typing import NamedTuple

from bftfs import limits
from bftfs.identifiers import ObjectId


class Name(NamedTuple):
    """A name in a directory."""

    directory: ObjectId
    name: bytes


class Tree:
    """Names and objects; an object may stand in several places, or in none."""

    def __init__(self) -> None:
        self._entries: dict[ObjectId, dict[bytes, ObjectId]] = {}
        self._places: dict[ObjectId, dict[Name, None]] = {}

    def copy(self) -> Tree:
        """A tree of its own."""
        copied = Tree()
        copied._entries = {each: dict(entries) for each, entries in self._entries.items()}
        copied._places = {each: dict(places) for each, places in self._places.items()}
        return copied

    def get(self, name: Name) -> ObjectId | None:
        """The object that the name stands for."""
        return self._entries.get(name.directory, {}).get(name.name)

    def put(self, name: Name, identifier: ObjectId | None) -> None:
        """Let the name stand for an object, or for nothing."""
        entries = self._entries.setdefault(name.directory, {})
        before = entries.pop(name.name, None)
        if before is not None:
            del self._places[before][name]
        if identifier is not None:
            entries[name.name] = identifier
            self._places.setdefault(identifier, {})[name] = None

    def places(self, identifier: ObjectId) -> list[Name]:
        """The names that stand for the object."""
        return list(self._places.get(identifier, ()))

    def objects(self) -> list[ObjectId]:
        """All objects that have, or had, a place."""
        return list(self._places)

    def directories(self) -> list[ObjectId]:
        """All directories that have, or had, entries."""
        return sorted(self._entries)

    def names(self, directory: ObjectId) -> list[tuple[Name, ObjectId]]:
        """The entries of a directory, sorted."""
        entries = sorted(self._entries.get(directory, {}).items())
        return [(Name(directory, name), identifier) for name, identifier in entries]

    def below(self, tops: Iterable[ObjectId]) -> Iterator[ObjectId]:
        """The objects at `tops` and below, each once, and each after one that it stands in."""
        waiting = deque(dict.fromkeys(tops))
        seen = set(waiting)
        while waiting:
            directory = waiting.popleft()
            yield directory
            for identifier in self._entries.get(directory, {}).values():
                if identifier not in seen:
                    seen.add(identifier)
                    waiting.append(identifier)

    def is_in(self, directory: ObjectId, top: ObjectId) -> bool:
        """True if the directory is `top`, or stands somewhere below it."""
        passed: set[ObjectId] = set()
        while directory != top and directory not in passed:
            passed.add(directory)
            for name in self.places(directory):
                directory = name.directory
        return directory == top


class SpareNames:
    """Free names beside others: NAME.before-LABEL, NAME.before-LABEL-2 and so on."""

    def __init__(self, label: str, tree: Tree) -> None:
        self._label = label
        self._tree = tree
        self._used: set[Name] = set()

    def used_beside(self, name: Name) -> Iterator[Name]:
        """The names beside `name` that are in use now."""
        names = self._like(name, f".before-{self._label}")
        return takewhile(lambda each: self._tree.get(each) is not None, names)

    def use(self, name: Name) -> None:
        """The name is no longer free."""
        self._used.add(name)

    def take_beside(self, name: Name) -> Name:
        """A free name beside `name`; it is no longer free."""
        return self._take(name, f".before-{self._label}")

    def take_aside(self, name: Name) -> Name:
        """The same for an object that does not stay there: NAME.aside-LABEL and so on."""
        return self._take(name, f".aside-{self._label}")

    def _take(self, name: Name, suffix: str) -> Name:
        free = next(
            each
            for each in self._like(name, suffix)
            if each not in self._used and self._tree.get(each) is None
        )
        self.use(free)
        return free

    @staticmethod
    def _like(name: Name, suffix: str) -> Iterator[Name]:
        for number in count(1):
            end = (suffix + (f"-{number}" if number > 1 else "")).encode()
            yield name._replace(name=name.name[: limits.NAME_BYTES - len(end)] + end)
