"""What Byzantine nodes do of their own accord. Wrong answers are the work of `NodeAdversary`."""

from __future__ import annotations

from bftfs.conversation import Pause
from bftfs.server.step import Host
from bftfs.simulation.byzantine.positions import ClientAdversary
from bftfs.simulation.principals import NodeServices, Servers


class Initiative:
    """What a Byzantine node does of its own accord, under its own name: a client's misdeeds."""

    def __init__(self, adversary: ClientAdversary, *, every_us: int, acts: int) -> None:
        """It acts `acts` times in all, restarts included, with a pause after each time."""
        self._adversary = adversary
        self._every_us = every_us
        self._left = acts

    async def run(self, _host: Host) -> None:
        """Act again and again; after a crash, go on."""
        while self._left:
            self._left -= 1
            await self._adversary.act()
            await Pause(self._every_us)


def with_initiative(servers: Servers, *initiatives: Initiative) -> NodeServices:
    """The servers of a node that was taken over, and what it starts itself."""
    return NodeServices(servers, initiatives, lambda _object: None)
