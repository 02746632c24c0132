"""Random schedules of mounts that write, append to, cut and read one file, against a model.

Answers and updates of a mount are lost, also just those of a cut; nodes have no room for its
blocks; programs are interrupted, a node is down, nodes collect, and the window passes. After each
act the file is read anew, and what has become of it is compared with what the act may have done:

- what was synced or closed is there, until somebody writes over it or cuts it off;
- what is gone never comes back, and an appended line is there as a whole, or not at all;
- who opens the file sees it as it is, and nothing of what no update has named;
- nothing waits for ever, and each handle is told once what is lost.

The file consists of cells: each is a hole, or a piece of a line that is there nowhere else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Coroutine
from itertools import takewhile
from random import Random
from typing import Any

import pytest

from bftfs.errors import AdmissionRefused, BftfsError, FileSystemError, NoLongerKept
from bftfs.filesystem.block_writing import BlockWriter
from bftfs.filesystem.contents import Contents
from bftfs.filesystem.options import Options
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Update, UpdateReply
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from tests.seams.world import BLOCK_BYTES, SUPERUSER, VOLUME, World

ACTS = 14
WINDOW_S = 600
ROOMY = tuple(map(NodeId, (0, 2, 4)))
CELL = 16  # bytes
BLOCK = BLOCK_BYTES // CELL  # cells
HOLE = bytes(CELL)
MOST_CELLS = 6 * BLOCK  # of a file, from which on it is not written behind its end
SIZES = (1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK, 2 * BLOCK + 7)
FULL = (errno.ENOSPC, errno.EDQUOT)

Cells = tuple[bytes, ...]


def line_of(name: bytes, length: int) -> Cells:
    """Cells that are there nowhere else. `name` has six characters."""
    return tuple(b"<%s.%07d>" % (name, number) for number in range(length))


def cells_of(content: bytes) -> Cells:
    return tuple(content[at : at + CELL] for at in range(0, len(content), CELL))


class Mount:
    """A mount that writes, by two handles, and what it has written that may not be saved."""

    def __init__(self, world: World, name: str, identifier: Any, options: Options) -> None:
        self.world, self.name, self.identifier = world, name, identifier
        self.user = world.user(name)
        self.files = self.user.filesystem(options)
        self.handles = [self.opened(), self.opened()]
        self.lines = 0
        # What was written to cells of the file, the newest last, and lines that were appended; as
        # far as they may not be saved yet.
        self.placed: dict[int, Cells] = {}
        self.appended: list[Cells] = []
        self.unsure: set[bytes] = set()  # cells of these that may be lost
        self.shortened: set[Cells] = set()  # lines of which the end may be lost
        self.owed: set[int] = set()  # handles that have not told a failure yet
        self.was_cut_off = False
        self.unfinished: list[int | None] = []  # the cut, if any, of an act that was interrupted
        self.refusal: int | None = None  # of nodes that take no block of this mount
        write_many = self.user.blocks.write_many

        async def write(*args: Any, **options: Any) -> Any:
            if self.refusal is not None:
                raise AdmissionRefused(code=self.refusal, reason="no room")
            return await write_many(*args, **options)

        self.user.blocks.write_many = write  # type: ignore[method-assign]

    def opened(self) -> Any:
        return self.user.run(self.files.open(self.identifier, os.O_RDWR, SUPERUSER))

    @property
    def contents(self) -> Contents:
        found: Contents = self.handles[0].contents
        return found

    def write(self, start: int | None, length: int) -> None:
        """Write a line at cell `start`; with None, append it."""
        line = line_of(b"%s%05d" % (self.name.encode(), self.lines), length)
        self.lines += 1
        offset = None if start is None else start * CELL
        now_ns = self.world.now_us * 1_000
        self.files.write(self.handles[0], offset, b"".join(line), now_ns=now_ns)
        if start is None:
            self.appended.append(line)
        else:
            for place, cell in enumerate(line, start):
                self.placed[place] = (*self.placed.get(place, ()), cell)

    @property
    def told(self) -> str:
        placed = [
            self.placed.get(place, (HOLE,))[-1] for place in range(max(self.placed, default=-1) + 1)
        ]
        lines = [cell for line in self.appended for cell in line]
        return f"{describe(tuple(placed))} + {describe(tuple(lines))}, unsure {len(self.unsure)}"

    @property
    def unsaved(self) -> set[bytes]:
        return {cell for cells in (*self.placed.values(), *self.appended) for cell in cells}

    def settle(self, cells: Cells) -> None:
        """What is there was saved, and is not written again."""
        there = set(cells)
        for place, written in tuple(self.placed.items()):
            saved = [number for number, cell in enumerate(written) if cell in there]
            if saved:
                self.placed[place] = written[saved[-1] + 1 :]
                if not self.placed[place]:
                    del self.placed[place]
        self.appended = [line for line in self.appended if there.isdisjoint(line)]

    def drop_behind(self, cut: int) -> None:
        """A cut that was to make room has failed: what is behind it is not written any more."""
        self.placed = {place: cells for place, cells in self.placed.items() if place < cut}
        self.shortened.update(self.appended)
        self.unsure |= self.unsaved

    def forget(self) -> None:
        """All is saved, or will not be."""
        self.placed.clear()
        self.appended.clear()
        self.unsure.clear()
        self.shortened.clear()


def explains(
    mount: Mount, before: Cells, after: Cells, cut: int | None = None, *, is_sure: bool
) -> bool:
    """True if the file may be so once `mount` has saved it, and cut it; has to, if it `is_sure`."""
    if cut is not None:
        if is_sure and len(after) != cut:
            return False
        if not is_sure and explains(mount, before, after, is_sure=False):
            return True
        if len(after) != cut:
            return False
        before = before[:cut]
    due = mount.unsaved - mount.unsure if is_sure else set()
    required = [line for line in mount.appended if not due.isdisjoint(line)]
    places = [place for place in mount.placed if cut is None or place < cut]
    starts = {len(before), *(place + 1 for place in places if place >= len(before))}
    for place in places:
        newest = mount.placed[place][-1:]
        if not due.isdisjoint(newest) and after[place : place + 1] != newest:
            return False
    first = {line[0]: line for line in mount.appended}
    start = next((place for place, cell in enumerate(after) if cell in first), len(after))
    if start < len(after) and start not in starts and cut is None:
        return False
    for place, cell in enumerate(after[:start]):
        is_as_before = place < len(before) and cell == before[place]
        is_hole = place >= len(before) and cell == HOLE and (cut is not None or places)
        if not (is_as_before or is_hole or cell in mount.placed.get(place, ())):
            return False
    if len(after) < len(before):
        return False
    place, lines = start, []
    while place < len(after):
        line = first.get(after[place])
        if line is None:
            return cut is not None and set(after[place:]) == {HOLE} and lines_are(lines, required)
        found = len(
            tuple(
                takewhile(lambda pair: pair[0] == pair[1], zip(line, after[place:], strict=False))
            )
        )
        is_cut_off = cut is not None and place + found == cut
        if found < len(line) and not (is_cut_off or line in mount.shortened):
            return False
        lines.append(line)
        place += found
    return cut is not None or lines_are(lines, required)


def lines_are(lines: list[Cells], required: list[Cells]) -> bool:
    """True if those that are required are there."""
    return all(line in lines for line in required)


class Schedule:
    """Two mounts that write, two that read, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(f"cuts {seed}")
        plan = CollectionPlan(WINDOW_S * SECOND_US, roomy=random.choice((ROOMY, ROOMY[:1], ())))
        self.world = World(collection=plan, volume=VOLUME, seed=seed)
        self.maker = self.world.user("maker")
        self.maker.format()
        self.cells = line_of(b"m00000", random.choice((3, BLOCK, BLOCK + 9)))
        self.identifier = self.maker.make("file", b"".join(self.cells).decode())
        options = Options(
            access_times=False,
            patch_saves_bytes=random.choice((0, 0, 1 << 20)),
            cache_bytes=random.choice((0, 32 << 20)),
        )
        self.mounts = [Mount(self.world, name, self.identifier, options) for name in ("a", "b")]
        users = [self.world.user(name) for name in ("r", "s")]
        options = Options(access_times=False)
        self.readers = [(user, user.filesystem(options)) for user in users]
        self.down: int | None = None
        self.log: list[str] = []
        self.findings: list[str] = []

    # --- faults -----------------------------------------------------------------------------------

    def _lose(self, mount: Mount, what: str) -> None:
        """From now on, these messages between the mount and some nodes are lost."""
        me, is_cutting = mount.user.host.endpoint, False
        nodes = [node.endpoint for node in self.world.nodes]
        deaf = nodes if self.random.random() < 0.7 else self.random.sample(nodes, 3)

        def holds(source: Any, target: Any, _kind: Any, message: Any) -> bool:
            nonlocal is_cutting
            if source == me and isinstance(message, Update):
                is_cutting |= b"inode.truncate" in message.conditioned
                return source == me and what == "updates" and target in deaf
            if target == me and isinstance(message, UpdateReply) and source in deaf:
                return what == "replies" or (what == "answer of the cut" and is_cutting)
            return False

        self.world.ways.hold(holds)

    def _heal(self, mount: Mount) -> None:
        self.world.ways.hold(lambda *_: False)  # what was lost stays lost
        mount.refusal = None

    # --- acts -------------------------------------------------------------------------------------

    def _perform(
        self, mount: Mount, conversation: Coroutine[Any, Any, Any], within_us: int
    ) -> tuple[list[Any], list[Any] | None]:
        """What it comes to; nothing if the program is interrupted. And what a reader sees then."""
        outcome: list[Any] = []
        running = mount.user.host.start(conversation, lambda _, error: outcome.append(error))
        seen = None
        if self.random.random() < 0.4:
            self.world.run_for(self.random.randrange(6_000))
            user, files = self.random.choice(self.readers)
            seen = self.world.start(user.host, self._reading(files))
        until_us = self.world.now_us + within_us
        while self.world.now_us < until_us and (not outcome or seen == []):
            self.world.run_for(min(SECOND_US // 10, within_us // 20))
        if not outcome:
            running.cancel()
        return outcome, seen

    async def _reading(self, files: Any) -> Cells:
        file = await files.open(self.identifier, os.O_RDONLY, SUPERUSER)
        content = bytes(await files.read(file, 0, 64 * BLOCK_BYTES))
        await files.release(file)
        return cells_of(content)

    def _read(self, user: Any, files: Any) -> Cells | None:
        """The file as it is."""
        ended = self.world.start(user.host, self._reading(files))
        until_us = self.world.now_us + 200 * SECOND_US
        while not ended and self.world.now_us < until_us:
            self.world.run_for(SECOND_US // 10)
        if not ended or isinstance(ended[0], BaseException):
            self.findings.append(f"a reader is told {ended!r}")
            return None
        found: Cells = ended[0]
        return found

    async def _cut_at_open(self, mount: Mount) -> None:
        file = await mount.files.open(self.identifier, os.O_WRONLY | os.O_TRUNC, SUPERUSER)
        mount.files._contents.abandon(file)

    async def _close(self, mount: Mount) -> None:
        """Close each handle: the last one also if nodes refuse what it would save."""
        failures = []
        for handle in mount.handles:
            try:
                await mount.files.release(handle)
            except BftfsError as failure:
                failures.append(failure)
        if failures:
            raise failures[-1]

    def _save(self, mount: Mount, act: str, fault: str = "none") -> None:
        """Have a mount sync, close or cut, and look at what has become of the file."""
        random = self.random
        cut = None
        match act:
            case "cut":
                cut = random.choice((0, len(self.cells), *self._places(), *self._places()))
                conversation = mount.files.truncate(self.identifier, cut * CELL, SUPERUSER)
            case "cut at open":
                cut = 0
                conversation = self._cut_at_open(mount)
            case "close":
                conversation = self._close(mount)
            case _:
                conversation = mount.files.synchronize(mount.handles[0])
        self.log.append(f"{mount.name}: {act} {cut} {fault} | {mount.told}")
        match fault:
            case "no room":
                mount.refusal = random.choice(FULL)
            case "none":
                pass
            case _:
                self._lose(mount, fault)
                mount.was_cut_off = True
        is_short = fault not in ("none", "no room")
        within_us = random.randint(1, 3) * SECOND_US if is_short else 200 * SECOND_US
        contents, before = mount.contents, self.cells
        failures = contents.failures
        outcome, seen = self._perform(mount, conversation, within_us)
        self._heal(mount)
        if not outcome and not is_short:
            self.findings.append(f"{act} of {mount.name} does not end")
        mount.unfinished = [] if outcome else [cut]
        failed = contents.failures - failures
        error = outcome[0] if outcome else None
        if outcome:
            self._judge(mount, act, error, fault, failed)
        elif failed:
            mount.owed = {0, 1}
        is_refused = isinstance(error, AdmissionRefused) and failed == 1 and act == "sync"
        is_lost = failed > 0 and not is_refused
        is_sure = bool(outcome) and not failed and (error is None or not act.startswith("cut"))
        after = self._read(self.maker, self.maker.files)
        self.log.append(f"   -> {outcome} {failed} {describe(after or ())}")
        if after is None:
            return
        if not explains(mount, before, after, cut, is_sure=is_sure):
            self.findings.append(f"after {act} of {mount.name}: {describe(after)}")
        self.cells = after
        self._judge_what_was_seen(mount, seen, before, is_cut=cut is not None)
        mount.settle(after)
        if is_sure or act == "close":
            mount.forget()
        elif cut is not None and isinstance(error, AdmissionRefused):
            mount.drop_behind(cut)
        elif is_lost or (cut is not None and len(after) == cut):
            mount.unsure |= mount.unsaved
        if act == "close":
            mount.handles = [mount.opened(), mount.opened()]
            mount.owed.clear()
        contents = mount.contents
        if contents.handles != len(mount.handles):
            self.findings.append(f"{mount.name} takes the file to be open {contents.handles} times")
        if not contents.is_unsaved and (contents.dirty or contents.uncovered):
            self.findings.append(f"{mount.name} takes for saved what is not")

    def _judge(self, mount: Mount, act: str, error: Any, fault: str, failed: int) -> None:
        """A failure is told once by each handle; by a cut only if it is one of its own."""
        is_owed = (
            bool(mount.owed) if act == "close" else (act in ("sync", "write") and 0 in mount.owed)
        )
        match error:
            case None:
                is_expected = not is_owed and (not failed or act.startswith("cut"))
            case AdmissionRefused():
                is_expected = is_owed or fault == "no room"
            case NoLongerKept() | FileSystemError(code=errno.EIO):
                is_expected = mount.was_cut_off and (is_owed or failed > 0)
            case _:
                is_expected = False
        if not is_expected:
            owed = f"{failed} {mount.owed}"
            self.findings.append(f"{act} of {mount.name} is told {error!r}, owed {owed}")
        if failed:
            mount.owed = {0, 1}
        if act in ("sync", "write"):
            mount.owed.discard(0)

    def _judge_what_was_seen(
        self, mount: Mount, seen: list[Any] | None, before: Cells, *, is_cut: bool
    ) -> None:
        """What a reader was shown beside the act was part of the file then."""
        if seen is None:
            return
        if not seen or isinstance(seen[0], BaseException):
            self.findings.append(f"a reader beside {mount.name} is told {seen!r}")
            return
        named = {HOLE, *before, *self.cells}
        if is_cut or before != self.cells:  # it may have saved what it has overwritten or cut since
            named |= mount.unsaved
        if not named.issuperset(seen[0]):
            self.findings.append(f"a reader beside {mount.name} sees {describe(seen[0])}")

    def _places(self) -> tuple[int, ...]:
        """Cells in the file: at the beginning of a block, and anywhere."""
        cells = max(1, len(self.cells))
        return self.random.randrange(cells), self.random.randrange(cells) // BLOCK * BLOCK

    def _write(self, mount: Mount) -> None:
        """Two lines at most, in the file as the mount knows it or behind its end."""
        random = self.random
        for _ in range(random.choice((1, 1, 2))):
            contents = mount.contents
            # What is written into appended bytes goes with them.
            known = (
                min((contents.attributes.size, *(start for start, _ in contents.appends))) // CELL
            )
            start = None
            if known > MOST_CELLS or (known and random.random() < 0.5):
                place = random.randrange(known)
                start = place if random.random() < 0.5 else place // BLOCK * BLOCK
            length = random.choice(SIZES)
            if start is not None:
                length = max(1, min(length, known - start))
            try:
                mount.write(start, length)
            except BftfsError as failure:  # of earlier
                self._judge(mount, "write", failure, "none", 0)

    def _act(self) -> None:
        random = self.random
        mount = random.choice(self.mounts)
        if random.random() < 0.1:
            self._change_nodes()
        match random.choices(("write", "save", "lose", "read", "pass"), (3, 5, 4, 2, 3))[0]:
            case "write":
                self._write(mount)
            case "save":
                self._write(mount)
                self._save(mount, random.choice(("sync", "sync", "close", "cut", "cut at open")))
            case "lose":
                self._write(mount)
                act = random.choice(("sync", "sync", "cut", "cut at open"))
                faults = ["updates", "replies", "no room"]
                if act != "sync":
                    faults.append("answer of the cut")
                self._save(mount, act, random.choice(faults))
            case "read":
                self._look(*random.choice(self.readers))
            case _:
                self.log.append("pass")
                self.world.user("other").chmod(self.identifier, random.choice((0o600, 0o640)))
                self.world.run_for(random.randint(1, 2 * WINDOW_S) * SECOND_US)

    def _look(self, user: Any, files: Any) -> None:
        """Who opens the file sees it as it is."""
        found = self._read(user, files)
        if found is None or found == self.cells:
            return
        for mount in self.mounts:
            for cut in mount.unfinished:  # nodes may finish what its client does not
                if explains(mount, self.cells, found, cut, is_sure=False):
                    self.cells = found
                    mount.settle(found)
                    return
        self.findings.append(f"a reader sees {describe(found)}, not {describe(self.cells)}")

    def _change_nodes(self) -> None:
        nodes = self.world.nodes
        if self.down is None:
            self.down = self.random.randrange(len(nodes))
            nodes[self.down].crash(down_us=None)
        else:
            nodes[self.down].start()
            self.down = None
        self.log.append(f"down: {self.down}")

    def run(self) -> list[str]:
        """What is wrong, at the first time."""
        for _ in range(ACTS):
            self._act()
            if self.findings:
                return self.findings
        for mount in self.mounts:
            for act in ("sync", "close"):
                self._save(mount, act)
        for reader in self.readers:
            self._look(*reader)
        return self.findings


def describe(cells: Cells) -> str:
    """Runs of cells, as `a00003[0:5]`."""
    runs: list[list[Any]] = []
    for cell in cells:
        name, number = (cell[1:7].decode(), int(cell[8:15])) if cell != HOLE else ("hole", 0)
        if runs and runs[-1][0] == name and (name == "hole" or runs[-1][2] == number):
            runs[-1][2] += 1
        else:
            runs.append([name, number, number + 1])
    return " ".join(f"{name}[{start}:{stop}]" for name, start, stop in runs)


@pytest.mark.parametrize("seed", range(16))
def test_what_was_saved_stays_and_what_was_cut_off_does_not_come_back(seed: int) -> None:
    schedule = Schedule(seed)
    assert schedule.run() == [], "\n".join(schedule.log)


def test_must_fail_where_a_cut_forgets_before_it_has_come_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truncate = BlockWriter.truncate

    async def forget(writer: BlockWriter, contents: Contents, size: int, who: Any) -> None:
        writer.unsaved.cut(contents, size)
        await truncate(writer, contents, size, who)

    monkeypatch.setattr(BlockWriter, "truncate", forget)
    assert any(Schedule(seed).run() for seed in (4, 10, 13))
