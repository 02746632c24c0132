"""What the inspections of blocks and of objects share: asking all nodes, patiently, but once.

**Concurrency.** One thread; several conversations may ask at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

from bftfs import limits
from bftfs.conversation import Delivery, Now, Receive, Send
from bftfs.identifiers import NodeId

PATIENCE_US = 3 * limits.SECOND_US
AGAIN_US = 200_000  # for a node that has been silent before


class Witnesses:
    """The nodes of a cluster, as one inspection asks them."""

    def __init__(self) -> None:
        self._silent: set[NodeId] = set()

    async def ask(self, requests: Mapping[NodeId, object]) -> dict[NodeId, Delivery]:
        """What those answer that do so in time."""
        numbers = {await Send(node, request): node for node, request in requests.items()}
        answers: dict[NodeId, Delivery] = {}
        began_us = await Now()
        while numbers:
            patience_us = AGAIN_US if self._silent.issuperset(numbers.values()) else PATIENCE_US
            delivery = await Receive(max(began_us + patience_us - await Now(), 1))
            if delivery is not None:
                node = numbers.pop(delivery.request_number, None)
                if node is not None:
                    answers[node] = delivery
                    self._silent.discard(node)
            elif await Now() - began_us >= patience_us:
                self._silent.update(numbers.values())
                break
        return answers
