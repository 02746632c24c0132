"""The past in mounts and on the command line, with a node killed, and with one that lies."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster, bftfs, kill
from tests.end_to_end.test_history import HISTORY, change_something, now, snapshot_of
from tests.end_to_end.test_history_commands import comparable
from tests.end_to_end.watchdog import PROJECT, Watchdog

LIAR = 5  # which as `past-liar` lies in every answer about the past
FRESH = "attr_timeout=0,entry_timeout=0,negative_timeout=0"

# The command line, for which the word of the liar is evidence enough.
CREDULOUS = f"""
from bftfs.cli.main import main
from bftfs.query_update import past_reading
from bftfs.query_update.rounds import Votes

class Credulous(Votes):
    def agreed(self):
        return next((each for each, nodes in self.by.items() if nodes >> {LIAR} & 1), None)

past_reading.Votes = Credulous
main()
"""


@contextmanager
def lying(cluster: Cluster) -> Iterator[None]:
    """Another program in the place of a node, which tells another past."""
    data = cluster.data / "nodes" / str(LIAR)
    (pid,) = [node.pid for node in cluster.nodes() if node.number == LIAR]
    if pid:
        kill(pid)
    (data / "pid").unlink(missing_ok=True)
    with (data / "log").open("ab") as log:
        liar = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.lying_node", "past-liar"),
                *("--data", data, "--cluster", cluster.data / "cluster.toml"),
            ],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while not (data / "pid").exists():
            assert liar.poll() is None, (data / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the liar does not start"
            time.sleep(0.02)
        yield
    finally:
        liar.kill()
        liar.wait()


@pytest.fixture
def cluster(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Cluster]:
    """One of this test's own, since its nodes are killed; with a client called alice."""
    cluster = Cluster(playground / "past-and-faults")
    try:
        cluster.up()
        bftfs("cluster", "add-client", "--data", cluster.data, "alice", "--any-uid")
        yield cluster
    finally:
        cluster.down()


def test_what_was_is_told_whoever_is_down_and_whoever_lies(
    cluster: Cluster, playground: Path, guarded: None
) -> None:
    """A random workload of two clients; at random times, a model that kept every state."""
    draw = random.Random(5)
    tree = cluster.mountpoint / "tree"
    tree.mkdir()
    states: list[tuple[str, dict[str, tuple[object, ...]], dict[str, tuple[object, ...]]]] = []
    authors: list[str] = []
    with cluster.mount(playground / "alice", f"client=alice,{FRESH}") as second:
        trees = {"local": tree, "alice": second / "tree"}
        for number in range(16):
            if number == 6:
                kill(*(node.pid for node in cluster.nodes() if node.number == LIAR))
            author = draw.choice(("local", "alice"))
            change_something(trees[author], draw, number)
            authors.append(author)
            with (trees[author] / "diary").open("a") as diary:
                diary.write(f"{number}\n")
            if draw.random() < 0.4:
                time.sleep(0.01)
                states.append((now(), snapshot_of(second / "tree"), comparable(second / "tree")))
        with lying(cluster):
            for moment, expected, _ in states:
                assert snapshot_of(second / "tree" / HISTORY / moment) == expected
            moment, expected, _ = states[len(states) // 2]
            assert bftfs("cat", f"{tree}/diary@{moment}").encode() == expected["diary"][7]
            log = json.loads(bftfs("log", "--json", tree / "diary"))
            written = [row["client"] for row in reversed(log) if row["operation"] == "write"]
            assert written == authors
            # Must fail: with the liar's word for evidence, it is another past.
            told = subprocess.run(
                [sys.executable, "-c", CREDULOUS, "log", "--json", tree / "diary"],
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert told.returncode != 0 or json.loads(told.stdout) != log
            moment, _, expected = draw.choice(states)
            bftfs("restore", "--delete", f"{tree}@{moment}")
            assert comparable(second / "tree") == expected
            since = now()
            for number in range(100, 108):
                change_something(trees["alice"], draw, number)
            assert comparable(second / "tree") != expected
            bftfs("undo", tree, "--client", "alice", "--since", since)
            assert comparable(second / "tree") == expected
