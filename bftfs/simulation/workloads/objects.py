"""Counters and accounts: updates and queries of one and of several replicated objects.

Versions are known without asking the protocol for them: a counter that is only ever incremented by
one *is* its version, and an account counts the entries of its journal.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from random import Random
from typing import Any

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem.registry import FORMAT
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import ZERO
from bftfs.query_update.object_type import ObjectTypes, Record
from bftfs.simulation.checkers.candidates import chain_of, check_chain
from bftfs.simulation.checkers.disks import check_convergence
from bftfs.simulation.checkers.serializability import ObjectEntry, check_operations
from bftfs.simulation.deployment import CREDENTIALS, Sizes
from bftfs.simulation.principals import SimulatedClient
from bftfs.simulation.workloads import CorrectNodes, Task
from bftfs.simulation.workloads.ledger import (
    ACCOUNT,
    FIRST_CHAIN,
    MOST_MONEY,
    Accounts,
    Audit,
    Deposit,
    LedgerAccount,
    Transfer,
    next_chain,
)

FIRST_DEPOSIT = 1_000_000
# A client that is refused an update for one of these reasons excludes it before it says so.
_EXCLUDED = {errno.ETIME, errno.ENOSPC, errno.EROFS}


@dataclass(frozen=True, slots=True)
class ObjectMix:
    """Which objects there are, and how they are used."""

    counters: int = 2
    accounts: int = 3
    updates: float = 0.5  # the share of operations that update
    ledger: float = 0.6  # the share of operations on accounts, rather than counters
    several: float = 0.6  # the share of operations on accounts that are on more than one


@dataclass(slots=True)
class _Model:
    """The objects as they would be if operations took place one after the other."""

    accounts: dict[int, LedgerAccount] = field(default_factory=dict)

    def __call__(self, operation: ObjectEntry) -> Any:
        """The answer that `operation` must have been given."""
        objects = operation.objects
        match operation.arguments:
            case Increment() | Fetch():
                return operation.answer  # which is its version: their order is all that counts
            case Deposit(label, amount):
                self._enter(objects[0], label, amount)
            case Transfer(label, amount):
                for position, number in enumerate(objects):
                    last = position == len(objects) - 1
                    change = -amount if position == 0 else amount if last else 0
                    self._enter(number, label, change)
            case _:
                pass
        return Accounts(tuple(self._stand(number) for number in objects))

    def _stand(self, number: int) -> LedgerAccount:
        return self.accounts.get(number, LedgerAccount(0, 0, FIRST_CHAIN))

    def _enter(self, number: int, label: bytes, change: int) -> None:
        stand = self._stand(number)
        self.accounts[number] = LedgerAccount(
            stand.balance + change, stand.count + 1, next_chain(stand.chain, label)
        )


class ObjectWorkload:
    """Clients that use counters and accounts."""

    def __init__(
        self,
        random: Random,
        sizes: Sizes,
        types: ObjectTypes,
        mix: ObjectMix,
        *,
        with_volume: bool = False,
    ) -> None:
        """`with_volume`: one is formatted first, which nodes that collect go by."""
        self.with_volume = with_volume
        self.volume = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
        self.root = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
        self.kept_since_us: Callable[[], int] | None = None
        self.cut_off: set[str] = set()
        self.random = random
        self.sizes = sizes
        self.types = types
        self.mix = mix
        kinds = [ObjectKind.COUNTER] * mix.counters + [ACCOUNT] * mix.accounts
        self.objects: tuple[ObjectId, ...] = tuple(
            ObjectId(bytes((kind, random.randrange(256))) + random.randbytes(14)) for kind in kinds
        )
        self.counters = range(mix.counters)
        self.accounts = range(mix.counters, len(kinds))
        self.history: list[ObjectEntry] = []
        self.journals: dict[int, tuple[bytes, ...]] = {}  # as the auditor has found them
        self.last_counts: dict[int, int] = {}
        self.audited = False
        self._labels: dict[bytes, ObjectEntry] = {}
        self._findings: list[str] = []

    @property
    def operations(self) -> int:
        """The number of operations begun."""
        return len(self.history)

    def session(self, host: SimulatedClient, name: str) -> ObjectSession:
        """A client's session."""
        return ObjectSession(self, host, name)

    def new_label(self) -> bytes:
        """A label that no update has had."""
        return b"%x" % len(self._labels)

    def issue(self, entry: ObjectEntry) -> None:
        """Take down that an operation may take place, under its label if it has one."""
        if isinstance(entry.arguments, Deposit | Transfer):
            self._labels[entry.arguments.label] = entry

    def never_takes_place(self, entry: ObjectEntry) -> bool:
        """True if this update may not take place once its client is told that nodes refuse it.

        Nothing is promised of it if all of its objects are new.
        """
        return entry.update and any(
            each.update
            and each.responded <= entry.invoked
            and set(each.objects) & set(entry.objects)
            for each in self.history
            if not each.error
        )

    def attempted(self, name: str, at: float) -> tuple[str, tuple[ObjectId, ...], Record]:
        """An update that a Byzantine client may make from now on: it may take place, once."""
        entry = self.draw(name, updates=1.0)
        self.issue(entry)
        entry.invoked = at
        if name not in self.cut_off:
            self.history.append(entry)
        objects = tuple(self.objects[number] for number in entry.objects)
        return entry.method, objects, entry.arguments

    def forbidden(self) -> tuple[str, tuple[ObjectId, ...], Record] | None:
        """An update that must never take place, if there is one whose effect would be seen."""
        if not self.accounts:
            return None
        account = self.objects[self.random.choice(self.accounts)]
        return "ledger.deposit", (account,), Deposit(b"forbidden", 1)

    def draw(self, name: str, *, updates: float) -> ObjectEntry:
        """An operation, which is an update with this probability."""
        random, mix = self.random, self.mix
        update = random.random() < updates
        if self.counters and (not self.accounts or random.random() >= mix.ledger):
            number = random.choice(self.counters)
            if update:
                return ObjectEntry(name, "counter.increment", (number,), Increment(1), True)
            return ObjectEntry(name, "counter.fetch", (number,), Fetch(), False)
        most = min(3, len(self.accounts))
        several = most > 1 and random.random() < mix.several
        numbers = tuple(random.sample(self.accounts, random.randint(2, most) if several else 1))
        if not update:
            return ObjectEntry(name, f"ledger.audit{len(numbers)}", numbers, Audit(), False)
        label = self.new_label()
        if several:
            amount = random.choice((1, 1, random.randint(1, 100), 400_000, 2 * MOST_MONEY))
            return ObjectEntry(
                name, f"ledger.transfer{len(numbers)}", numbers, Transfer(label, amount), True
            )
        amount = random.choice((1, FIRST_DEPOSIT))
        return ObjectEntry(name, "ledger.deposit", numbers, Deposit(label, amount), True)

    # --- judging -----------------------------------------------------------------------------

    def findings(self) -> list[str]:
        """Violations of strict serializability, and of taking place at most once."""
        found = list(self._findings)
        positions = self._check_journals(found)
        self._check_counters(found)
        for entry in self.history:
            entry.versions = self._versions(entry, positions)
        operations = [each for each in self.history if each.invoked < inf and not each.error]
        # Without the journals it is not known which of the updates that never ended took place.
        return found + check_operations(operations, model=_Model() if self.journals else None)

    def _versions(
        self, entry: ObjectEntry, positions: dict[bytes, dict[Hashable, int]]
    ) -> Mapping[Hashable, int]:
        if entry.responded < inf:
            if entry.error:
                return {}
            if entry.objects[0] in self.counters:
                return {entry.objects[0]: entry.answer}
            stands = zip(entry.objects, entry.answer.accounts, strict=True)
            return {number: stand.count for number, stand in stands}
        if entry.update and isinstance(entry.arguments, Deposit | Transfer):
            return positions.get(entry.arguments.label, {})
        return {}

    def _check_journals(self, found: list[str]) -> dict[bytes, dict[Hashable, int]]:
        """Where each label stands in which journal; findings if that is not as it should be."""
        positions: dict[bytes, dict[Hashable, int]] = {}
        chains: dict[tuple[int, int], bytes] = {}
        for number, labels in self.journals.items():
            chain = FIRST_CHAIN
            for position, label in enumerate(labels, start=1):
                chain = next_chain(chain, label)
                chains[number, position] = chain
                if positions.setdefault(label, {}).setdefault(number, position) != position:
                    found.append(f"update {label!r} took place twice at account {number}")
        for label, places in positions.items():
            entry = self._labels.get(label)
            if entry is None:
                found.append(f"update {label!r} took place and was never made")
            elif places.keys() != set(entry.objects):
                found.append(f"{entry} took place at {list(places)} only")
            elif entry.error:
                found.append(f"{entry} was refused, and took place")
        self._check_answers(found, positions, chains)
        return positions

    def _check_answers(
        self,
        found: list[str],
        positions: dict[bytes, dict[Hashable, int]],
        chains: dict[tuple[int, int], bytes],
    ) -> None:
        """Every answer commits to the journals as they are in the end."""
        for entry in self.history:
            if entry.responded == inf or entry.error or not isinstance(entry.answer, Accounts):
                continue
            if entry.update and self.journals and entry.arguments.label not in positions:
                found.append(f"{entry} was acknowledged, and is lost")
            for number, stand in zip(entry.objects, entry.answer.accounts, strict=True):
                if not stand.count:
                    continue
                known = chains.setdefault((number, stand.count), stand.chain)
                if known != stand.chain:
                    found.append(f"{entry} was answered from another past of account {number}")

    def _check_counters(self, found: list[str]) -> None:
        """A counter counts all increments that ended, and at most those that did not."""
        for number, count in self.last_counts.items():
            increments = [
                entry
                for entry in self.history
                if entry.update and entry.objects == (number,) and not entry.error
            ]
            ended = sum(entry.responded < inf for entry in increments)
            if not ended <= count <= len(increments):
                found.append(
                    f"counter {number} stands at {count} after {ended} increments that ended and "
                    f"{len(increments) - ended} that did not"
                )

    def findings_on_disks(self, evidence: CorrectNodes) -> list[str]:
        """Every acknowledged update is on its objects' chains, and each has one chain."""
        found = list(evidence.candidates.findings)
        established = self.sizes.query_update.q - evidence.byzantine
        accepted = evidence.candidates.accepted
        for number, identifier in enumerate(self.objects):
            found += check_chain(
                accepted.get(identifier, {}),
                established=established,
                acknowledged=(
                    entry.timestamp
                    for entry in self.history
                    if entry.update and number in entry.objects and entry.timestamp != ZERO
                ),
                name=f"object {number}",
            )
        # The auditor has updated every object, when nobody else did anything any more.
        settled = {
            identifier: chain_of(accepted[identifier], established=established)[-1]
            for identifier in self.objects
            if self.audited and identifier in accepted
        }
        return found + check_convergence(evidence.disks, settled=settled, needed=established)

    def digested(self) -> Iterable[str]:
        """The history, line by line."""
        return map(repr, self.history)


