"""All adversaries by name: what seeds draw from, and what a test-only program is told to be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from bftfs.credentials import Grant
from bftfs.server.step import Ready, Server
from bftfs.simulation.byzantine import (
    block_clients,
    block_nodes,
    block_repairs,
    file_clients,
    nodes,
    object_clients,
    object_nodes,
    object_repairs,
    pacts,
)
from bftfs.simulation.byzantine.positions import (
    Asked,
    ClientAdversary,
    ClientPosition,
    NodeAdversary,
    NodePosition,
)
from bftfs.simulation.deployment import CREDENTIALS, STRANGER


def _adversaries(module: ModuleType, base: type, *, of: str = "") -> dict[str, type]:
    """The adversaries that a module defines: `FullDisk` is called "full-disk".

    The name leaves out what it is an adversary `of`: both trespassers are called that.
    """
    return {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removeprefix(of)).lower(): found
        for name, found in vars(module).items()
        if isinstance(found, type)
        and issubclass(found, base)
        and found is not base
        and found.__module__ == module.__name__
    }


NODES: Mapping[str, type[NodeAdversary]] = {
    name: adversary
    for module in (nodes, block_nodes, object_nodes, pacts)
    for name, adversary in _adversaries(module, NodeAdversary).items()
}

_BLOCK_REPAIRS = _adversaries(block_repairs, block_clients.Writer, of="Block")
_OBJECT_REPAIRS = _adversaries(object_repairs, object_clients.Updater)
_BLOCK_CLIENTS = {
    **_adversaries(block_clients, block_clients.Writer, of="Block"),
    **_BLOCK_REPAIRS,
    **_adversaries(pacts, block_clients.Writer, of="Block"),
}
_OBJECT_CLIENTS = {
    **_adversaries(object_clients, object_clients.Updater, of="Object"),
    **_OBJECT_REPAIRS,
    **_adversaries(pacts, object_clients.Updater, of="Object"),
}

# The adversaries of each kind of workload.
CLIENTS: Mapping[str, Mapping[str, Callable[[ClientPosition], ClientAdversary]]] = {
    "blocks": _BLOCK_CLIENTS,
    "objects": _OBJECT_CLIENTS,
    "files": {**_OBJECT_CLIENTS, **_adversaries(file_clients, block_clients.Writer)},
}

# Of these, what a node can do as well, whose grant does not let it write.
INITIATIVES: Mapping[str, Mapping[str, Callable[[ClientPosition], ClientAdversary]]] = {
    "blocks": {"meddler": block_repairs.BlockMeddler},
    "objects": {**_OBJECT_REPAIRS, "barrier-spammer": object_clients.BarrierSpammer},
    "files": {**_OBJECT_REPAIRS, "file-meddler": file_clients.FileMeddler},
}

# A client of each kind that has a pact with a node, which is a "confederate" then.
CONSPIRATORS: Mapping[str, tuple[str, ...]] = {
    "blocks": ("conspirator",),
    "objects": ("conspirator",),
    "files": ("conspirator", "file-conspirator"),
}

_STRANGERS = Grant(uids=(STRANGER.uid,), gids=(STRANGER.gid,))

# The grants of adversaries that do not have every right.
GRANTS: Mapping[str, tuple[Grant, ...]] = {
    "trespasser": (
        Grant(write=False),
        Grant(uids=(CREDENTIALS.uid + 1,), gids=(CREDENTIALS.gid,)),
        Grant(uids=(CREDENTIALS.uid,), gids=(CREDENTIALS.gid + 1,)),
    ),
    "overwriter": (_STRANGERS,),
    "snooper": (_STRANGERS,),
    "file-conspirator": (_STRANGERS,),
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
