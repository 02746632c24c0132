"""Random schedules of two hard mounts that write one file, beside nodes that collect.

Answers and updates of one mount are lost, programs are interrupted, nodes are down, half of them
have room for everything, and the window passes. In the end all messages arrive: then each program's
`fsync` ends, soon, and what it says is true.
"""

from __future__ import annotations

import errno
import os
from random import Random
from typing import Any

import pytest

from bftfs.errors import FateUnknown, FileSystemError, NoLongerKept
from bftfs.filesystem.block_writing import BlockWriter
from bftfs.filesystem.options import Options
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Update, UpdateReply
from bftfs.server.kept_blocks import CollectedPast
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from tests.seams.world import BLOCK_BYTES, SUPERUSER, VOLUME, World

ACTS = 9
ROOMY = tuple(map(NodeId, (0, 2, 4)))
WINDOW_S = 600
BEGINNING = b"." * (BLOCK_BYTES - 30)


class Mount:
    """A mount with the file open, what its program has appended, and what was said to be saved."""

    def __init__(self, world: World, name: str, identifier: Any, saves_bytes: int) -> None:
        self.user = world.user(name)
        self.files = self.user.filesystem(
            Options(access_times=False, patch_saves_bytes=saves_bytes)
        )
        self.file = self.user.run(self.files.open(identifier, os.O_RDWR, SUPERUSER))
        self.world = world
        self.name = name
        self.lines = 0
        self.unsaved: set[bytes] = set()

    def append(self) -> None:
        """Write a line that is there nowhere else."""
        line = b"<%s%d>" % (self.name.encode(), self.lines)
        self.lines += 1
        self.unsaved.add(line)
        self.files.write(self.file, None, line, now_ns=self.world.now_us * 1_000)

    def overwrite(self) -> None:
        """Write over all that the mount knows of the file."""
        content = b"x" * self.file.contents.size
        self.files.write(self.file, 0, content, now_ns=self.world.now_us * 1_000)


class Schedule:
    """Two mounts, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(f"covers {seed}")
        plan = CollectionPlan(WINDOW_S * SECOND_US, roomy=random.choice((ROOMY, ROOMY[:1], ())))
        self.world = World(collection=plan, volume=VOLUME, seed=seed)
        maker = self.world.user("maker")
        maker.format()
        self.identifier = maker.make("file", BEGINNING.decode())
        saves_bytes = random.choice((0, 1 << 20))
        self.mounts = [Mount(self.world, name, self.identifier, saves_bytes) for name in ("a", "b")]
        self.saved: set[bytes] = set()  # and not written over since
        self.findings: list[str] = []

    def _lose(self) -> None:
        """From now on, updates of the first mount are lost, or the answers to them."""
        me, arrives = self.mounts[0].user.host.endpoint, self.random.random() < 0.5
        self.world.ways.hold(
            lambda source, target, _kind, message: (
                target == me and isinstance(message, UpdateReply)
                if arrives
                else source == me and isinstance(message, Update)
            )
        )

    def _save(self, mount: Mount, within_us: int) -> bool:
        """Sync. True if that has ended in time; if not, the program is interrupted."""
        lines = set(mount.unsaved)
        outcome: list[Any] = []
        running = mount.user.host.start(
            mount.files.synchronize(mount.file), lambda _, error: outcome.append(error)
        )
        until_us = self.world.now_us + within_us
        while not outcome and self.world.now_us < until_us:
            self.world.run_for(within_us // 20)
        if not outcome:
            running.cancel()
            return False
        match outcome[0]:
            case None:
                self.saved |= lines
            case NoLongerKept():  # what it wrote was replaced, and is gone
                pass
            case FileSystemError(code=errno.EIO):  # nobody knows
                pass
            case error:
                self.findings.append(f"{mount.name} is told {error!r}")
        mount.unsaved -= lines
        return True

    def _act(self) -> None:
        random, world = self.random, self.world
        first, second = self.mounts
        match random.choice(("lose", "first", "second", "second", "overwrite", "pass", "pass")):
            case "lose":
                first.append()
                self._lose()
                self._save(first, SECOND_US)
            case "first":
                first.append()
                self._save(first, 10 * SECOND_US)
            case "second":
                second.append()
                self._save(second, 60 * SECOND_US)
            case "overwrite":
                second.overwrite()
                self.saved.clear()
                for mount in self.mounts:  # which may be there by now
                    mount.unsaved.clear()
                self._save(second, 60 * SECOND_US)
            case _:
                world.user("other").chmod(self.identifier, random.choice((0o600, 0o640)))
                world.run_for(random.randint(1, 2 * WINDOW_S) * SECOND_US)

    def run(self) -> list[str]:
        """What is wrong in the end."""
        for _ in range(ACTS):
            self._act()
        world, random = self.world, self.random
        world.ways.hold(lambda *_: False)  # what was lost stays lost
        if random.random() < 0.3:
            world.nodes[random.randrange(6)].crash(down_us=None)
        for mount in self.mounts:
            for _ in range(2):
                if not self._save(mount, 200 * SECOND_US):
                    self.findings.append(f"the fsync of {mount.name} does not end")
        content = world.user("reader").read(self.identifier, 3 * BLOCK_BYTES).encode()
        for mount in self.mounts:
            for number in range(mount.lines):
                line = b"<%s%d>" % (mount.name.encode(), number)
                if content.count(line) > 1 or (line in self.saved and line not in content):
                    self.findings.append(f"{line!r} is there {content.count(line)} times")
        return self.findings


def test_each_fsync_ends_and_says_what_is_true() -> None:
    for seed in range(12):
        findings = Schedule(seed).run()
        assert not findings, (seed, findings)


def test_must_fail_where_nodes_do_not_say_that_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CollectedPast, "may_be_named", lambda *_: True)
    assert "the fsync of a does not end" in Schedule(6).run()


def test_must_fail_where_nobody_looks_at_what_the_inode_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: Any) -> None:
        raise FateUnknown("inode.write")

    monkeypatch.setattr(BlockWriter, "_judge_by_names", fail)
    assert any("FateUnknown" in each for each in Schedule(1).run())
