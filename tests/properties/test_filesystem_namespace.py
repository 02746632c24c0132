"""The namespace against nested dictionaries: any operations, from two mounts, with any delays.

Either there are two mounts: one caches nothing; the other believes nothing for longer than an
instant, but goes by what it remembers where it can find out that it was wrong. Or there is one that
believes everything for an hour. Neither must show.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

from bftfs.errors import FileSystemError
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import ObjectId
from tests.unit.filesystem.world import ROOT, ROOT_ID, World

NAMES = [b"a", b"b", b"c", b"\xff\xfe"]
names = st.sampled_from(NAMES)


@dataclass(eq=False)
class Model:
    """A directory if it has entries, else an inode."""

    entries: dict[bytes, Model] | None = None
    links: int = 1
    parent: Model | None = None
    identifier: ObjectId = field(default=ROOT_ID)

    def is_above(self, other: Model | None) -> bool:
        while other is not None:
            if other is self:
                return True
            other = other.parent
        return False


class Namespace(RuleBasedStateMachine):
    directories = Bundle("directories")
    inodes = Bundle("inodes")

    @initialize(target=directories, seed=st.integers(0, 1 << 32), is_alone=st.booleans())
    def begin(self, seed: int, is_alone: bool) -> Model:
        self.world = World(seed=seed)
        self.observer = self.world.mount(strict=True)
        if is_alone:
            # Names are believed for as long as the directory is, not for themselves.
            hour_us = 3_600_000_000
            alone = self.world.mount(
                attribute_timeout_us=hour_us, entry_timeout_us=0, absence_timeout_us=hour_us
            )
            self.mounts = [alone, alone]
        else:
            self.mounts = [
                self.world.mount(strict=True),
                self.world.mount(attribute_timeout_us=0, entry_timeout_us=0, absence_timeout_us=0),
            ]
        random = self.world.host.random
        self.world.objects.latency = lambda: random.choice((0, 3, 10))
        self.root = Model({})
        self.objects = [self.root]
        return self.root

    def _attempt(self, expected: int, conversation: Any) -> Any:
        """The result, or None where the model says that it must fail, with that errno."""
        outcome = self.world.host.start(conversation)
        self.world.host.settle()
        (result,) = outcome
        code = result.code if isinstance(result, FileSystemError) else 0
        assert errno.errorcode.get(code) == errno.errorcode.get(expected), result
        return None if code else result

    def _fs(self, which: int) -> FileSystem:
        return self.mounts[which % 2]

    @staticmethod
    def _taken(directory: Model, name: bytes) -> int:
        assert directory.entries is not None
        if name in directory.entries:
            return errno.EEXIST
        return 0 if directory.links else errno.ENOENT

    @rule(target=directories, which=st.integers(0, 1), directory=directories, name=names)
    def make_directory(self, which: int, directory: Model, name: bytes) -> Any:
        assert directory.entries is not None
        expected = self._taken(directory, name)
        found = self._attempt(
            expected,
            self._fs(which).make_directory(directory.identifier, name, 0o755, ROOT),
        )
        if found is None:
            return multiple()
        child = Model({}, parent=directory, identifier=found.identifier)
        directory.entries[name] = child
        self.objects.append(child)
        return child

    @rule(target=inodes, which=st.integers(0, 1), directory=directories, name=names)
    def make_node(self, which: int, directory: Model, name: bytes) -> Any:
        assert directory.entries is not None
        found = self._attempt(
            self._taken(directory, name),
            self._fs(which).make_node(directory.identifier, name, stat.S_IFIFO | 0o644, ROOT),
        )
        if found is None:
            return multiple()
        child = Model(identifier=found.identifier)
        directory.entries[name] = child
        self.objects.append(child)
        return child

    @rule(which=st.integers(0, 1), inode=inodes, directory=directories, name=names)
    def link(self, which: int, inode: Model, directory: Model, name: bytes) -> None:
        assert directory.entries is not None
        expected = self._taken(directory, name) or (0 if inode.links else errno.ENOENT)
        found = self._attempt(
            expected, self._fs(which).link(inode.identifier, directory.identifier, name, ROOT)
        )
        if found is not None:
            directory.entries[name] = inode
            inode.links += 1

    @rule(which=st.integers(0, 1), directory=directories, name=names)
    def unlink(self, which: int, directory: Model, name: bytes) -> None:
        assert directory.entries is not None
        child = directory.entries.get(name)
        expected = 0
        if child is None:
            expected = errno.ENOENT
        elif child.entries is not None:
            expected = errno.EISDIR
        if self._attempt(expected, self._fs(which).unlink(directory.identifier, name, ROOT)):
            del directory.entries[name]
            child.links -= 1

    @rule(which=st.integers(0, 1), directory=directories, name=names)
    def remove_directory(self, which: int, directory: Model, name: bytes) -> None:
        assert directory.entries is not None
        child = directory.entries.get(name)
        expected = 0
        if child is None:
            expected = errno.ENOENT
        elif child.entries is None:
            expected = errno.ENOTDIR
        elif child.entries:
            expected = errno.ENOTEMPTY
        if self._attempt(
            expected, self._fs(which).remove_directory(directory.identifier, name, ROOT)
        ):
            del directory.entries[name]
            child.links = 0
            child.parent = None

    @rule(
        which=st.integers(0, 1),
        source=directories,
        name=names,
        into=directories,
        new_name=names,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(
        self,
        which: int,
        source: Model,
        name: bytes,
        into: Model,
        new_name: bytes,
        flags: int,
    ) -> None:
        expected = self._refusal_of_rename(source, name, into, new_name, flags)
        before = self.world.run(self.observer.attributes(source.identifier, ROOT)).version
        self._attempt(
            expected,
            self._fs(which).rename(
                source.identifier, name, into.identifier, new_name, ROOT, flags=flags
            ),
        )
        if expected:
            after = self.world.run(self.observer.attributes(source.identifier, ROOT)).version
            assert after == before
            return
        assert source.entries is not None
        assert into.entries is not None
        child = source.entries[name]
        replaced = into.entries.get(new_name)
        if replaced is child:
            return
        del source.entries[name]
        into.entries[new_name] = child
        if child.entries is not None:
            child.parent = into
        if replaced is not None:
            if flags == RENAME_EXCHANGE:
                source.entries[name] = replaced
                if replaced.entries is not None:
                    replaced.parent = source
            elif replaced.entries is None:
                replaced.links -= 1
            else:
                replaced.links = 0
                replaced.parent = None

    @staticmethod
    def _refusal_of_rename(
        source: Model, name: bytes, target: Model, target_name: bytes, flags: int
    ) -> int:
        assert source.entries is not None
        assert target.entries is not None
        child = source.entries.get(name)
        replaced = target.entries.get(target_name)
        if child is None or (flags == RENAME_EXCHANGE and replaced is None):
            return errno.ENOENT
        if replaced is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if child.entries is not None and child.is_above(target):
            return errno.EINVAL
        if replaced is not None and replaced.entries is not None and replaced.is_above(source):
            return (
                errno.EINVAL
                if flags == RENAME_EXCHANGE
                else (
                    errno.EISDIR
                    if child.entries is None and replaced is not source
                    else errno.ENOTEMPTY
                )
            )
        if child is replaced:
            return 0
        if not target.links:
            return errno.ENOENT
        if replaced is not None and flags != RENAME_EXCHANGE:
            if child.entries is not None and replaced.entries is None:
                return errno.ENOTDIR
            if child.entries is None and replaced.entries is not None:
                return errno.EISDIR
            if replaced.entries:
                return errno.ENOTEMPTY
        return 0

    @rule(which=st.integers(0, 1), directory=directories, name=names)
    def lookup(self, which: int, directory: Model, name: bytes) -> None:
        assert directory.entries is not None
        child = directory.entries.get(name)
        found = self._attempt(
            errno.ENOENT if child is None else 0,
            self._fs(which).lookup(directory.identifier, name, ROOT),
        )
        if found is not None:
            assert found.identifier == child.identifier

    @rule(which=st.integers(0, 1), directory=directories, count=st.integers(1, 3))
    def list_directory(self, which: int, directory: Model, count: int) -> None:
        mount = self._fs(which)
        opened = self.world.run(mount.open_directory(directory.identifier, ROOT))
        listed: dict[bytes, ObjectId] = {}
        after = 0
        while entries := self.world.run(mount.read_directory(opened, after, count=count)):
            assert len(entries) <= count
            for entry in entries:
                assert entry.name not in listed
                assert entry.attributes is not None
                assert entry.file_type == entry.attributes.file_type
                listed[entry.name] = entry.identifier
            after = entries[-1].cookie
        assert directory.entries is not None
        assert listed == {name: child.identifier for name, child in directory.entries.items()}

    def teardown(self) -> None:
        for model in getattr(self, "objects", []):
            attributes = self.world.run(self.observer.attributes(model.identifier, ROOT))
            if model.entries is None:
                assert attributes.links == model.links
                continue
            assert attributes.entries == len(model.entries)
            if model.links:
                subdirectories = sum(child.entries is not None for child in model.entries.values())
                assert attributes.links == 2 + subdirectories
                assert attributes.parent == (model.parent or self.root).identifier
            else:
                assert attributes.links == 0


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
