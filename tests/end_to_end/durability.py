"""A load that knows what was acknowledged to it, and a judge of what is there afterwards.

The writer works in a directory of its own, one operation at a time, and notes each in a journal on
the local disk: before it begins, and when it has been acknowledged (closed or synced). Whatever was
acknowledged must be found. The one operation that a kill has interrupted is done or not done, where
it is atomic; where it is not, nothing that was acknowledged before it may have changed.
"""

import hashlib
import json
import multiprocessing
import os
import random
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from tests.end_to_end.expectations import BLOCK

LARGEST = 2 * BLOCK


class Writer:
    """A process that works until it is stopped, or until the file system fails it."""

    def __init__(self, directory: Path, journal: Path, seed: int) -> None:
        self.directory = directory
        self._journal = journal
        journal.touch()
        self._process: ForkProcess = multiprocessing.get_context("fork").Process(
            target=_work, args=(directory, journal, seed), daemon=True
        )
        self._process.start()

    def acknowledged(self) -> int:
        """How many operations have been acknowledged so far."""
        return self._journal.read_bytes().count(b'"done"')

    def wait_for(self, more: int) -> None:
        """Until so many more operations have been acknowledged."""
        goal = self.acknowledged() + more
        while self.acknowledged() < goal:
            assert self._process.is_alive(), f"the writer has failed: {self.failure()}"
            time.sleep(0.01)

    def failure(self) -> str | None:
        """The error that ended the writer, if one did."""
        lines = [line for line in self._lines() if "failed" in line]
        return lines[-1]["failed"] if lines else None

    def stop(self) -> None:
        """End it after its present operation."""
        self.tell_to_stop()
        self._process.join()

    def tell_to_stop(self) -> None:
        """Let it end after its present operation."""
        self._journal.with_suffix(".stop").touch()

    def join(self, patience_s: float) -> bool:
        """Wait for its end; whether it has come."""
        self._process.join(patience_s)
        return not self._process.is_alive()

    def wait_for_failure(self) -> None:
        """Until the file system, which is gone, has failed it."""
        self._process.join()

    def verify(self, directory: Path) -> int:
        """Every acknowledged byte is in `directory`; how many files that were."""
        return verify(directory, self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._journal.read_text().splitlines()]


def verify(directory: Path, journal: list[dict[str, Any]]) -> int:
    """All that the journal has as acknowledged is in `directory`; how many files that were."""
    expected, begun = _acknowledged(journal)
    possible = [expected]
    exempt: set[str] = set()
    match begun:
        case {"op": "create", "name": name}:
            exempt = {name}
        case {"op": "append", "name": name, "size": size, "digest": digest}:
            exempt = {name}
            kept = (directory / name).read_bytes()[:size]
            assert hashlib.sha256(kept).hexdigest() == digest, f"{name}: lost before its end"
        case {"op": "replace", "name": name, "temporary": temporary, "digest": digest}:
            exempt = {temporary}
            possible.append({**expected, name: digest})
        case {"op": "rename", "name": name, "target": target}:
            after = {**expected, target: expected[name]}
            del after[name]
            possible.append(after)
        case {"op": "unlink", "name": name}:
            possible.append({n: d for n, d in expected.items() if n != name})
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.name not in exempt
    }
    possible = [{n: d for n, d in p.items() if n not in exempt} for p in possible]
    assert found in possible, _difference(found, possible[0], begun)
    return len(expected)


def _acknowledged(lines: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, Any] | None]:
    """The digests of all files by name, and the operation that was begun and not acknowledged."""
    files: dict[str, str] = {}
    begun: dict[str, Any] | None = None
    for line in lines:
        if "op" in line:
            begun = line
        elif "done" in line:
            assert begun is not None
            match begun["op"]:
                case "create" | "append" | "replace":
                    files[begun["name"]] = line["done"]
                case "rename":
                    files[begun["target"]] = files.pop(begun["name"])
                case "unlink":
                    del files[begun["name"]]
            begun = None
    return files, begun


def _difference(
    found: dict[str, str], expected: dict[str, str], begun: dict[str, Any] | None
) -> str:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    changed = sorted(n for n in found.keys() & expected.keys() if found[n] != expected[n])
    return f"missing {missing}, unexpected {extra}, changed {changed}; interrupted: {begun}"


def _work(directory: Path, journal: Path, seed: int) -> None:
    with journal.open("ab", buffering=0) as log:

        def note(**line: object) -> None:
            log.write(json.dumps(line).encode() + b"\n")

        try:
            directory.mkdir()
            load = _Load(directory, seed, note)
            while not journal.with_suffix(".stop").exists():
                load.step()
        except OSError as error:
            note(failed=repr(error))


class _Load:
    """The operations, and the files as they must be."""

    def __init__(self, directory: Path, seed: int, note: Any) -> None:
        self._directory = directory
        self._choice = random.Random(seed)
        self._note = note
        self._files: dict[str, bytes] = {}
        self._number = 0

    def step(self) -> None:
        acts = [self._create, self._append, self._append_synced, self._replace, self._rename,
                self._unlink]  # fmt: skip
        (act,) = self._choice.choices(acts, weights=[5, 4, 3, 3, 2, 1])
        if not self._files or len(self._files) > 40:
            act = self._unlink if self._files else self._create
        act()

    def _new_name(self) -> str:
        self._number += 1
        return f"file-{self._number}"

    def _some_name(self) -> str:
        return self._choice.choice(sorted(self._files))

    def _data(self) -> bytes:
        return self._choice.randbytes(self._choice.choice([10, 4096, 50_000, LARGEST]))

    def _done(self, data: bytes | None = None) -> None:
        self._note(done=None if data is None else hashlib.sha256(data).hexdigest())

    def _create(self) -> None:
        name, data = self._new_name(), self._data()
        self._note(op="create", name=name)
        (self._directory / name).write_bytes(data)
        self._done(data)
        self._files[name] = data

    def _append(self, *, synced: bool = False) -> None:
        name, data = self._some_name(), self._data()
        self._note(
            op="append",
            name=name,
            size=len(self._files[name]),
            digest=hashlib.sha256(self._files[name]).hexdigest(),
        )
        old = self._files[name]
        with (self._directory / name).open("ab", buffering=0) as file:
            file.write(data)
            if synced:
                os.fsync(file.fileno())
                self._done(old + data)
        if not synced:
            self._done(old + data)
        self._files[name] = old + data

    def _append_synced(self) -> None:
        self._append(synced=True)

    def _replace(self) -> None:
        name, data = self._some_name(), self._data()
        temporary = f"{name}.temporary"
        self._note(
            op="replace",
            name=name,
            temporary=temporary,
            digest=hashlib.sha256(data).hexdigest(),
        )
        (self._directory / temporary).write_bytes(data)
        (self._directory / temporary).rename(self._directory / name)
        self._done(data)
        self._files[name] = data

    def _rename(self) -> None:
        name, target = self._some_name(), self._new_name()
        self._note(op="rename", name=name, target=target)
        (self._directory / name).rename(self._directory / target)
        self._done()
        self._files[target] = self._files.pop(name)

    def _unlink(self) -> None:
        name = self._some_name()
        self._note(op="unlink", name=name)
        (self._directory / name).unlink()
        self._done()
        del self._files[name]
