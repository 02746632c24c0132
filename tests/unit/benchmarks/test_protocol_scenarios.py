"""Every scenario that starts nodes of its own runs, at size one."""

import pstats
from collections.abc import Callable
from itertools import count
from pathlib import Path

import click.testing
import pytest

from benchmarks import result
from benchmarks.deployment import Deployment, System
from benchmarks.errors import BenchmarkError
from benchmarks.measurement import Sample
from benchmarks.scenarios import channel, contention, metadata, postmark, profile

Benchmark = Callable[..., click.testing.Result]


@pytest.fixture
def samples(benchmark: Benchmark, tmp_path: Path) -> Callable[..., tuple[Sample, ...]]:
    """Runs a scenario once, with its nodes' data in a short path; its samples."""

    def run(*arguments: str) -> tuple[Sample, ...]:
        written = tmp_path / "result.json"
        done = benchmark(*arguments, "--repeat", "1", "--json", written)
        assert done.exit_code == 0, done.output
        found = result.read(written)
        assert found.failures == ()
        return found.samples

    return run


def test_counter(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("counter", "--faults", "0", "--faults", "1,0", "--in-flight", "2",
                    "--operations", "3")  # fmt: skip
    assert [(sample.phase, sample.variant) for sample in found] == [
        (phase, variant)
        for variant in ("t=0 b=0 n=1, 2 in flight", "t=1 b=0 n=4, 2 in flight")
        for phase in ("update", "query")
    ]
    for sample in found:
        assert sample.latencies is not None
        assert sample.details["largest_node_mib"] > 1


def test_channel(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("channel", "--messages", "16")
    assert {sample.target for sample in found} == set(channel.CONSTRUCTIONS)
    sizes = [sample.variant for sample in found if sample.target == channel.PRODUCT]
    assert sizes == ["", *(size for size in ("200 B", "4 KiB", "128 KiB") for _ in range(2))]
    assert all(sample.value > 0 for sample in found)


def test_metadata(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("metadata", "--operations", "1")
    measured = [sample.phase for sample in found if sample.target != metadata.SOURCE]
    cited = {sample.phase: sample.value for sample in found if sample.target == metadata.SOURCE}
    assert measured == list(cited)
    assert len(measured) == 9
    assert cited["rename"] == pytest.approx(780)


def test_postmark(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("postmark", "--faults", "1", "--through", "namespace",
                    "--files", "3", "--transactions", "8")  # fmt: skip
    own = [sample for sample in found if sample.target != postmark.SOURCE]
    assert [sample.phase for sample in own] == ["create, namespace", "transactions, namespace"]
    [cited] = [sample for sample in found if sample.target == postmark.SOURCE]
    assert (cited.phase, cited.variant) == ("transactions, namespace", "t=1 b=1 n=6")
    assert cited.value == 114


def test_contention(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("contention", "--seconds", "0.01")
    cited = {
        (sample.phase, sample.variant): sample.value
        for sample in found
        if sample.target == contention.SOURCE
    }
    assert len(cited) == 16
    assert cited["increment, shared", "4 contending"] == pytest.approx(11400)
    own = [sample for sample in found if sample.target != contention.SOURCE]
    assert {(sample.phase, sample.variant) for sample in own} == set(cited)
    assert all({"standard_deviation_us", "client_cpu_us"} == set(each.details) for each in own)


def test_blocks(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("blocks", "--faults", "1", "--size", "4096", "--operations", "1")
    assert [sample.phase for sample in found] == ["write", "read"]
    assert found[0].variant == "t=1 b=1 N=6 QC=4 m=3, 4 KiB, 1 in flight"
    assert found[0].details["encode_us"] > 0


def test_directory(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("directory", "--entries", "0", "--entries", "2", "--creates", "8")
    assert [(sample.phase, sample.variant) for sample in found] == [
        ("fill", "2 entries"),
        ("create", "0 entries"),
        ("create", "2 entries"),
        ("create and count bytes", "0 entries"),
        ("create and count bytes", "2 entries"),
    ]
    assert all(1_000 < float(each.details["stored_bytes"]) < 100_000 for each in found[-2:])


def test_history(
    samples: Callable[..., tuple[Sample, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = count(0, 1_000_000)
    monkeypatch.setattr(Deployment, "stored_bytes", lambda _: next(stored))
    found = samples("history", "--versions", "4", "--blocks", "16", "--operations", "4")
    assert [sample.phase for sample in found] == [
        *("fill", "list now", "list at the last version", "list in the middle") * 2,
        *("write", "create", "create beside a listing of now"),
        *("create beside a listing of the past", "overwrite a block", "change the mode"),
    ]
    assert [sample.details.get("entries") for sample in found[1:4]] == [4, 4, 2]
    assert [sample.details.get("entries") for sample in found[5:8]] == [2, 2, 1]
    assert all("times_now" in sample.details for sample in (*found[2:4], *found[6:8]))
    assert [sample.amount for sample in found[9:12]] == [4, 4, 4]
    assert [each.details.get("stored_bytes") for each in (found[0], *found[-2:])] == [250_000] * 3
    assert found[-2].details["copy_bytes"] == 16 * float(found[-2].details["fragments_bytes"])


def test_profile(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples("profile", "--workload", "create", "--operations", "2", "--in-flight", "2")
    processes = {sample.variant.rpartition(": ")[2] for sample in found[1:]}
    assert processes == {"client", "node"}
    assert {"Query/Update", "LMDB", "file system methods"} <= {sample.phase for sample in found}


def test_a_builtin_function_is_counted_with_its_caller() -> None:
    inside = ("/x/bftfs/query_update/client.py", 1, "update")
    profiled = pstats.Stats()
    profiled.stats = {  # type: ignore[attr-defined]
        inside: (1, 1, 2.0, 3.0, {}),
        ("~", 0, "<built-in method builtins.len>"): (1, 1, 1.0, 1.0, {inside: (1, 1, 1.0, 1.0)}),
        ("~", 0, "<method 'poll' of 'select.epoll' objects>"): (1, 1, 9.0, 9.0, {}),
    }
    assert profile.kinds_of(profiled) == {"Query/Update": 3.0}


@pytest.mark.parametrize(
    ("text", "system"), [("0", System(0, 0)), ("2", System(2, 2)), ("2,1", System(2, 1))]
)
def test_faults(text: str, system: System) -> None:
    assert System.parse(text) == system


@pytest.mark.parametrize("text", ["", "b", "1,2", "1,", "-1"])
def test_faults_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="--faults"):
        System.parse(text)


def test_verification(samples: Callable[..., tuple[Sample, ...]]) -> None:
    found = samples(
        *("verification", "--faults", "1", "--policy", "lazy+cooperative", "--operations", "2"),
        *("--think-ms", "0", "--pool", "4", "--seconds", "0.2"),
    )
    assert [(sample.phase, sample.variant) for sample in found] == [
        ("write", "t=1 b=1 n=6, lazy+cooperative"),
        ("read", "t=1 b=1 n=6, lazy+cooperative"),
        ("overwrite", "lazy+cooperative, pool 4"),
    ]
    # Two nodes ask four others each, and notify five; the second owes the first no notice, unless
    # both verify at once. A third verifies as well if the machine is so slow that they seem silent.
    exactly = 2 * 2 * 4 + 2 * 5 - 1
    assert exactly <= found[0].details["messages_per_version"] <= 2 * exactly
    assert found[2].details["writes_that_waited"] > 0
