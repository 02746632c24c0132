"""How many nodes there are, how many may fail and how, and the quorum sizes that follow.

One validated value per protocol; all quorum arithmetic of the system is in this file.
[Q/U §4.3.3] constraints (4.2)–(4.4); [PASIS §3.4.4] constraints (3.1)–(3.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from bftfs.errors import ImpossibleThresholds


def _require(condition: bool, inequality: str, **values: int) -> None:
    if not condition:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ImpossibleThresholds(inequality, given)


@dataclass(frozen=True, slots=True)
class QueryUpdateThresholds:
    """Threshold quorums of Q/U: n servers, quorums of q, repairable sets of r. [Q/U §4.3.3]"""

    n: int
    t: int
    b: int
    q: int
    r: int

    def __post_init__(self) -> None:
        n, t, b, q, r = self.n, self.t, self.b, self.q, self.r
        _require(0 <= b <= t, "0 <= b <= t", b=b, t=t)
        _require(n >= 1, "n >= 1", n=n)
        _require(q + t <= n, "q + t <= n (4.2)", q=q, t=t, n=n)
        _require(2 * q - b - n >= r, "2q - b - n >= r (4.3)", q=q, b=b, n=n, r=r)
        _require(q + r - n > b, "q + r - n > b (4.4)", q=q, r=r, n=n, b=b)

    @classmethod
    def smallest(cls, *, t: int, b: int) -> QueryUpdateThresholds:
        """The smallest system for t faults, b of them Byzantine: n=3t+2b+1, q=2t+2b+1, r=t+b+1."""
        return cls(n=3 * t + 2 * b + 1, t=t, b=b, q=2 * t + 2 * b + 1, r=t + b + 1)

    @classmethod
    def for_nodes(cls, n: int, *, t: int, b: int) -> QueryUpdateThresholds:
        """Quorums of n - t servers among n, n at least the smallest system's.

        With q = n - t the largest r that (4.3) allows is taken: it keeps the most candidates
        incomplete, hence discardable, and (4.4) then holds whenever n >= 3t+2b+1.
        """
        _require(n >= 3 * t + 2 * b + 1, "n >= 3t + 2b + 1", n=n, t=t, b=b)
        q = n - t
        return cls(n=n, t=t, b=b, q=q, r=2 * q - b - n)


@dataclass(frozen=True, slots=True)
class ReadWriteThresholds:
    """Sizes of PASIS read/write: N nodes, a write complete at QC benign ones, m decode. [§3.4.4]"""

    N: int
    t: int
    b: int
    QC: int
    m: int

    def __post_init__(self) -> None:
        N, t, b, QC, m = self.N, self.t, self.b, self.QC, self.m
        _require(0 <= b <= t, "0 <= b <= t", b=b, t=t)
        _require(N - t - b >= QC, "QC <= N - t - b (3.1)", QC=QC, N=N, t=t, b=b)
        _require(b + t < QC, "b + t < QC (3.4)", b=b, t=t, QC=QC)
        _require(1 <= m <= QC - t, "1 <= m <= QC - t (3.5)", m=m, QC=QC, t=t)
        _require(N <= 256, "N <= 256 (erasure code over GF(2^8))", N=N)

    @property
    def complete(self) -> int:
        """A candidate seen at this many nodes is complete: QC + b. (3.2)"""
        return self.QC + self.b

    @property
    def repairable(self) -> int:
        """A candidate seen at fewer nodes than this is incomplete: QC - t. (3.3)

        Also how many nodes vouch for what a repair writes.
        """
        return self.QC - self.t

    def require_knowing_vouchers(self) -> None:
        """Of those that vouch for a repair, one neither lies nor lacks the last update."""
        t, b, QC = self.t, self.b, self.QC
        _require(QC - t > t + b, "QC - t > t + b", QC=QC, t=t, b=b)

    @property
    def first_asked(self) -> int:
        """How many nodes a reader asks first, and must have heard before it takes a candidate.

        QC + b [PASIS §3.5.1.2], and at least N - QC + 1: that many meet every set of QC nodes, so
        that no newer complete version can be overlooked. Unlike [PASIS §3.5.1.2]: the source has
        QC = N - t - b throughout, where the former is N - t and implies the latter; with a smaller
        QC it does not, and two readers could see a write and its predecessor in the wrong order.
        """
        return max(self.complete, self.N - self.QC + 1)

    @property
    def responses(self) -> int:
        """A client can wait for no more than N - t responses. [PASIS §3.4.3.2]"""
        return self.N - self.t

    @property
    def times(self) -> int:
        """The number of times that a writer asks for.

        The (b + 1)-th largest of these is not below the latest complete write's: QC benign nodes
        have that, and N - QC may not, so b + 1 of them are not below it. The number is at most
        `responses`, by (3.4).
        """
        return self.N - self.QC + self.b + 1

    @classmethod
    def smallest(cls, *, t: int, b: int) -> ReadWriteThresholds:
        """N = 2t+2b+1, QC = t+b+1, m = b+1: the minimal system."""
        return cls(N=2 * t + 2 * b + 1, t=t, b=b, QC=t + b + 1, m=b + 1)

    @classmethod
    def for_nodes(cls, N: int, *, t: int, b: int) -> ReadWriteThresholds:
        """The most space-efficient system on N nodes: QC = N - t - b, m = QC - t."""
        _require(2 * t + 2 * b + 1 <= N, "N >= 2t + 2b + 1", N=N, t=t, b=b)
        QC = N - t - b
        return cls(N=N, t=t, b=b, QC=QC, m=QC - t)
