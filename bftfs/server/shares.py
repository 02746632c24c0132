"""Fair shares of a node's bounded resources: connections, bytes, requests that wait for peers.

A holder is a principal, or an address while no principal is known. So many connections of one
client get no more than one does; several keys of one owner count as several holders, each of which
the administrator has signed.

- A resource that can be taken back is taken back (`gives_way`): a newcomer is admitted, and if
  there are then too many, the largest holder loses one.
- A resource that cannot be taken back, because work has begun, is rationed (`Shares`): a
  holder gets no more than it leaves to others. So as much is left as the largest holder has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

Held = TypeVar("Held")
Holder = TypeVar("Holder", bound=Hashable)


def gives_way(
    crowd: Collection[Held],
    holder: Callable[[Held], Hashable],
    amount: Callable[[Held], int] = lambda _: 1,
) -> Held:
    """The one that has to go: the first one of the largest holder.

    Requires: there are some. The caller's order says which one of a holder's goes first, and which
    holder gives way if several hold as much.
    """
    held: Counter[Hashable] = Counter()
    for each in crowd:
        held[holder(each)] += amount(each)
    most = max(held.values())
    return next(each for each in crowd if held[holder(each)] == most)


class Shares(Generic[Holder]):
    """Who holds how much of something that is not taken back.

    A holder that takes more leaves at least as much as it then holds, or holds at most `sure` then.
    One alone may hold half of all there is, and k equal ones 1 / (k + 1) each. All together hold at
    most `most`, and `sure` for each holder.
    """

    __slots__ = ("_held", "_most", "_sure", "_total")

    def __init__(self, most: int, sure: int) -> None:
        """There is `most` of it; a holder may have `sure` of it, whatever others hold."""
        self._most, self._sure = most, sure
        self._held: Counter[Holder] = Counter()
        self._total = 0

    def take(self, holder: Holder, amount: int) -> bool:
        """Take so much; False, and nothing is taken, if that is more than its share."""
        mine = self._held[holder] + amount
        if mine > max(self._sure, self._most - self._total - amount):
            return False
        self._held[holder] = mine
        self._total += amount
        return True

    def give_back(self, holder: Holder, amount: int) -> None:
        """Give back so much of what it has taken."""
        self._held[holder] -= amount
        self._total -= amount
        if not self._held[holder]:
            del self._held[holder]
