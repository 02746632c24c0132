"""Key epochs in descriptions: their encoding, their limits, and who gets which keys."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from bftfs import cluster, key_epochs, limits
from bftfs.cluster import EPOCHS, ClientEntry, ClusterDescription, Epoch
from bftfs.crypto import epochs
from bftfs.crypto.keys import Identity
from bftfs.errors import InvalidAuthenticator, UsageError
from bftfs.identifiers import FIRST_EPOCH, EpochId
from bftfs.key_epochs import epoch_keys_in, with_keys_for_all, with_new_epoch

DRAWS = count(1)
ALICE, BOB = (Identity.generate(each * 32) for each in (b"a", b"b"))
VOLUME_KEY = b"v" * 32


def draw(length: int) -> bytes:
    return next(DRAWS).to_bytes(3, "big").rjust(length, b"d")


NEW = cluster.create([f"tcp:10.0.0.{node}:7" for node in range(6)], t=1, b=1, draw=draw)
FIRST = NEW.description.with_client(ClientEntry("alice", ALICE.public_key)).with_client(
    ClientEntry("bob", BOB.public_key)
)


def begun(
    described: ClusterDescription,
    volume_key: bytes | None = VOLUME_KEY,
    others: tuple[Epoch, ...] = (),
) -> ClusterDescription:
    return with_new_epoch(
        described, NEW.administrator, volume_key=volume_key, at_s=7, draw=draw, others=others
    )


SECOND = begun(FIRST)
THIRD = begun(SECOND.without_client("bob", at_s=8), None)


def test_descriptions_without_epochs_are_as_before() -> None:
    encoded = cluster.encode(FIRST)
    for word in (b"epoch", b"keyring"):
        assert word not in encoded
    assert (FIRST.epoch, FIRST.epoch_number) == (FIRST_EPOCH, 0)
    assert epoch_keys_in(FIRST, ALICE) == {}


def test_encoding() -> None:
    for described in (SECOND, THIRD):
        assert cluster.decode(cluster.encode(described), source="it") == described


def test_who_is_a_client_gets_all_keys_and_who_was_one_none_that_come_later() -> None:
    seconds = epoch_keys_in(SECOND, BOB)
    assert seconds == epoch_keys_in(SECOND, ALICE)
    assert seconds.keys() == {FIRST_EPOCH, SECOND.epoch}
    assert seconds[FIRST_EPOCH] == VOLUME_KEY
    assert epoch_keys_in(THIRD, BOB) == {}
    thirds = epoch_keys_in(THIRD, ALICE)
    assert thirds.keys() == {FIRST_EPOCH, SECOND.epoch, THIRD.epoch}
    assert thirds.items() > seconds.items()
    assert [each.number for each in THIRD.epochs] == [1, 2]


def test_a_volume_key_that_was_handed_on_is_not_replaced_by_another_file() -> None:
    later = begun(SECOND, b"w" * 32)
    assert epoch_keys_in(later, ALICE)[FIRST_EPOCH] == VOLUME_KEY
    assert epoch_keys_in(begun(FIRST, b"w" * 32), ALICE)[FIRST_EPOCH] == b"w" * 32


def test_what_a_revoked_client_has_opens_nothing_of_the_next_description() -> None:
    """With all of its keys, and the whole description."""
    keys = epoch_keys_in(SECOND, BOB)
    for key in keys.values():
        for latest in (SECOND.epoch, THIRD.epoch):
            with pytest.raises(InvalidAuthenticator):
                epochs.opened_keyring(THIRD.keyring, latest=latest, key=key)
    for entry in THIRD.clients:
        with pytest.raises(InvalidAuthenticator):
            epochs.unboxed_key(entry.epoch_key, BOB)


def test_a_client_that_comes_later_gets_the_present_key() -> None:
    carol = Identity.generate(b"c" * 32)
    added = THIRD.with_client(ClientEntry("carol", carol.public_key))
    assert epoch_keys_in(added, carol) == {}
    whole = with_keys_for_all(added, NEW.administrator, draw=draw)
    assert epoch_keys_in(whole, carol) == epoch_keys_in(THIRD, ALICE)
    assert whole.clients[0] == THIRD.clients[0]
    assert with_keys_for_all(whole, NEW.administrator, draw=draw) is whole


def test_epochs_of_another_machine_are_taken_up_once() -> None:
    other = begun(SECOND)
    merged = begun(THIRD, None, (*other.epochs, *other.epochs))
    keys = epoch_keys_in(merged, ALICE)
    assert [each.number for each in merged.epochs] == [1, 2, 2, 3]
    assert keys.items() > epoch_keys_in(other, ALICE).items()
    assert keys.items() > epoch_keys_in(THIRD, ALICE).items()


def test_what_only_looks_like_an_epoch_is_not_taken_up() -> None:
    merged = begun(SECOND, None, (Epoch(9, EpochId(b"x" * 16), 7),))
    assert [each.number for each in merged.epochs] == [1, 2]


def test_the_first_key_is_needed_once() -> None:
    with pytest.raises(UsageError, match=r"volume\.key"):
        begun(FIRST, None)
    spoilt = replace(SECOND, keyring=bytes(len(SECOND.keyring)))
    with pytest.raises(UsageError, match=r"volume\.key"):
        begun(spoilt, None)
    assert epoch_keys_in(begun(spoilt), ALICE)[FIRST_EPOCH] == VOLUME_KEY


def test_a_box_that_is_not_for_its_client_is_found() -> None:
    alice, bob = SECOND.clients
    swapped = replace(
        SECOND,
        clients=(replace(alice, epoch_key=bob.epoch_key), replace(bob, epoch_key=alice.epoch_key)),
    )
    with pytest.raises(InvalidAuthenticator):
        epoch_keys_in(swapped, ALICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keyring": b""}, "keyring has 0 bytes"),
        ({"keyring": b"x" * 1000}, "keyring has 1000 bytes"),
        ({"epochs": ()}, "keyring"),
        ({"epochs": (Epoch(0, EpochId(b"x" * 16), 7),)}, "numbers"),
        ({"epochs": (*SECOND.epochs, Epoch(1, EpochId(b"x" * 16), 7))}, "numbers"),
        ({"epochs": (*SECOND.epochs, replace(SECOND.epochs[0], number=2))}, "same id"),
        (
            {"clients": (replace(SECOND.clients[0], epoch_key=b"short"),)},
            "its epoch key has 5 bytes, not 80",
        ),
    ],
)
def test_mistakes(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SECOND, **change)  # type: ignore[arg-type]


def test_a_key_without_an_epoch_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="not 0"):
        replace(FIRST, clients=SECOND.clients)


def test_epochs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_epochs, "EPOCHS", 2)
    with pytest.raises(UsageError, match="can have no more"):
        begun(THIRD, None)


def test_the_largest_description_can_be_sent() -> None:
    """As many epochs as there may be, for clients whose keys take most of the room."""
    added = tuple(Epoch(number, EpochId(draw(16)), 7) for number in range(1, EPOCHS + 1))
    ring = epochs.KEYRING_OVERHEAD_BYTES + epochs.KEYRING_ENTRY_BYTES * EPOCHS
    most = replace(FIRST, epochs=added, keyring=bytes(ring))
    of_epochs = len(cluster.encode(most)) - len(cluster.encode(FIRST))
    one = replace(most.clients[0], epoch_key=b"k" * epochs.BOX_BYTES)
    each = len(cluster.encode(replace(most, clients=(one,)))) - len(
        cluster.encode(replace(most, clients=()))
    )
    assert of_epochs + 4096 * (each + 64) < limits.DESCRIPTION_BYTES
