"""A client's name is not its identity: names and ids of present and past clients."""

from __future__ import annotations

from itertools import count

import pytest

from bftfs import cluster
from bftfs.cluster import ClientEntry
from bftfs.crypto.keys import Identity
from bftfs.errors import UsageError
from bftfs.known_clients import client_called, known_clients, labels_of

DRAWS = count(1)


def entry(name: str, added_s: int | None = None) -> ClientEntry:
    identity = Identity.generate(bytes([next(DRAWS)]) * 32)
    return ClientEntry(name, identity.public_key, added_s=added_s)


STOLEN, ISSUED_AGAIN = entry("laptop", 10), entry("laptop", 30)
OTHER, GONE = entry("desk"), entry("tablet")
DESCRIPTION = (
    cluster.create(
        [f"unix:/{node}" for node in range(6)],
        t=1,
        b=1,
        draw=lambda length: bytes([next(DRAWS)]) * length,
    )
    .description.with_client(STOLEN)
    .with_client(OTHER)
    .with_client(GONE)
    .without_client("laptop", at_s=20)
    .without_client("tablet", at_s=25)
    .with_client(ISSUED_AGAIN)
)


def test_all_that_ever_were_are_known() -> None:
    assert [(each.name, each.added_s, each.revoked_s) for each in known_clients(DESCRIPTION)] == [
        ("desk", None, None),
        ("laptop", 30, None),
        ("tablet", None, 25),
        ("laptop", 10, 20),
    ]


def test_a_name_that_several_have_had_is_shown_with_the_id() -> None:
    labels = labels_of(DESCRIPTION)
    assert labels[OTHER.client] == "desk"
    assert labels[GONE.client] == "tablet"
    for each in (STOLEN, ISSUED_AGAIN):
        assert labels[each.client] == f"laptop:{each.client.hex()[:12]}"


@pytest.mark.parametrize("named", [STOLEN, ISSUED_AGAIN, OTHER, GONE])
def test_a_client_is_named_by_its_id_or_by_what_it_is_called(named: ClientEntry) -> None:
    digits = named.client.hex()
    for text in (digits, digits[:12], digits[:8].upper(), labels_of(DESCRIPTION)[named.client]):
        assert client_called(DESCRIPTION, text) == named.client
    assert client_called(DESCRIPTION, f"{named.name}:{digits}") == named.client


def test_a_name_alone_is_enough_where_only_one_has_it() -> None:
    assert client_called(DESCRIPTION, "desk") == OTHER.client
    assert client_called(DESCRIPTION, "tablet") == GONE.client


def test_a_name_of_several_is_refused_and_they_are_listed() -> None:
    with pytest.raises(UsageError) as raised:
        client_called(DESCRIPTION, "laptop")
    said = raised.value.message
    assert f"laptop:{ISSUED_AGAIN.client.hex()[:12]}," in said
    assert said.endswith(f"laptop:{STOLEN.client.hex()[:12]} (revoked)")


@pytest.mark.parametrize("text", ["nobody", "abc", "laptop:", "desk:000000", "", ":", "0" * 31])
def test_what_names_nobody_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no client is called so; there are desk:"):
        client_called(DESCRIPTION, text)


def test_a_whole_id_is_taken_for_what_it_is() -> None:
    """Of a client that was revoked before descriptions remembered that."""
    assert client_called(DESCRIPTION, "0f" * 16) == bytes([15]) * 16
