"""What makers of histories know of each other's lives, and what of that has to be asked for."""

from bftfs.crypto.digest import (
    AuthenticatorKeys,
    authenticator_bytes,
    entries_of,
    replica_history_digest,
)
from bftfs.identifiers import NodeId, ObjectKind, object_id
from bftfs.query_update.consistent import Claim, claims_in
from bftfs.query_update.history import Known, assemble
from tests.unit.query_update.building import history, method

N = 4
NAME = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
HISTORY = history(method(1))
DIGEST = replica_history_digest(object=NAME, encoded=HISTORY)


def servers() -> list[AuthenticatorKeys]:
    return [
        AuthenticatorKeys(
            NodeId(node), tuple(bytes([1 + node * peer, 1 + node + peer]) for peer in range(N))
        )
        for node in range(N)
    ]


def claims(signed: dict[int, bytes], judge: AuthenticatorKeys) -> set[Claim]:
    history_set, authenticators, _ = assemble(
        NAME, {NodeId(node): Known(HISTORY, made) for node, made in signed.items()}
    )
    return claims_in([history_set], [entries_of(authenticators, N)[judge.node]], judge)


def test_nothing_is_told_before_somebody_has_begun_a_second_life() -> None:
    keys = servers()
    made = {node: keys[node].make_knowing(DIGEST) for node in range(3)}
    assert {len(each) for each in made.values()} == {authenticator_bytes(N)}
    assert claims(made, keys[3]) == set()
    keys[0].learn(0, 1)  # its own: that is in the authenticator anyway
    assert len(keys[0].make_knowing(DIGEST)) == authenticator_bytes(N)


def test_knowledge_of_a_later_life_is_a_claim() -> None:
    keys = servers()
    old = keys[0].make_knowing(DIGEST)
    before = keys[1].make_knowing(DIGEST)
    keys[1].learn(0, 1)
    after = keys[1].make_knowing(DIGEST)
    assert len(after) == authenticator_bytes(N, knowing=True)
    assert claims({0: old, 1: before}, keys[3]) == set()
    assert claims({0: old, 1: after}, keys[3]) == {Claim(NodeId(1), NodeId(0), 1)}
    assert claims({1: after, 2: keys[2].make_knowing(DIGEST)}, keys[3]) == set()
    keys[3].learn(0, 1)
    assert claims({0: old, 1: after}, keys[3]) == set(), "the old one is culled then"


def test_what_a_maker_knows_is_covered() -> None:
    keys = servers()
    keys[1].learn(0, 1)
    made = keys[1].make_knowing(DIGEST)
    plain = authenticator_bytes(N)

    def refuted(authenticator: bytes) -> list[int]:
        entry = entries_of(authenticator, N)[3]
        return keys[3].refuted(makers=b"\1", digest=DIGEST, entries=entry)[0]

    assert refuted(made) == []
    assert refuted(made[:plain]) == [1]
    assert refuted(made[: plain + 7] + b"\2" + made[plain + 8 :]) == [1]
    unknowing = keys[2].make_knowing(DIGEST)
    assert keys[3].refuted(
        makers=b"\1\2",
        digest=DIGEST,
        entries=entries_of(made + unknowing.ljust(len(made), b"\0"), N)[3],
    ) == ([], [])
