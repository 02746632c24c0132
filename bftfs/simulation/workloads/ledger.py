"""The ledger: an object type made to be checked, with updates and queries of several objects.

An account has a balance and a journal of the labels of all updates that it has seen. Every answer
gives the journal's length and the end of a hash chain over it: it commits to all that happened to
the account before, in order. What took place, in which order, whether once and whether at all
objects alike can so be seen from outside, without knowing how the objects are replicated.
"""

from __future__ import annotations

import errno
import hashlib
from typing import Any

from bftfs.query_update.object_type import (
    Caller,
    Method,
    MutableState,
    ObjectTypes,
    Record,
    Refusal,
    State,
)

ACCOUNT = 0x61  # the kind of an account, which no product object has
CHAIN_BYTES = 8
FIRST_CHAIN = bytes(CHAIN_BYTES)
CREDIT = 1_000  # what every account may be overdrawn by
MOST_MONEY = 1 << 40  # nobody ever has so much

_BALANCE, _COUNT, _CHAIN, _ENTRY = b"balance", b"count", b"chain", b"entry "


class Deposit(Record, frozen=True):
    """Put `amount` on one account."""

    label: bytes
    amount: int


class Transfer(Record, frozen=True):
    """Move `amount` from the first account to the next, from that to the one after, and so on."""

    label: bytes
    amount: int


class Audit(Record, frozen=True):
    """Arguments of an audit of accounts."""


class LedgerAccount(Record, frozen=True):
    """The state of one account: balance, length of its journal, and the journal's hash chain."""

    balance: int
    count: int
    chain: bytes


class Accounts(Record, frozen=True):
    """The state of each account, in the order of the roles."""

    accounts: tuple[LedgerAccount, ...]


class LedgerJournal(Record, frozen=True):
    """The labels of all updates of one account, in order."""

    labels: tuple[bytes, ...]


def next_chain(chain: bytes, label: bytes) -> bytes:
    """The chain's end when `label` is added."""
    return hashlib.blake2b(chain + label, digest_size=CHAIN_BYTES).digest()


def _number(state: State, key: bytes) -> int:
    stored = state.get(key)
    return 0 if stored is None else int.from_bytes(stored, "big", signed=True)


def _stand(state: State) -> LedgerAccount:
    return LedgerAccount(
        _number(state, _BALANCE), _number(state, _COUNT), state.get(_CHAIN) or FIRST_CHAIN
    )


def _enter(state: MutableState, label: bytes, change: int) -> None:
    stand = _stand(state)
    state.put(_BALANCE, (stand.balance + change).to_bytes(8, "big", signed=True))
    state.put(_COUNT, (stand.count + 1).to_bytes(8, "big", signed=True))
    state.put(_CHAIN, next_chain(stand.chain, label))
    state.put(_ENTRY + stand.count.to_bytes(4, "big"), label)


def _deposit(states: tuple[MutableState], arguments: Deposit, _: Caller) -> Accounts:
    _enter(states[0], arguments.label, arguments.amount)
    return _audit(states, Audit(), _)


def _transfer(states: tuple[MutableState, ...], arguments: Transfer, _: Caller) -> Accounts:
    if _stand(states[0]).balance + CREDIT < arguments.amount:
        raise Refusal(errno.EDQUOT)
    for position, state in enumerate(states):
        change = 0
        if position == 0:
            change = -arguments.amount
        elif position == len(states) - 1:
            change = arguments.amount
        _enter(state, arguments.label, change)
    return _audit(states, Audit(), _)


def _audit(states: tuple[State, ...], _: Audit, __: Caller) -> Accounts:
    return Accounts(tuple(_stand(state) for state in states))


def _journal(states: tuple[State], _: Audit, __: Caller) -> LedgerJournal:
    return LedgerJournal(tuple(label for _, label in states[0].scan(_ENTRY, _ENTRY + b"\xff" * 5)))


def ledger_types() -> ObjectTypes:
    """The ledger's methods; those of several accounts come for each number of them."""
    account: frozenset[int] = frozenset({ACCOUNT})
    deposit: Any = _deposit
    transfer: Any = _transfer
    audit: Any = _audit
    journal: Any = _journal
    return ObjectTypes(
        (
            Method("ledger.deposit", True, (account,), Deposit, deposit, Accounts),
            Method("ledger.journal", False, (account,), Audit, journal, LedgerJournal),
            *(
                Method(f"ledger.transfer{n}", True, (account,) * n, Transfer, transfer, Accounts)
                for n in (2, 3)
            ),
            *(
                Method(f"ledger.audit{n}", False, (account,) * n, Audit, audit, Accounts)
                for n in (1, 2, 3)
            ),
        )
    )
