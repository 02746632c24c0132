"""Digests: fixed for ever by vectors, and no two uses share an input space."""

import hashlib

from blake3 import blake3

from bftfs.crypto import digest
from bftfs.identifiers import BlockId, ObjectId

VALUE = b"value"
VECTORS = {
    digest.operation_digest: "66af4183a40eb1bd224e61acab23a91b1854826ac2df7b0f4834d8835947a80c",
    digest.answer_digest: "27c479f5e5d6893f43bc12e233d0b0e62aaef8cdafc863de8c1b7edd481149b4",
    digest.sync_page_digest: "e7f504a4ece3da0d089f39aee3b4e0e0c580cd59cd5f92cf5688ec4bcbdc602f",
    digest.cluster_digest: "3213cc358cc18e742a50e6096be493dbafaa087c11674a876c269cc93dc97d82",
    digest.client_id_of: "7b592bb2b14eb9e0eb556b03ccc18672",
}


def test_vectors() -> None:
    assert {function: function(VALUE).hex() for function in VECTORS} == VECTORS
    assert digest.fragment_digest(b"fragment").hex() == (
        "7506b133c02ccc7393b357d1e2d9f4d8de07ee152f9617b34576ecaf800ade76"
    )
    assert digest.verifier_of(b"cc").hex() == (
        "a690f7ff01e418c0241f59e6613af6af0c1a3c669e779de1b854427e34e374fe"
    )
    voucher = digest.voucher_digest(block=BlockId(bytes(range(32))), timestamp=b"timestamp")
    assert voucher.hex() == "0726a2a71e277eacaccea4f693e69b96dc9bb05e002724b5ae66673af10babd2"
    history = digest.replica_history_digest(object=ObjectId(bytes(range(16))), encoded=b"history")
    assert history.hex() == "989b4de4a641ce7cbafabb5e7a42d0e1724e17e0741f3d1d3133180d1b55d9bd"


def test_the_formats_are_what_the_documentation_says() -> None:
    assert (
        digest.verifier_of(VALUE)
        == hashlib.blake2b(VALUE, digest_size=32, person=b"bftfs.verifier").digest()
    )
    key = hashlib.blake2b(digest_size=32, person=b"bftfs.fragment").digest()
    assert digest.fragment_digest(VALUE) == blake3(VALUE, key=key).digest()


def test_no_two_uses_give_the_same_digest_of_one_input() -> None:
    value = bytes(16) + VALUE
    digests = [
        digest.fragment_digest(value),
        digest.verifier_of(value),
        digest.replica_history_digest(object=ObjectId(bytes(16)), encoded=VALUE),
        digest.voucher_digest(block=BlockId(bytes(16)), timestamp=VALUE),
        *(function(value) for function in VECTORS),
    ]
    assert len({found[:16] for found in digests}) == len(digests)


def test_prepared_states_are_not_used_up() -> None:
    assert digest.verifier_of(b"a") != digest.verifier_of(b"b")
    assert digest.verifier_of(b"a") == digest.verifier_of(b"a")


def test_a_fragment_may_be_any_buffer() -> None:
    fragment = bytes(range(256)) * 40
    expected = digest.fragment_digest(fragment)
    assert digest.fragment_digest(memoryview(b"x" + fragment)[1:]) == expected
    assert digest.fragment_digest(bytearray(fragment)) == expected