class ObjectSession:
    """One client, from its start to its crash."""

    def __init__(self, workload: ObjectWorkload, host: SimulatedClient, name: str) -> None:
        self._workload = workload
        self._name = name
        self._world = host.world
        quorums = ThresholdQuorums(workload.sizes.query_update)
        self._client = QueryUpdateClient(host.client, Peers(quorums), workload.types)

    def prepare(self) -> Iterator[Task]:
        """A volume, if there is to be one: what was never written is there from the start."""
        workload = self._workload
        if workload.with_volume:
            objects = (workload.volume, workload.root)
            volume = Format(limits.BLOCK_BYTES_MIN, 0o700)
            format_it = partial(self._client.update, objects, FORMAT, volume, CREDENTIALS)
            yield Task("format", format_it)

    def next_task(self) -> Task:
        """One operation."""
        return self._task(self._workload.draw(self._name, updates=self._workload.mix.updates))

    def audit(self) -> Iterator[Task]:
        """See all that has happened; then an update of every object, by a client alone."""
        workload = self._workload
        for number in workload.counters:
            entry = ObjectEntry(self._name, "counter.increment", (number,), Increment(1), True)
            yield self._task(entry)
        for number in workload.accounts:
            deposit = Deposit(workload.new_label(), 1)
            yield self._task(ObjectEntry(self._name, "ledger.deposit", (number,), deposit, True))
        if len(workload.accounts) > 1:
            pair = tuple(workload.accounts)[:2]
            transfer = Transfer(workload.new_label(), 1)
            yield self._task(ObjectEntry(self._name, "ledger.transfer2", pair, transfer, True))
        for number in workload.counters:
            yield self._last_count(number)
        for number in workload.accounts:
            yield self._journal(number)
        workload.audited = True

    def _task(self, entry: ObjectEntry) -> Task:
        workload = self._workload
        workload.issue(entry)
        objects = tuple(workload.objects[number] for number in entry.objects)
        perform = self._client.update if entry.update else self._client.query

        async def conversation() -> None:
            entry.invoked = self._world.now_us
            workload.history.append(entry)
            try:
                result = await perform(objects, entry.method, entry.arguments, CREDENTIALS)
            except FileSystemError as error:
                if not isinstance(entry.arguments, Transfer):
                    raise
                entry.error, entry.responded = error.code, self._world.now_us
                if error.code != errno.EDQUOT:  # which is part of what is agreed
                    raise
                return
            except AdmissionRefused as error:
                if error.code in _EXCLUDED and workload.never_takes_place(entry):
                    entry.error, entry.responded = error.code, self._world.now_us
                raise
            answer = result.answer
            entry.answer = answer if isinstance(answer, Accounts) else answer.value
            entry.timestamp, entry.responded = result.timestamp, self._world.now_us

        return Task(f"{entry.method} {entry.objects} {entry.arguments}", conversation)

    def _last_count(self, number: int) -> Task:
        entry = ObjectEntry(self._name, "counter.fetch", (number,), Fetch(), False)
        task = self._task(entry)

        async def conversation() -> None:
            await task.conversation()
            self._workload.last_counts[number] = entry.answer

        return Task(task.name, conversation)

    def _journal(self, number: int) -> Task:
        account = self._workload.objects[number]

        async def conversation() -> None:
            found = await self._client.query((account,), "ledger.journal", Audit(), CREDENTIALS)
            self._workload.journals[number] = found.answer.labels

        return Task(f"journal of {number}", conversation)
