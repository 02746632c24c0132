"""What `bftfs status` says of a node's background work."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import Any

from rich.console import Console

from bftfs import cluster
from bftfs.cli.status import (
    _ahead,
    _compared,
    _work,
    ahead,
    ahead_inodes,
    degraded,
    descriptions,
    objects,
    pool,
    quorums,
    tell,
    unverified,
    writers,
)
from bftfs.cluster import ClusterDescription


def test_a_node_without_work_says_nothing() -> None:
    assert _work({}) == []
    assert _work({"background": {"bftfs_heal_blocks_progress": 1.0}}) == []


def test_healing_failures_and_waiting_writers_are_told() -> None:
    figures = {
        "bftfs_heal_blocks_progress": 0.25,
        "bftfs_heal_blocks_rebuilt": 40.0,
        "bftfs_heal_objects_progress": 1.0,
        "bftfs_heal_objects_failed": 2.0,
        "bftfs_verification_demands": 7.0,
    }
    assert _work({"background": figures}) == [
        "2 times objects could not be rebuilt",
        "heals: 25% of blocks compared, 40 rebuilt",
        "7 writes waited for verification: their client was at a limit",
    ]


# --- the whole cluster -----------------------------------------------------------------------


def node(number: int, *, up: bool = True, reasons: tuple[str, ...] = (), **figures: float) -> dict:  # type: ignore[type-arg]
    state = {"node": number, "up": up, "reasons": list(reasons), "healthy": not reasons}
    state |= {"local": True}
    if up:
        background = {f"bftfs_{name}": value for name, value in figures.items()}
        state |= {"store_bytes": 40, "used_bytes": 30, "free_bytes": 70, "objects": number}
        state |= {"background": background}
    return state


def description() -> ClusterDescription:
    addresses = [f"unix:/nowhere/{number}" for number in range(6)]
    return cluster.create(addresses, t=1, b=1, draw=os.urandom).description


def test_how_many_more_may_fail() -> None:
    found = quorums(description(), [node(number) for number in range(6)])
    assert found["objects"] == {"n": 6, "quorum": 5, "repairable": 3, "more_may_fail": 1}
    assert found["blocks"] == {
        "n": 6,
        "answers": 5,
        "fragments_needed": 3,
        "more_may_fail": 1,
    }
    nodes = [node(0, up=False), node(1, recovering=1), *(node(number) for number in range(2, 6))]
    found = quorums(description(), nodes)
    assert found["whole"] == 4
    assert found["objects"]["more_may_fail"] == found["blocks"]["more_may_fail"] == -1


def test_what_is_degraded() -> None:
    nodes = [
        node(0, heal_objects_lacking=3, damaged_objects=1),
        node(1, heal_blocks_lacking=5, recovering=1, heal_pass_timestamp_seconds=70.0),
        node(2, up=False),
    ]
    assert degraded(nodes) == {
        "objects": 3,
        "blocks": 5,
        "damaged_objects": 1,
        "rebuilding_nodes": [1],
        "absent_nodes": [2],
        "compared_at": {"0": None, "1": 70.0},
    }


def test_how_old_the_knowledge_is_of_what_is_degraded() -> None:
    began = "ago, when nodes last began to compare everything"
    assert _compared({"0": 70.0, "1": 30.0}, 100.0) == f"as of 1 min 10 s {began}"
    assert _compared({"0": 70.0, "1": None}, 100.0) == (
        f"as of 30 s {began}; node 1 has not done that since the start"
    )
    assert _compared({"0": None, "1": None}, 100.0) == (
        "nodes have not compared everything since their start"
    )


def test_the_backlog_is_that_of_the_node_with_most() -> None:
    nodes = [node(0, possible_versions=4), node(1, possible_versions=9, possible_objects=2)]
    assert unverified(nodes) == {"block_versions": 9, "objects": 2}


def test_the_room_is_that_of_the_pool() -> None:
    nodes = [node(0), node(1) | {"used_bytes": 90, "free_bytes": 10}, node(2, up=False)]
    assert pool(nodes) == {"shares": {"0": 0.3, "1": 0.9}, "fullest": 0.9}


def test_objects_are_counted_as_a_correct_node_counts_them() -> None:
    nodes = [node(number) for number in (0, 90, 91, 92)]
    assert objects([*nodes, node(4, up=False)], b=1) == 90
    assert objects(nodes[:1], b=1) == 0


def test_what_limits_writers() -> None:
    assert writers([node(0), node(1, up=False)]) == []
    nodes = [
        node(0, reasons=("writes are refused: the disk is full",)),
        node(1, possible_versions_fullness=0.9, verification_demands=2, verification_slowed=7),
        node(2, possible_versions_fullness=0.5, verification_demands=3),
        node(3) | {"used_bytes": 88, "free_bytes": 12},
    ]
    assert writers(nodes) == [
        "node 0: writes are refused: the disk is full",
        "node 1: unverified versions are at 90% of a limit: beyond 50%, writes wait for "
        "verification now and then",
        "node 3: its room for versions is 88% taken",
        "5 writes have waited for verification, at a limit, at all nodes together, since they were "
        "started",
        "7 writes have waited for some verification, beyond half of a limit, at all nodes "
        "together, since they were started",
    ]


# --- descriptions of the cluster --------------------------------------------------------------


def described(own: ClusterDescription, *serials: int | None, digest: str = "") -> list[str]:
    """What is said where the nodes have these descriptions; None: the node is down."""
    digest = digest or own.digest.hex()
    states = [
        {"node": number, "up": serial is not None}
        | ({} if serial is None else {"description": serial, "description_digest": digest})
        for number, serial in enumerate(serials)
    ]
    return descriptions(own, states)


def test_who_has_an_old_description_is_named() -> None:
    own = replace(description(), serial=4)
    assert described(own, 4, 4, 4, None, 4, 4) == []
    (said,) = described(own, 4, 4, 4, 3, None, 4)
    assert said == (
        "node 3 has number 3, older than its peers' or this machine's, number 4: "
        "it hears from its peers within a minute, and at once by `bftfs cluster tell`, where "
        "admin.key is"
    )


def test_this_machine_may_be_the_one_that_is_behind() -> None:
    own = replace(description(), serial=4)
    (said,) = described(own, 6, 6, 6, 6, 6, 6)
    assert said.startswith("this machine has number 4, older than the nodes', number 6: copy")


def test_a_liar_makes_nobody_old() -> None:
    own = replace(description(), serial=4)
    assert described(own, 4, 4, 4, 1 << 60, 4, 4) == []


def test_two_descriptions_with_one_number_are_named() -> None:
    own = replace(description(), serial=4)
    said = described(own, 3, 4, None, None, None, None, digest="00")
    assert [each[:24] for each in said] == ["node 0 has number 3, old", "node 1 and this machine "]
    assert "sign the right one again" in said[1]


def test_objects_of_the_future_are_counted_as_a_correct_node_does() -> None:
    states = [
        {"node": node, "up": True, "background": {"bftfs_heal_objects_ahead": count}}
        for node, count in enumerate((1e9, 3.0, 2.0, 3.0, 0.0))
    ]
    assert ahead(states, b=1) == 3
    assert ahead(states[:1], b=1) == 0


def test_objects_of_the_future_are_named_if_a_correct_node_names_them() -> None:
    named = ([7, 9], [7], [7, 8], [8], [])
    states = [{"node": node, "up": True, "ahead": each} for node, each in enumerate(named)]
    assert ahead_inodes([*states, {"node": 5, "up": False}], b=1) == [7, 8]
    assert _ahead(5, [7, 8]).endswith(": 7, 8, 3 more")
    assert _ahead(2, [7, 8]).endswith(": 7, 8")


# --- for people --------------------------------------------------------------------------------


def report(*nodes: dict[str, Any], mounts: tuple[str, ...] = ()) -> dict[str, Any]:
    states = [
        {
            "address": "unix:/home/ann/.local/share/bftfs/nodes/0/socket",
            "pid": 4_194_304,
            "memory_bytes": 48 << 20,
            "requests": 1_234_567,
            "uptime_s": 86_400.0 * 9,
            **each,
        }
        for each in nodes
    ]
    made = description()
    return {
        "n": 6,
        "t": 1,
        "b": 1,
        "client": "local",
        "nodes": states,
        "available": sum(not node["up"] for node in states) <= 1,
        "quorums": quorums(made, states),
        "degraded": degraded(states),
        "unverified": unverified(states),
        "pool": pool(states),
        "objects": objects(states, b=1),
        "writers": [],
        "descriptions": [],
        "key_epoch": 2,
        "keys": "key epoch 2, since 2026-11-23",
        "let_go": [],
        "ahead": 0,
        "mounts": [{"pid": 7, "mountpoint": each} for each in mounts],
    }


def told(said: dict[str, Any], *, width: int = 80) -> list[str]:
    output = io.StringIO()
    tell(said, Console(file=output, width=width, highlight=False, markup=False))
    return output.getvalue().splitlines()


def test_the_table_fits_80_columns_also_with_a_node_down() -> None:
    away = "node 0 could not be reached: closed by the node"
    others = [node(number, reasons=(away,)) for number in range(1, 6)]
    lines = told(report(node(0, up=False, reasons=("does not answer",)), *others))
    table = lines[: lines.index("node 0: does not answer")]
    assert len(table) == 7, "a row each"
    assert all(len(line) <= 80 and "…" not in line for line in table)
    assert f"nodes 1, 2, 3, 4, 5: {away}" in lines
    assert "1 down, 0 more may fail: files can be used" in lines


def test_with_nodes_on_other_machines_it_has_their_addresses() -> None:
    nodes = [node(number) | {"address": f"tcp:192.168.100.{number}:65535"} for number in range(6)]
    table = told(report(*nodes))[:7]
    assert all(len(line) <= 80 and "…" not in line for line in table)
    assert table[1].rstrip().endswith(" 192.168.100.0:65535")


def test_of_stopped_nodes_it_says_nothing_that_it_does_not_know() -> None:
    silent = [node(number, up=False, reasons=("does not answer",)) for number in range(6)]
    lines = told(report(*silent))
    assert lines[-2:] == [
        "nodes 0, 1, 2, 3, 4, 5: does not answer",
        "no node answers; `bftfs up` starts local nodes that are down",
    ]


def test_of_nodes_on_other_machines_it_says_to_start_them_there() -> None:
    silent = [node(number, up=False) | {"local": number < 2} for number in range(6)]
    assert told(report(*silent), width=500)[-1] == (
        "no node answers; `bftfs up` starts local nodes that are down; start nodes 2, 3, 4, 5 on "
        "their machines (`bftfs node run`, or the service there), and see that their addresses in "
        "cluster.toml are right and can be reached from here"
    )


def test_a_revoked_client_is_told_so() -> None:
    why = "does not know the client's key (any more)"
    refusing = [node(number, up=False, reasons=(why,)) for number in range(6)]
    assert told(report(*refusing))[-1].startswith(
        "client local is revoked, or not known yet: 6 nodes refuse its key"
    )


def test_nodes_words_are_no_markup() -> None:
    lines = told(report(*(node(number, reasons=("[red]x[/red]",)) for number in range(6))))
    assert "nodes 0, 1, 2, 3, 4, 5: [red]x[/red]" in lines
