"""Reports as `bftfs inspect --json` and `bftfs status --json` print them."""

from __future__ import annotations

from typing import Any

from bftfs.query_update.inspection import Copy
from bftfs.read_write.inspection import Fragment

BLOCKS = 100
VERSION = "2026-11-23T10:00:00.000001+00:00"


def inspected(first: int, count: int) -> dict[str, Any]:
    """A file of a hundred blocks: the second has lost fragments, the third is a hole."""
    copies = [Copy.LATEST, Copy.BEHIND, Copy.DIFFERENT, Copy.UNSHOWN, Copy.SILENT, Copy.REFUSED]
    return {
        "path": "/a",
        "kind": "file",
        "size": BLOCKS * 4096,
        "n": 6,
        "t": 1,
        "b": 1,
        "fragments": 6,
        "needed": 3,
        "block_bytes": 4096,
        "blocks_in_all": BLOCKS,
        "inspected": VERSION,
        "objects": [
            {
                "name": "a\n<b>",
                "version": VERSION,
                "survives": -1,
                "nodes": [
                    {"node": node, "has": copy.value, "claims": None}
                    for node, copy in enumerate(copies)
                ],
            }
        ],
        "blocks": [_block(number) for number in range(first, min(first + count, BLOCKS))],
        "sentences": ["degraded: node 4 does not answer (object a\n<b>)"],
    }


def _block(number: int) -> dict[str, Any]:
    is_hole = number == 2
    parts = [Fragment.GOOD] * 6
    if number == 1:
        parts[1:5] = Fragment.LACKING, Fragment.FALSE, Fragment.SILENT, Fragment.REFUSED
    return {
        "number": number,
        "patch": None,
        "hole": is_hole,
        "version": None if is_hole else VERSION,
        "written_by": None if is_hole else "honest",
        "verified": number == 0,
        "verified_since": VERSION if number == 0 else None,
        "survives": 1,
        "nodes": [
            {
                "node": node,
                "fragment": (node + number) % 6,
                "has": part.value,
                "claims_verified": node == 0 and not is_hole,
            }
            for node, part in enumerate(parts)
        ],
    }


def status(*, down: tuple[int, ...] = (), degraded: tuple[int, ...] = ()) -> dict[str, Any]:
    """Six nodes, of which some are down or degraded."""
    nodes = [
        {
            "node": node,
            "up": node not in down,
            "healthy": node not in degraded,
            "address": f"unix:/nodes/{node}",
            "reasons": ["its disk is <full>"] if node in degraded else [],
        }
        for node in range(6)
    ]
    more = 1 - len(down)
    return {
        "nodes": nodes,
        "quorums": {"objects": {"more_may_fail": more}, "blocks": {"more_may_fail": more}},
        "degraded": {"objects": 2, "blocks": 3, "damaged_objects": 1},
        "unverified": {"block_versions": 7},
        "pool": {"fullest": 0.25},
        "sentences": [f"{len(down)} down"],
    }
