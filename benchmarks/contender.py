"""A client of counters in a process of its own; several of them contend for the same one.

    python -m benchmarks.contender --data DIR --client NAME --number I

It reads lines "WORKLOAD SECONDS" and answers each as `benchmarks.victim` does.  Client 0's counter
is the shared one; an isolated client uses the counter of its own number.
"""

import time
from collections import Counter
from pathlib import Path

from benchmarks.deployment import ROOT
from benchmarks.victim import Work, client_arguments, connected, obey
from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.errors import BftfsError
from bftfs.filesystem import object_types
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import Fetch, Increment

FETCH = "fetch"
INCREMENT = "increment"
KINDS = (FETCH, INCREMENT)
SHARED = "shared"
ISOLATED = "isolated"

_PATIENCE_US = 30 * limits.SECOND_US  # after so much silence an operation has failed


def counter_of(number: int) -> ObjectId:
    """The counter of one client. All have the same preferred quorum, so that the load is equal."""
    return object_id(ObjectKind.COUNTER, placement=0, unique=b"%014d" % number)


class Contender:
    """A correct client at work, one operation after the other."""

    def __init__(self, data: Path, client: str, number: int) -> None:
        description, self._name, self._network = connected(data, client)
        self._peers = Peers(ThresholdQuorums(description.query_update))
        self._number = number

    def prepare(self) -> None:
        """Make this client's counter."""
        counter = (counter_of(self._number),)
        self._network.perform(
            self._client().update(counter, "counter.increment", Increment(), ROOT)
        )

    def work(self, workload: str, seconds: float) -> Work:
        """As many operations as begin in this time; `workload` is KIND:SHARED or KIND:ISOLATED."""
        kind, _, place = workload.partition(":")
        counter = (counter_of(0 if place == SHARED else self._number),)
        latencies_us: list[int] = []
        failures: Counter[str] = Counter()
        used = time.process_time()
        began = before = time.perf_counter()
        while before - began < seconds:
            # A client that knows no object history set, as in the source: it retrieves the replica
            # histories before each increment. [Q/U §4.4.3]
            client = self._client()
            try:
                if kind == FETCH:
                    self._network.perform(client.query(counter, "counter.fetch", Fetch(), ROOT))
                else:
                    self._network.perform(
                        client.update(counter, "counter.increment", Increment(), ROOT)
                    )
            except BftfsError as error:
                failures[type(error).__name__] += 1
            now = time.perf_counter()
            latencies_us.append(round((now - before) * 1e6))
            before = now
        return Work(before - began, latencies_us, dict(failures), time.process_time() - used)

    def _client(self) -> QueryUpdateClient:
        return QueryUpdateClient(
            self._name, self._peers, object_types(), patience_total_us=_PATIENCE_US
        )


def main() -> None:
    """Run the program."""
    arguments = client_arguments("A client of counters.")
    contender = Contender(arguments.data, arguments.client, arguments.number)
    obey(contender.prepare, contender.work)


if __name__ == "__main__":
    main()
