"""An object type for tests: accounts, with transfers between them, and a log of who did what.

Each account keeps its balance and, for every transfer, an entry under the operation's own name, so
that a test can see from the state whether an operation took effect, how often, and where.
"""

from __future__ import annotations

import errno
from typing import Any

from bftfs.identifiers import ObjectKind
from bftfs.query_update.counter import counter_types
from bftfs.query_update.object_type import Caller, Method, ObjectTypes, Record, Refusal

KIND = frozenset({ObjectKind.COUNTER})


class Transfer(Record, frozen=True):
    """Move `amount` from the first account to the others, equally."""

    name: str
    amount: int = 1


class Read(Record, frozen=True):
    """Read balances and entries."""


class Accounts(Record, frozen=True):
    """What is in the accounts."""

    balances: tuple[int, ...]
    entries: tuple[tuple[str, ...], ...]


def _balance(state: Any) -> int:
    stored = state.get(b"balance")
    return 0 if stored is None else int.from_bytes(stored, "big", signed=True)


def _add(state: Any, amount: int, name: str) -> None:
    key = b"entry" + name.encode()
    times = state.get(key)
    state.put(key, bytes((1 if times is None else times[0] + 1,)))
    state.put(b"balance", (_balance(state) + amount).to_bytes(8, "big", signed=True))


def _transfer(states: tuple[Any, ...], arguments: Transfer, _: Caller) -> Accounts:
    if arguments.amount < 0:
        raise Refusal(errno.EINVAL)
    _add(states[0], -arguments.amount * (len(states) - 1), arguments.name)
    for state in states[1:]:
        _add(state, arguments.amount, arguments.name)
    return _read(states, Read(), _)


def _read(states: tuple[Any, ...], _: Read, __: Caller) -> Accounts:
    return Accounts(
        tuple(_balance(state) for state in states),
        tuple(
            tuple(f"{key[5:].decode()}x{value[0]}" for key, value in state.scan(b"entry", b"entrz"))
            for state in states
        ),
    )


def ledger_types() -> ObjectTypes:
    """Transfers between two or three accounts; reading one, two or three."""
    return counter_types() | ObjectTypes(
        [
            *(
                Method(f"transfer.{n}", True, (KIND,) * n, Transfer, _transfer, Accounts)
                for n in (1, 2, 3)
            ),
            *(Method(f"read.{n}", False, (KIND,) * n, Read, _read, Accounts) for n in (1, 2, 3)),
        ]
    )
