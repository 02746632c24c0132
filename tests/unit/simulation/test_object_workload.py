"""What the workload of objects finds in histories that are wrong."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import pytest

from bftfs.query_update.counter import Increment
from bftfs.simulation.checkers.serializability import ObjectEntry
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.workloads.ledger import (
    FIRST_CHAIN,
    Accounts,
    Deposit,
    LedgerAccount,
    Transfer,
    ledger_types,
    next_chain,
)
from bftfs.simulation.workloads.objects import ObjectMix, ObjectWorkload

ONE, TWO = 1, 2  # the accounts, after one counter
INFINITE = float("inf")


def chain(*labels: bytes) -> bytes:
    end = FIRST_CHAIN
    for label in labels:
        end = next_chain(end, label)
    return end


class History:
    """A history made by hand, and what is found in it."""

    def __init__(self) -> None:
        mix = ObjectMix(counters=1, accounts=2)
        self.workload = ObjectWorkload(Random(1), Sizes.smallest(t=1, b=1), ledger_types(), mix)
        self.workload.journals = {ONE: (b"a", b"b"), TWO: (b"b",)}
        self.deposit = self.add(
            "ledger.deposit", (ONE,), Deposit(b"a", 5), 0, 1, [LedgerAccount(5, 1, chain(b"a"))]
        )
        self.transfer = self.add(
            "ledger.transfer2",
            (ONE, TWO),
            Transfer(b"b", 2),
            2,
            3,
            [LedgerAccount(3, 2, chain(b"a", b"b")), LedgerAccount(2, 1, chain(b"b"))],
        )

    def add(
        self,
        method: str,
        objects: tuple[int, ...],
        arguments: Any,
        invoked: float,
        responded: float,
        stands: list[LedgerAccount] | None,
    ) -> ObjectEntry:
        answer = Accounts(tuple(stands)) if stands else None
        entry = ObjectEntry("c", method, objects, arguments, True, invoked, responded, answer)
        self.workload.issue(entry)
        self.workload.history.append(entry)
        return entry

    def finds(self, what: str) -> bool:
        return any(what in finding for finding in self.workload.findings())


def test_a_good_history_passes() -> None:
    assert History().workload.findings() == []


def test_an_update_that_never_ended_may_have_taken_place_once() -> None:
    history = History()
    history.deposit.responded, history.deposit.answer = INFINITE, None
    assert history.workload.findings() == []
    history.workload.journals[ONE] = (b"a", b"b", b"a")
    assert history.finds("took place twice")


def test_half_of_a_transfer_is_found() -> None:
    history = History()
    history.workload.journals[TWO] = ()
    assert history.finds("only")


def test_a_lost_update_is_found() -> None:
    history = History()
    history.workload.journals[ONE] = (b"b",)
    assert history.finds("is lost")


def test_an_update_that_nobody_made_is_found() -> None:
    history = History()
    history.workload.journals[TWO] = (b"b", b"x")
    assert history.finds("was never made")


def test_a_refused_update_that_took_place_is_found() -> None:
    history = History()
    history.transfer.error = errno.EDQUOT
    assert history.finds("was refused, and took place")


def test_an_answer_from_another_past_is_found() -> None:
    history = History()
    history.deposit.answer = Accounts((LedgerAccount(5, 1, chain(b"x")),))
    assert history.finds("another past")


def test_a_wrong_balance_is_found() -> None:
    history = History()
    history.deposit.answer = Accounts((LedgerAccount(6, 1, chain(b"a")),))
    assert history.finds("should have been")


@pytest.mark.parametrize(("count", "wrong"), [(1, True), (2, False), (3, False), (4, True)])
def test_a_counter_counts_what_ended_and_perhaps_what_did_not(count: int, wrong: bool) -> None:
    history = History()
    for number, responded in enumerate((10, 11, INFINITE), start=1):
        entry = history.add("counter.increment", (0,), Increment(1), 9, responded, None)
        entry.answer = number if responded < INFINITE else None
    history.workload.last_counts[0] = count
    assert history.finds("counter 0 stands at") is wrong
