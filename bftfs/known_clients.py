"""The clients of a cluster by name or id, those that were revoked included.

A client's name is not its identity: a key is revoked, and the next one is issued under the same
name. Its identity is the id that is in every version it has written. So people say a name, an id or
the beginning of one, or both as `NAME:ID` where a name has belonged to several.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bftfs.cluster import ClusterDescription
from bftfs.credentials import Grant
from bftfs.errors import UsageError
from bftfs.identifiers import CLIENT_ID_BYTES, ClientId

SHORT_DIGITS: Final = 12  # of an id, where it is shown to people
_LEAST_DIGITS: Final = 6  # of an id that is given


@dataclass(frozen=True, slots=True)
class KnownClient:
    """A client, present or past."""

    name: str
    client: ClientId
    added_s: int | None  # since the epoch; None: not known
    revoked_s: int | None  # None: it may connect
    grant: Grant | None  # None: it was revoked
    share: float  # the part of the room that its versions may use

    @property
    def full_name(self) -> str:
        """Name and id, as `NAME:ID`."""
        return f"{self.name}:{self.client.hex()[:SHORT_DIGITS]}"


def known_clients(description: ClusterDescription) -> tuple[KnownClient, ...]:
    """The present clients, then the past ones, the latest first."""
    return (
        *(
            KnownClient(
                each.name,
                each.client,
                each.added_s,
                None,
                each.grant,
                description.share_of(each.client),
            )
            for each in description.clients
        ),
        *(
            KnownClient(
                each.name,
                each.client,
                each.added_s,
                each.revoked_s,
                None,
                description.share_of(each.client),
            )
            for each in reversed(description.past_clients)
        ),
    )


def labels_of(description: ClusterDescription) -> dict[ClientId, str]:
    """The name of each client; `NAME:ID` if several clients have had that name."""
    known = known_clients(description)
    bearers = Counter(each.name for each in known)
    return {each.client: each.name if bearers[each.name] == 1 else each.full_name for each in known}


def client_called(description: ClusterDescription, text: str) -> ClientId:
    """The client that `text` names; whose id it is, if nobody known has it. Raises UsageError."""
    known = known_clients(description)
    name, colon, digits = text.partition(":")
    if colon:
        found = [each for each in known if each.name == name and _begins(each, digits)]
    else:
        found = [each for each in known if each.name == text] or [
            each for each in known if _begins(each, text)
        ]
    if len(found) == 1:
        return found[0].client
    if found:
        raise UsageError(f"{text}: several clients are called so; say which: {_listed(found)}")
    digits = digits if colon else text
    if len(digits) == 2 * CLIENT_ID_BYTES and _is_hexadecimal(digits):
        return ClientId(bytes.fromhex(digits))
    raise UsageError(
        f"{text}: no client is called so; there are {_listed(known) or 'none'}. Another one is "
        "named by its whole id (32 digits), which `bftfs log --json` shows"
    )


def _begins(known: KnownClient, digits: str) -> bool:
    """True if the client's id begins with these digits, and they are enough."""
    return len(digits) >= _LEAST_DIGITS and known.client.hex().startswith(digits.lower())


def _is_hexadecimal(text: str) -> bool:
    return all(each in string.hexdigits for each in text)


def _listed(clients: Iterable[KnownClient]) -> str:
    return ", ".join(
        each.full_name + ("" if each.revoked_s is None else " (revoked)") for each in clients
    )
