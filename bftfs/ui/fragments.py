"""The map of nodes and fragments: what `bftfs inspect` finds out, cell by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bftfs.query_update.inspection import Copy
from bftfs.read_write.inspection import Fragment

BLOCKS_SHOWN: Final = 48  # on a page


@dataclass(frozen=True, slots=True)
class CellState:
    """What a node has, as the map shows it: a mark, a word, and what the word means."""

    mark: str
    word: str
    meaning: str
    severity: str  # good, waiting, bad: colours only


_VERIFIED: Final = CellState(
    "✓✓", "verified", "it came and is right; the node says that it has verified the version", "good"
)
_STORED: Final = CellState("✓", "right", "it came and is right, as this client has checked", "good")
_HOLE: Final = CellState("·", "hole", "nothing was ever written there", "none")

_FRAGMENTS: Final = {
    Fragment.GOOD.value: _STORED,
    Fragment.LACKING.value: CellState("○", "lacks", "the node does not have it yet", "waiting"),
    Fragment.FALSE.value: CellState(
        "✗", "false", "something else came: its disk is damaged, or it lies", "bad"
    ),
    Fragment.SILENT.value: CellState("–", "silent", "the node does not answer", "bad"),
    Fragment.REFUSED.value: CellState("!", "refuses", "the node refuses to answer", "bad"),
}
_COPIES: Final = {
    Copy.LATEST.value: CellState("✓", "latest", "it has the latest version", "good"),
    Copy.BEHIND.value: CellState("○", "behind", "it says that it has an older one", "waiting"),
    Copy.DIFFERENT.value: CellState("✗", "different", "it answers unlike the others", "bad"),
    Copy.UNSHOWN.value: CellState("?", "unshown", "it does not show what it says it has", "bad"),
    Copy.SILENT.value: _FRAGMENTS[Fragment.SILENT.value],
    Copy.REFUSED.value: _FRAGMENTS[Fragment.REFUSED.value],
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One node's part of one object or block."""

    node: int
    state: CellState
    fragment: int | None = None  # its number


@dataclass(frozen=True, slots=True)
class RowShown:
    """An object or block, and what each node has of it."""

    name: str
    version: str | None
    written_by: str | None
    verified_since: str | None
    verified: bool | None  # None: it needs no verification
    survives: int | None  # more nodes may fail; None: it needs none
    cells: list[Cell]

    @property
    def severity(self) -> str:
        """How bad it is that nodes lack something."""
        if self.survives is None:
            return "none"
        return "bad" if self.survives < 0 else "waiting" if self.survives == 0 else "good"


@dataclass(frozen=True, slots=True)
class FragmentMap:
    """The objects that lead to a path, the file's blocks, and how many cells are alike."""

    objects: list[RowShown]
    blocks: list[RowShown]
    legend: list[tuple[CellState, int]]


def fragment_map(report: dict[str, Any]) -> FragmentMap:
    """The map of a report of `bftfs inspect --json`."""
    objects = [_object(row) for row in report["objects"]]
    blocks = [_block(row) for row in report["blocks"]]
    return FragmentMap(objects, blocks, _legend([*objects, *blocks]))


def _object(row: dict[str, Any]) -> RowShown:
    cells = [Cell(node["node"], _COPIES[node["has"]]) for node in row["nodes"]]
    return RowShown(row["name"], row["version"], None, None, None, row["survives"], cells)


def _block(row: dict[str, Any]) -> RowShown:
    cells = [
        Cell(node["node"], _HOLE if row["hole"] else _state(node), node["fragment"])
        for node in row["nodes"]
    ]
    return RowShown(
        f"{row['number']} patch {row['patch']}" if row["patch"] else str(row["number"]),
        row["version"],
        row["written_by"],
        row["verified_since"],
        None if row["hole"] else row["verified"],
        None if row["hole"] else row["survives"],
        cells,
    )


def _state(node: dict[str, Any]) -> CellState:
    if node["has"] == Fragment.GOOD.value and node["claims_verified"]:
        return _VERIFIED
    return _FRAGMENTS[node["has"]]


def _legend(rows: Iterable[RowShown]) -> list[tuple[CellState, int]]:
    """The states that there are, each with its number of cells, the most frequent first."""
    return Counter(cell.state for row in rows for cell in row.cells).most_common()
