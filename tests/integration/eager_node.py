"""`python -m tests.integration.eager_node {careful|credulous|forging}`: a node that need not wait.

It compares its clock and its description with others' each second, and lets go what it was told to
each second, so that a test need not wait for a minute. Otherwise it is the node that it is

careful:   with all rules;
credulous: without those that say who may do what: it believes every claim of a user, every
           description of the cluster, every name and every share, serves who comes first, and
           leaves to others what clients have begun;
forging:   one that lies: an `accomplice`, which in addition tells its peers that the description
           in `forged.toml` of its directory is the latest one, while there is one. Whom it has told
           is in `told`, a node's number in each line.
"""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bftfs import description_files, limits
from bftfs.cluster import ClusterDescription, decode
from bftfs.credentials import Grant
from bftfs.crypto.digest import cluster_digest
from bftfs.description_files import SignedDescription
from bftfs.envelope import Decision, DescriptionReply, DescriptionRequest
from bftfs.filesystem import directory
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.objects import Subject
from bftfs.limits import SECOND_US
from bftfs.query_update.object_type import MutableState
from bftfs.server import comparison
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.room import Room
from bftfs.server.shares import Shares
from bftfs.server.step import Ready, Sender
from nodes.__main__ import main
from nodes.connections import STRANGERS_MAX, Connections
from nodes.membership import MembershipServer, Revocations
from nodes.metrics import Health
from nodes.protocols import HONEST
from tests.lying_node import lying

CLAIMED = 1_000_000  # a serial that no description reaches


def be_eager() -> None:
    comparison.FIRST_AFTER_US = comparison.EVERY_US = SECOND_US
    limits.CLOCKS_COMPARED_EVERY_US = SECOND_US
    limits.COLLECT_PRESSED_US = limits.COLLECT_LET_GO_US = SECOND_US


def be_credulous() -> None:
    def unverified(
        encoded: bytes, signature: bytes, *, administrator: bytes, source: str
    ) -> SignedDescription:
        return SignedDescription(decode(encoded, source=source), encoded, signature)

    def is_other(mine: ClusterDescription, other: ClusterDescription) -> bool:
        return mine.digest != other.digest

    admit = Connections._admit_stranger

    def admit_first(self: Connections, accepted: Any, *given: Any) -> None:
        if len(self._strangers) < STRANGERS_MAX:
            admit(self, accepted, *given)
        else:
            accepted.close()

    def take_first(self: Shares[Any], holder: Any, amount: int) -> bool:
        if self._total + amount > self._most:
            return False
        self._held[holder] += amount
        self._total += amount
        return True

    def create(state: MutableState, made: Attributes) -> Subject:
        subject = Subject(state, made)
        subject._loaded = None
        return subject

    async def nothing(*_: Any) -> None:
        pass

    Finisher.run = nothing  # type: ignore[method-assign]
    Grant.uncovered = lambda *_: ""  # type: ignore[method-assign]
    directory.fault_of = lambda _: 0
    Subject.created = create  # type: ignore[method-assign]
    description_files.verified = unverified
    ClusterDescription.is_superseded_by = is_other  # type: ignore[method-assign]
    Revocations.__contains__ = lambda *_: False  # type: ignore[method-assign]
    Room.admits_version = lambda *_: None  # type: ignore[method-assign]
    Connections._admit_stranger = admit_first  # type: ignore[method-assign]
    Shares.take = take_first  # type: ignore[method-assign]


def forge_descriptions(place: Path) -> None:
    tell, report = MembershipServer.step, Health.reply
    forged, told = place / "forged.toml", place / "told"

    def lie(self: MembershipServer, view: Any, sender: Sender, message: Any, *given: Any) -> Ready:
        if sender.node is None or type(message) is not DescriptionRequest or not forged.exists():
            return tell(self, view, sender, message, *given)
        with told.open("a") as file:
            file.write(f"{sender.node}\n")
        encoded, signature = forged.read_bytes(), description_files.signature_path(forged)
        return Ready(DescriptionReply(encoded, signature.read_bytes()))

    def claim(self: Health) -> Any:
        reply = report(self)
        if not forged.exists():
            return reply
        encoded = forged.read_bytes()
        decisions = decode(encoded, source="forged").let_go
        return replace(
            reply,
            description_serial=CLAIMED,
            description_digest=cluster_digest(encoded),
            let_go=tuple(Decision(*astuple(each)) for each in decisions),
        )

    MembershipServer.step = lie  # type: ignore[method-assign]
    Health.reply = claim  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    be_eager()
    protocols = HONEST
    if kind == "credulous":
        be_credulous()
    elif kind == "forging":
        forge_descriptions(Path(arguments[arguments.index("--data") + 1]))
        protocols = lying(["accomplice"])
    raise SystemExit(main(arguments, protocols=protocols))
