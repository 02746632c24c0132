"""The steps that turn one tree into another, in an order in which a receiver can take them.

Trees are of one directory at two times; of a whole backup, the first tree has nothing but the
directory. An entry is a name in a directory, wherever that is: so what is in a directory that has
moved stays as it is. A file whose contents have changed counts as another file.

Every entry that is no longer there, or stands for something else, is taken first, the deepest
first, so that the other paths are still right. Then each entry that is new is made, the highest
first: from what was taken, or anew, or, for further names, by a link at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from msgspec.msgpack import encode

from bftfs.backup.stream import Names, NewLink, PlacedName, TakenName
from bftfs.crypto.digest import Digest, backup_tree_digest
from bftfs.filesystem.operations import FoundObject
from bftfs.identifiers import ObjectId

TOP: Final[Names] = ()

TreeAt: TypeAlias = Mapping[Names, FoundObject]  # everything in a directory by path, itself by TOP


class _Key(NamedTuple):
    """An object; a file with other contents is another object."""

    identifier: ObjectId
    contents: int


def _key(node: FoundObject) -> _Key:
    return _Key(node.identifier, node.attributes.contents if node.attributes.is_regular else 0)


def tree_digest(tree: TreeAt) -> Digest:
    """The digest of a tree: equal for trees that are equal in all that a backup tells of them."""
    rows = [(path, tree[path].identifier, tree[path].attributes.version) for path in sorted(tree)]
    return backup_tree_digest(encode(rows))


@dataclass(slots=True)
class TreeIncrement:
    """The steps of a receiver. Each list is in the order in which it is carried out."""

    taken: list[TakenName] = field(default_factory=list)
    # Places for what was taken, and paths at which something new is made.
    made: list[PlacedName | Names] = field(default_factory=list)
    links: list[NewLink] = field(default_factory=list)
    changed: list[Names] = field(default_factory=list)  # whose attributes are to be set


def increment(old: TreeAt, new: TreeAt) -> TreeIncrement:
    """The steps that turn the tree `old` into the tree `new`."""
    found = TreeIncrement()
    before, after = _entries(old), _entries(new)
    remaining = {_key(node) for node in new.values()}
    slots: defaultdict[_Key, list[int]] = defaultdict(list)
    touched = {new[TOP].identifier}  # directories of which an entry has changed
    for path in _deepest_first(old):
        entry, key = _entry(old, path), _key(old[path])
        if after.get(entry) == key:
            continue
        touched.add(entry[0])
        is_carried = _key(old[path[:-1]]) not in remaining  # with its directory, which goes too
        if key not in remaining and is_carried:
            continue
        slots[key].append(len(found.taken))
        found.taken.append(TakenName(path, len(found.taken)))
    there = {_key(node) for node in old.values()}
    at: dict[_Key, Names] = {}  # where an object is at the end
    linked: list[Names] = []
    for path in _highest_first(new):
        entry, key = _entry(new, path), _key(new[path])
        if before.get(entry) == key:
            at.setdefault(key, path)
            continue
        touched.add(entry[0])
        if slots[key]:
            found.made.append(PlacedName(slots[key].pop(), path))
        elif key in there or key in at:
            linked.append(path)
            continue
        else:
            found.made.append(path)
        at.setdefault(key, path)
    found.links = [NewLink(at[_key(new[path])], path) for path in linked]
    found.changed = list(_changed(old, new, touched))
    return found


def _changed(old: TreeAt, new: TreeAt, touched: set[ObjectId]) -> Iterator[Names]:
    """A path of each object whose attributes are to be set."""
    versions = {_key(node): node.attributes.version for node in old.values()}
    seen: set[_Key] = set()
    for path in (*_deepest_first(new), TOP):
        key = _key(new[path])
        is_same = versions.get(key) == new[path].attributes.version
        if key not in seen and (not is_same or key.identifier in touched):
            seen.add(key)
            yield path


def _entry(tree: TreeAt, path: Names) -> tuple[ObjectId, bytes]:
    """The directory and the name of a path."""
    return tree[path[:-1]].identifier, path[-1]


def _entries(tree: TreeAt) -> dict[tuple[ObjectId, bytes], _Key]:
    return {_entry(tree, path): _key(tree[path]) for path in tree if path}


def _highest_first(tree: TreeAt) -> list[Names]:
    return sorted(filter(None, tree), key=lambda path: (len(path), path))


def _deepest_first(tree: TreeAt) -> list[Names]:
    return _highest_first(tree)[::-1]
