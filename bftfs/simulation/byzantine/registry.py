"""All adversaries by name: what seeds draw from, and what a test-only program is told to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bftfs.server.step import Grant, Ready, Server
from bftfs.simulation.byzantine import (
    block_clients,
    block_nodes,
    nodes,
    object_clients,
    object_nodes,
)
from bftfs.simulation.byzantine.positions import (
    Asked,
    ClientAdversary,
    ClientPosition,
    NodeAdversary,
    NodePosition,
)
from bftfs.simulation.deployment import CREDENTIALS

NODES: Mapping[str, type[NodeAdversary]] = {
    "mute": nodes.Mute,
    "slow": nodes.Slow,
    "amnesiac": nodes.Amnesiac,
    "replayer": nodes.Replayer,
    "equivocator": nodes.Equivocator,
    "garbler": nodes.Garbler,
    "flooding-node": nodes.FloodingNode,
    "insane-clock": nodes.InsaneClock,
    "full-disk": nodes.FullDisk,
    "broken-disk": nodes.BrokenDisk,
    "block-forger": block_nodes.BlockForger,
    "fragment-corrupter": block_nodes.FragmentCorrupter,
    "checksum-liar": block_nodes.ChecksumLiar,
    "concealer": block_nodes.Concealer,
    "accomplice": block_nodes.Accomplice,
    "false-verifier": block_nodes.FalseVerifier,
    "history-forger": object_nodes.HistoryForger,
    "selective-authenticator": object_nodes.SelectiveAuthenticator,
    "wrong-answers": object_nodes.WrongAnswers,
    "sync-liar": object_nodes.SyncLiar,
    "past-liar": object_nodes.PastLiar,
}

_Clients = Mapping[str, Callable[[ClientPosition], ClientAdversary]]

_BLOCK_CLIENTS: _Clients = {
    "poisonous-writer": block_clients.PoisonousWriter,
    "partial-writer": block_clients.PartialWriter,
    "stutterer": block_clients.Stutterer,
    "false-fragment-writer": block_clients.FalseFragmentWriter,
    "two-faced-writer": block_clients.TwoFacedWriter,
    "timestamp-racer": block_clients.TimestampRacer,
    "impersonator": block_clients.Impersonator,
    "garbage-client": block_clients.GarbageClient,
    "trespasser": block_clients.BlockTrespasser,
}

_OBJECT_CLIENTS: _Clients = {
    "partial-updater": object_clients.PartialUpdater,
    "two-faced-updater": object_clients.TwoFacedUpdater,
    "stale-conditioner": object_clients.StaleConditioner,
    "cherry-picker": object_clients.CherryPicker,
    "barrier-spammer": object_clients.BarrierSpammer,
    "impatient-updater": object_clients.ImpatientUpdater,
    "half-multi-object": object_clients.HalfMultiObject,
    "fabricator": object_clients.Fabricator,
    "false-repairer": object_clients.FalseRepairer,
    "future-updater": object_clients.FutureUpdater,
    "garbled-updater": object_clients.GarbledUpdater,
    "trespasser": object_clients.ObjectTrespasser,
}

# The adversaries of each kind of workload.
CLIENTS: Mapping[str, _Clients] = {
    "blocks": _BLOCK_CLIENTS,
    "objects": _OBJECT_CLIENTS,
    "files": _OBJECT_CLIENTS,
}

# The grants of adversaries that do not have every right.
GRANTS: Mapping[str, tuple[Grant, ...]] = {
    "trespasser": (Grant(write=False), Grant(uids=(CREDENTIALS.uid + 1,)))
}


class SeveralAdversaries(NodeAdversary):
    """Several adversaries in one node, of which each request meets one."""

    def __init__(self, position: NodePosition, names: Sequence[str]) -> None:
        super().__init__(position)
        self._heads = [NODES[name](position) for name in names]

    def answer(self, asked: Asked) -> Ready:
        """Do what one of them would."""
        return self.random.choice(self._heads).answer(asked)


def corrupted(position: NodePosition, names: Sequence[str]) -> Mapping[type, Server]:
    """The node's servers, taken over by these adversaries."""
    several = len(names) > 1
    adversary = SeveralAdversaries(position, names) if several else NODES[names[0]](position)
    return dict.fromkeys(position.servers, adversary)
