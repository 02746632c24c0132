"""Any text is a cluster description or a mistake that is explained; nothing else happens."""

import tomllib
from dataclasses import replace
from itertools import count

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs import cluster
from bftfs.credentials import Grant
from bftfs.crypto.keys import Identity
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId
from bftfs.retention import LetGo

FUZZ = settings(max_examples=200, deadline=None, derandomize=True)


DRAWS = count(1)


def entropy(length: int) -> bytes:
    """Bytes that differ from draw to draw, and not from run to run."""
    return bytes([next(DRAWS)]) * length


NEW = cluster.create([f"tcp:10.0.0.{node}:7000" for node in range(6)], t=1, b=1, draw=entropy)
DESCRIPTION = NEW.description.with_client(
    cluster.ClientEntry(
        "laptop", Identity.generate(entropy(32)).public_key, Grant(uids=(1000,), gids=(1000, 10))
    )
)
DESCRIPTION = replace(
    DESCRIPTION,
    clients=(replace(DESCRIPTION.clients[0], added_s=1_790_000_000),),
    past_clients=(cluster.PastClient("old", ClientId(entropy(16)), 5, 1_790_000_000),),
    let_go=(
        LetGo(1_790_000_000, 1_790_001_000, 3, ClientId(entropy(16)), 1_780_000_000),
        LetGo(1_790_000_000, 1_790_001_000, 4),
    ),
)
DOCUMENT = tomllib.loads(cluster.encode(DESCRIPTION).decode())

values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def decoded_or_explained(encoded: bytes) -> None:
    explanation = ""
    try:
        description = cluster.decode(encoded, source="cluster.toml")
    except UsageError as error:
        explanation = error.message
    if explanation:
        assert explanation.startswith("cluster.toml")
    else:
        assert cluster.decode(cluster.encode(description), source="again") == description


@FUZZ
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes(encoded: bytes) -> None:
    decoded_or_explained(encoded)


@FUZZ
@given(st.data())
def test_any_change_of_one_field(data: st.DataObject) -> None:
    document = tomllib.loads(tomli_w.dumps(DOCUMENT))
    tables = document["members"][3], document["clients"][0], document["past_clients"][0]
    tables += (*document["let_go"],)
    table = data.draw(st.sampled_from([document, *tables]))
    field = data.draw(st.sampled_from(sorted(table)) | st.text(max_size=5))
    if field in table and data.draw(st.booleans()):
        del table[field]
    else:
        table[field] = data.draw(values)
    decoded_or_explained(tomli_w.dumps(document).encode())
