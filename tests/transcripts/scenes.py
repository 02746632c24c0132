"""The situations whose transcripts are kept: each begins with what a reader should look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.messages import QueryReply
from bftfs.server.step import Ready, Sender
from tests.builders import USER
from tests.transcripts.recorder import Transcript
from tests.unit.query_update import harness as objects
from tests.unit.read_write import harness as blocks

A = objects.counter_id(placement=0)  # its preferred quorum is s0-s4
MS = 1_000


class Objects:
    """Six servers of Query/Update (n = 6, t = b = 1, q = 5, r = 3), and clients of a counter."""

    def __init__(self, title: str) -> None:
        self.cluster = objects.Cluster()
        self.clients: dict[str, objects.Client] = {}
        names = {objects.client_named(name): name for name in ("alice", "bob", "carol")}
        self.transcript = Transcript(
            self.cluster.world, self.cluster.network, names | {A: "a"}, title=title
        )

    def start(self, name: str, what: str, by: int = 1) -> Any:
        client = self.clients.get(name) or self.cluster.client(name)
        self.clients[name] = client
        self.transcript.say(f"{name}: {what} a" + (f" by {by}" if by > 1 else ""))
        if what == "fetch":
            return client.start(client.qu.query((A,), "counter.fetch", Fetch(), USER))
        return client.start(client.qu.update((A,), "counter.increment", Increment(by), USER))

    def end(self, name: str, outcome: Any) -> None:
        self.cluster.run(lambda: outcome.done, within_us=60_000_000)
        self.transcript.say(f"{name}: {outcome.value().answer.value}")

    def do(self, name: str, what: str) -> None:
        self.end(name, self.start(name, what))
        self.cluster.run(lambda: not self.cluster.network.under_way)

    def known_of(self, name: str, node: int) -> None:
        condition = self.clients[name].qu.peers.condition(objects.NodeId(node))
        self.transcript.say(f"{name} takes s{node} for {condition.value}")


def current() -> str:
    """An update on a current history set."""
    scene = Objects(
        """
        An update whose history set is current takes one round [Q/U §4.3.5]. alice knows nothing of
        the counter: no server has shown her a history, which counts as ⟨0,0⟩ at all of them, and is
        current. The second time she shows what the servers told her the first time. Each server
        prunes what lies below the version that an update is conditioned on.
        """
    )
    scene.do("alice", "increment")
    scene.do("alice", "increment")
    return scene.transcript.text()


def stale() -> str:
    """An update on a stale history set."""
    scene = Objects(
        """
        bob does not know of alice's update. The servers refuse his with NOT_CURRENT and show him
        their histories; he needs no repair, and his second attempt is accepted [Q/U §4.3.5].
        """
    )
    scene.do("alice", "increment")
    scene.do("bob", "increment")
    return scene.transcript.text()


def contention() -> str:
    """Two updates of one version, a barrier and a copy."""
    scene = Objects(
        """
        alice and bob update the same version at once. Each update reaches three servers, so that
        neither gets q = 5; then both clients are gone. carol's query finds two candidates on one
        base. (Of two at one time the client's id decides: alice's is the later one.) She tries to
        finish alice's inline, and waits, in case that somebody is only slow. Then she sets a
        barrier, which keeps both from completing, copies alice's version past it, and reads that.
        [Q/U Table 4.1] Check: no server accepts anything earlier than its barrier afterwards; the
        copy has the value of alice's version; and the servers that lack that version fetch it, one
        answer whole, and the digest of another one.
        """
    )
    cluster = scene.cluster
    reached = {"alice": (0, 1, 2), "bob": (3, 4, 5)}

    def route(source: Any, target: Any, _message: Any) -> int | None:
        if source[1] in reached and target[1] not in reached[source[1]]:
            return None
        return 100

    scene.transcript.way = route
    scene.start("alice", "increment")
    scene.start("bob", "increment", by=10)
    cluster.run(lambda: cluster.now_us > 20_300)
    for running in cluster.running:
        running.cancel()
    scene.transcript.say("alice and bob are gone")
    scene.do("carol", "fetch")
    return scene.transcript.text()


def silent() -> str:
    """A server that is silent."""
    scene = Objects(
        """
        s1 says nothing. After a silence longer than usual alice asks s5 as well, which takes its
        place in the quorum. She remembers: the next round does not ask s1.
        """
    )
    scene.transcript.way = lambda source, target, _: None if {source[1], target[1]} & {1} else 100
    scene.do("alice", "increment")
    scene.known_of("alice", 1)
    scene.do("alice", "increment")
    return scene.transcript.text()


def lie() -> str:
    """A server that answers falsely."""
    scene = Objects(
        """
        s2 adds 41 to the value in each answer. An answer counts when b + 1 servers give it, so
        that alice reads 1.
        """
    )

    def lying(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, QueryReply) and ready.reply.answered:
            false = msgspec.msgpack.encode([ready.reply.answer and 42])
            ready.reply = msgspec.structs.replace(ready.reply, answer=false)
        return ready

    scene.cluster.nodes[2].behaviour = lying
    scene.do("alice", "increment")
    scene.do("alice", "fetch")
    scene.known_of("alice", 2)
    return scene.transcript.text()


def poison() -> str:
    """A block's write, a read, and a poisonous version above it."""
    world = blocks.World()
    transcript = Transcript(
        world.agenda,
        world.network,
        {blocks.client_named(name): name for name in ("alice", "bob", "mallory")},
        title="""
        A block on six nodes (N = 6, t = b = 1, QC = 4, m = 3). alice writes it: four nodes' times,
        then a fragment to each node. bob reads it: five nodes, three of them for data. Then mallory
        writes fragments that no item has. Their hashes are right, so that the nodes accept them;
        bob, who generates all six fragments from three, finds that they are not those of the
        cross-checksum, and goes on with the version below. [PASIS §3.4.2.3, §3.4.3.3]
        """,
    )

    def do(name: str, what: str, conversation: Any, client: blocks.Principal) -> None:
        transcript.say(f"{name}: {what}")
        result = client.do(conversation)
        world.settle()
        if what == "read":
            transcript.say(f"{name}: {result.item!r}")
        else:
            transcript.say(f"{name}: written")

    alice, bob, mallory = (world.client(name) for name in ("alice", "bob", "mallory"))
    do("alice", "write b'good'", alice.client.write(blocks.BLOCK, b"good", USER), alice)
    do("bob", "read", bob.client.read(blocks.BLOCK), bob)
    world.now_us += MS
    poisoned = blocks.poisoned(world.encoded(b"evil"), 5)
    stamp, _ = world.place(mallory, poisoned, range(6))
    transcript.say(f"mallory: WRITE {transcript.block_stamp(stamp)} to all nodes")
    world.now_us += MS
    do("bob", "read", bob.client.read(blocks.BLOCK), bob)
    return transcript.text()


SCENES: dict[str, Callable[[], str]] = {
    "update-with-current-history": current,
    "update-with-stale-history": stale,
    "contention-barrier-copy": contention,
    "silent-server": silent,
    "lying-server": lie,
    "poisonous-block": poison,
}
