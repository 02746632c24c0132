"""Writers that misbehave at full speed, with a node that lies of what it has verified.

The adversaries are those of the simulator. What they leave behind is bounded at every correct node
at every moment; correct clients neither wait for it nor read it nor lose anything to it; and it is
gone, or obsolete, soon after they have stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from bftfs import limits
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.messages import Notice
from bftfs.read_write.timestamp import ZERO
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.simulation.byzantine.positions import ClientPosition, NodePosition
from bftfs.simulation.byzantine.registry import CLIENTS, NODES
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import node_endpoint
from tests.unit.server.verifying import SECOND_US, Client, Cluster, block

BLOCKS = tuple(block(number) for number in range(4))
LIAR = 5
CORRECT = range(5)
LIMIT = 12  # possible versions of one client
TURNS = 3  # in each of which attackers send some 30,000 messages
ATTACKERS = ("poisonous-writer", "partial-writer", "stutterer")
POLICIES = pytest.mark.parametrize(
    "policy", [VerificationPolicy.LAZY, VerificationPolicy.COOPERATIVE]
)


@dataclass
class Prey:
    """What there is to attack, as the adversaries are told."""

    random: Random
    blocks: tuple[BlockId, ...] = BLOCKS
    items: set[bytes] = field(default_factory=set)  # good ones that attackers have begun to write

    def attempted(self, name: str, block: BlockId, at: float) -> bytes:
        item = self.random.randbytes(20)
        self.items.add(item)
        return item


class Attack:
    """One attacker at work in a cluster, without a pause."""

    def __init__(self, name: str, settings: VerificationSettings) -> None:
        self.cluster = Cluster(settings)
        self.honest, self.attacker = self.cluster.client("honest"), self.cluster.client("attacker")
        self.prey = Prey(Random(name))
        self.items = dict.fromkeys(BLOCKS, b"before")
        for block_ in BLOCKS:
            self.honest.write(block_, b"before")
        self._corrupt()
        self.going_on = True
        adversary = CLIENTS["blocks"][name](
            ClientPosition(
                name,
                self.attacker.host.client,
                self.cluster.sizes,
                Random(name),
                self.prey,
                lambda: self.cluster.now_us / SECOND_US,
            )
        )

        async def attack() -> None:
            while self.going_on:
                await adversary.act()

        self.attacker.host.start(attack(), lambda _result, error: _raise(error))

    def _corrupt(self) -> None:
        """One node says that it has verified what it has not, and calls good versions poisonous."""
        deployment, node = self.cluster.deployment, NodeId(LIAR)
        honest = deployment.servers(node)
        position = NodePosition(node, honest, deployment.keys(node), deployment.sizes, Random(1))
        liar = NODES["false-verifier"](position)
        self.cluster.nodes[LIAR].become(lambda: dict.fromkeys(honest, liar))

    def left_behind(self) -> int:
        """The versions of the attacker that a correct node has neither verified nor passed over."""
        client = self.attacker.host.client
        return max(self.cluster.verifier(node).backlog.of_client(client) for node in CORRECT)

    def allowed(self) -> int:
        """The limit, and one version a second that is excused."""
        return LIMIT + 1 + self.cluster.world.now_us // limits.VERIFY_EXCUSED_US

    def work(self) -> None:
        """The honest client writes and reads for as long as the attack goes on."""
        for turn in range(TURNS):
            for name in BLOCKS:
                self.items[name] = b"turn %d" % turn
                self.honest.write(name, self.items[name])
                self.check(name)
                assert self.left_behind() <= self.allowed()
        self.going_on = False

    def check(self, name: BlockId) -> None:
        item = self.honest.read(name)
        assert item == self.items[name] or item in self.prey.items

    def demanded(self, client: Client) -> int:
        return sum(
            self.cluster.verifier(node).tally.demanded.get(client.host.client, 0)
            for node in CORRECT
        )


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


@POLICIES
@pytest.mark.parametrize("name", ATTACKERS)
def test_what_writers_at_full_speed_leave_behind_is_bounded(
    name: str, policy: VerificationPolicy
) -> None:
    attack = Attack(name, VerificationSettings(policy, node=400, client=LIMIT, block=4))
    attack.work()
    cluster = attack.cluster
    assert attack.demanded(attack.attacker) > 0, "the attacker has never reached a limit"
    assert attack.demanded(attack.honest) == 0
    cluster.run_for(20 * SECOND_US)
    for name_ in BLOCKS:
        attack.check(name_)
    # What only some nodes have taken may be possible still; the next complete write makes it
    # obsolete.
    for name_ in BLOCKS:
        attack.items[name_] = b"after"
        attack.honest.write(name_, b"after")
    cluster.run_for(20 * SECOND_US)
    assert attack.left_behind() == 0
    assert all(cluster.verifier(node).backlog.total == 0 for node in CORRECT)
    assert all(attack.honest.read(name_) == b"after" for name_ in BLOCKS)


@pytest.mark.parametrize("name", ATTACKERS)
def test_must_fail_without_limits(name: str) -> None:
    """The test above can fail: there is no idle time in which all this could be verified."""
    attack = Attack(name, VerificationSettings(node=10_000, client=10_000, block=10_000))
    with pytest.raises(AssertionError, match="left_behind"):
        attack.work()


@pytest.mark.parametrize("poisonous", [False, True])
def test_a_lying_responsible_node_makes_the_others_verify(
    poisonous: bool,
) -> None:
    """[LazyVer §3.8.2] It notifies everybody of every block, and nothing of it is true."""
    cluster = Cluster()
    cluster.nodes[0].crash(down_us=None)  # the liar sends in its name, and never answers
    client = cluster.client()
    stamps = {number: client.write(block(number), b"item") for number in range(6)}

    def lie() -> None:
        for number, timestamp in stamps.items():
            notice = Notice(block(number), ZERO, (timestamp,) if poisonous else ())
            for node in range(1, 6):
                cluster.network.send(
                    node_endpoint(NodeId(0)), node_endpoint(NodeId(node)), Kind.REQUEST, 0, notice
                )

    for _ in range(15):
        lie()
        cluster.run_for(SECOND_US)
    for number, timestamp in stamps.items():
        assert cluster.verified(block(number), timestamp) == [1, 2, 3, 4, 5]
    assert client.read(block(0)) == b"item"
    done: Any = [cluster.verifier(node).tally for node in range(1, 6)]
    assert sum(tally.verified for tally in done) <= 5 * 6  # once for each node and block
