"""A client process that misbehaves, with a valid key: for tests and measurements only.

    python -m tests.lying_client ADVERSARY --data DIR --client NAME --victims N

attacks the N correct clients of `benchmarks.victim`, whenever it is told to, as fast as it can with
the processor time that it is given. The adversaries are those of `bftfs.simulation.byzantine`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.victim import (
    BLOCK_BYTES,
    METADATA,
    WORKLOADS,
    Work,
    blocks_of,
    connected,
    creation,
    directory_of,
    new_inode,
    obey,
)
from bftfs.errors import BftfsError
from bftfs.filesystem import registry
from bftfs.identifiers import BlockId, ObjectId
from bftfs.query_update.object_type import Record
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.simulation.byzantine.registry import CLIENTS
from bftfs.simulation.deployment import Sizes

KINDS = {METADATA: CLIENTS["objects"], **{each: CLIENTS[each] for each in WORKLOADS[1:]}}


class Prey:
    """What there is to attack: what a workload of the simulator tells its adversaries."""

    def __init__(self, root: ObjectId, victims: int, random: Random) -> None:
        self._random = random
        self.objects = (root, *map(directory_of, range(victims)))
        self.blocks = tuple(block for number in range(victims) for block in blocks_of(number))


class Objects(Prey):
    """Directories: anyone may make files in the root, and nobody in the others."""

    def attempted(self, name: str, at: float) -> tuple[str, tuple[ObjectId, ...], Record]:
        """The creation of a file, allowed or not."""
        directory = self._random.choice((self.objects[0], self._random.choice(self.objects)))
        made = creation(b"%s-%d" % (name.encode(), self._random.getrandbits(60)))
        return registry.CREATE, (directory, new_inode(directory)), made

    def forbidden(self) -> tuple[str, tuple[ObjectId, ...], Record]:
        """What a grant may not allow."""
        return self.attempted("forbidden", 0)


class Blocks(Prey):
    """Blocks that anyone may write."""

    def attempted(self, name: str, block: BlockId, at: float) -> bytes:
        """Something to write there."""
        return self._random.randbytes(BLOCK_BYTES)

    def forbidden(self) -> bytes:
        """What a grant may not allow."""
        return b"forbidden"


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="A client that misbehaves.")
    parser.add_argument(
        "adversary", choices=sorted({name for kind in KINDS.values() for name in kind})
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--victims", type=int, required=True)
    arguments = parser.parse_args()
    description, client, network = connected(arguments.data, arguments.client)
    random = Random(arguments.client)
    adversaries: dict[str, Any] = {
        workload: kind[arguments.adversary](
            ClientPosition(
                arguments.client,
                client,
                Sizes(description.query_update, description.read_write),
                random,
                (Objects if workload == METADATA else Blocks)(
                    description.root, arguments.victims, random
                ),
                time.time,
            )
        )
        for workload, kind in KINDS.items()
        if arguments.adversary in kind
    }

    def attack(workload: str, seconds: float, processor_s: float = math.inf) -> Work:
        """Attack for so long; the processor time is spread over it."""
        latencies_us: list[int] = []
        failures: Counter[str] = Counter()
        used = time.process_time()
        began = before = time.perf_counter()
        while before - began < seconds:
            try:
                network.perform(adversaries[workload].act())
            except BftfsError as error:
                failures[type(error).__name__] += 1
            now = time.perf_counter()
            latencies_us.append(round((now - before) * 1e6))
            ahead_s = (time.process_time() - used) * seconds / processor_s - (now - began)
            time.sleep(max(0, min(ahead_s, began + seconds - now)))
            before = time.perf_counter()
        return Work(before - began, latencies_us, dict(failures), time.process_time() - used)

    obey(lambda: None, attack)


if __name__ == "__main__":
    main()
