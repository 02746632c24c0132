"""Two files that all clients write at the same time, and what has become of their bytes.

Each client writes records of its own into a table, which lie side by side, and appends lines to a
log. Whatever was closed or synced is there, whole and once. What was not may be there, whole and
once. Nothing else is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

RECORD_BYTES: Final = 60


@dataclass(slots=True)
class SharedFiles:
    """What clients have written, and whether they have closed it; and what is read in the end."""

    records: list[bytes] = field(default_factory=list)  # by their place in the table
    lines: list[bytes] = field(default_factory=list)
    closed: set[bytes] = field(default_factory=set)
    table: bytes | None = None
    log: bytes = b""

    def new_record(self, name: str) -> tuple[int, bytes]:
        """A record that nobody else writes, and its offset."""
        number = len(self.records)
        record = f"{name} {number} ".encode().ljust(RECORD_BYTES - 1, b"-") + b"\n"
        self.records.append(record)
        return number * RECORD_BYTES, record

    def new_line(self, name: str, size: int) -> bytes:
        """A line of about that size that nobody else writes."""
        line = f"{name} {len(self.lines)} ".encode().ljust(size, b"-") + b"\n"
        self.lines.append(line)
        return line


def check_shared_files(shared: SharedFiles) -> list[str]:
    """Findings; none if nobody has looked."""
    if shared.table is None:
        return []
    findings = []
    for number, record in enumerate(shared.records):
        there = shared.table[number * RECORD_BYTES : (number + 1) * RECORD_BYTES]
        is_missing = not there.strip(b"\0")
        if there != record and (record in shared.closed or not is_missing):
            was = "closed" if record in shared.closed else "written"
            findings.append(f"shared: {_short(record)} was {was}, and {_short(there)} is there")
    found = Counter(shared.log.splitlines(keepends=True))
    for line in shared.lines:
        times = found.pop(line, 0)
        if times > 1:
            findings.append(f"shared: {_short(line)} was appended once, and is there {times} times")
        elif not times and line in shared.closed:
            findings.append(f"shared: {_short(line)} was appended and closed, and is lost")
    findings += [f"shared: nobody has appended {_short(line)}" for line in found]
    return findings


def _short(written: bytes) -> str:
    return repr(written.strip(b"\0").split(b"-", 1)[0][:40])
