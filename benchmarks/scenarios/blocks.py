"""How long does it take to write and to read a block with the PASIS read/write protocol?

[PASIS §3.7] measures the same: response times of 16 KB blocks, for growing numbers of tolerated
faults.  Every write is of a new block; what is read was written by another client, so that nothing
about it is known.  What the codec and the hash cost is measured by itself, in this process.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time

from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure
from benchmarks.session import Phase, Place, Session
from bftfs.cluster import ClusterDescription, Durability
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.crypto.keys import VOLUME_KEY_BYTES
from bftfs.identifiers import BlockId, ObjectKind, block_id, object_id
from bftfs.read_write.reading import FoundVersion

_PIECE_S = 0.05  # how long each part of a client's work is repeated to measure it
_SEED = 1


@dataclass(frozen=True, slots=True)
class Parameters:
    """`operations` of each kind with each size, in each round."""

    repeat: int
    systems: tuple[System, ...]
    sizes: tuple[int, ...]
    in_flight: tuple[int, ...]
    operations: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    for system in parameters.systems:
        with (
            deployed(system, parameters.durability, below=below) as deployment,
            suppress(PhaseError),
        ):
            blocks = _Blocks(session, deployment, parameters.operations)
            for number in range(parameters.repeat):
                for size in parameters.sizes:
                    for in_flight in parameters.in_flight:
                        blocks.measure(target, number, size, in_flight)


class _Blocks:
    """The blocks of one cluster."""

    def __init__(self, session: Session, deployment: Deployment, operations: int) -> None:
        self._session = session
        self._deployment = deployment
        self._operations = operations
        self._random = random.Random(_SEED)
        self._written = 0

    def measure(self, target: str, number: int, size: int, in_flight: int) -> None:
        """Writes of new blocks, then reads of them by a client that knows nothing of them."""
        sizes = self._deployment.description.read_write
        variant = (
            f"t={sizes.t} b={sizes.b} N={sizes.N} QC={sizes.QC} m={sizes.m},"
            f" {size // 1024} KiB, {in_flight} in flight"
        )
        place = Place(target, number, variant)
        first, self._written = self._written, self._written + self._operations
        items = {
            numbered_block(number): self._random.randbytes(size)
            for number in range(first, self._written)
        }
        with client_of(self._deployment) as writer:
            self._write(place, writer, items, in_flight)
        with client_of(self._deployment) as reader:
            self._read(place, reader, items, in_flight)

    def _write(
        self, place: Place, client: Client, items: dict[BlockId, bytes], in_flight: int
    ) -> None:
        with self._phase(place, "write") as phase:
            client.perform(
                (partial(client.blocks.write, block, item, ROOT) for block, item in items.items()),
                in_flight=in_flight,
                latencies_ns=phase.latencies_ns,
            )
        phase.details |= _pieces(self._deployment.description, next(iter(items.values())))

    def _read(
        self, place: Place, client: Client, items: dict[BlockId, bytes], in_flight: int
    ) -> None:
        async def read(block: BlockId) -> FoundVersion:
            return await client.blocks.read(block)

        with self._phase(place, "read") as phase:
            found = client.perform(
                (partial(read, block) for block in items),
                in_flight=in_flight,
                latencies_ns=phase.latencies_ns,
            )
        if [version.item for version in found] != list(items.values()):
            self._session.fail(place, "read", "what was read is not what was written")
            raise PhaseError

    def _phase(self, place: Place, name: str) -> AbstractContextManager[Phase]:
        return self._deployment.operations(
            self._session,
            place,
            name,
            Measure.MICROSECONDS_PER_OPERATION,
            count=self._operations,
            asked=self._deployment.description.n,
        )


def _pieces(description: ClusterDescription, item: bytes) -> dict[str, float | str]:
    """The cost of the parts of a client's work on one block, in µs, each repeated by itself.

    `decode_parity` is what a reader pays if as many stripes are missing as may be; with all stripes
    at hand, decoding is one concatenation.
    """
    sizes = description.read_write
    code = ErasureCode(sizes.m, sizes.N)
    fragments = code.encode(item)
    last = {number: fragments[number] for number in range(sizes.N - sizes.m, sizes.N)}
    cipher = BlockCipher(bytes(VOLUME_KEY_BYTES))
    block = numbered_block(0)
    nonce = bytes(NONCE_BYTES)
    sealed = cipher.seal(block, item, nonce=nonce)
    pieces: dict[str, Callable[[], object]] = {
        "seal_us": lambda: cipher.seal(block, item, nonce=nonce),
        "encode_us": lambda: code.encode(item),
        "hash_us": lambda: cross_checksum.make(fragments),
        "open_us": lambda: cipher.open(block, sealed),
        "decode_parity_us": lambda: code.decode(last),
    }
    return {name: round(_repeated_us(piece), 1) for name, piece in pieces.items()}


def _repeated_us(piece: Callable[[], object]) -> float:
    times = 0
    started = process_time()
    while (elapsed := process_time() - started) < _PIECE_S:
        piece()
        times += 1
    return elapsed / times * 1e6


def numbered_block(number: int) -> BlockId:
    """Each is the first block of a file of its own: neighbours lie on different nodes."""
    inode = object_id(ObjectKind.INODE, placement=number % 256, unique=number.to_bytes(14, "big"))
    return block_id(inode, incarnation=0, number=0)
