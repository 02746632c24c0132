"""`python -m tests.fuzz`: fuzz a target with atheris, guided by the product's coverage.

    python -m tests.fuzz --list
    python -m tests.fuzz TARGET|all [--seconds N]      find inputs; failing ones go to found/
    python -m tests.fuzz TARGET|all --plain [--seed N]  the same with the engine of the tests
    python -m tests.fuzz TARGET|all --judge            judge the corpus, with work and memory
    python -m tests.fuzz TARGET FILE…                  judge these inputs

What the engine finds is judged again in this process's own measures of work and memory, and the
fewest and shortest inputs that take all edges become the corpus in tests/fuzz/corpus/.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.fuzz.corpus import directory_of, inputs_of, keep, minimal
from tests.fuzz.mutation import Campaign
from tests.fuzz.target import Finding, Target, judge
from tests.fuzz.tracing import NOT_TRACED, PACKAGES, PROJECT

_FOUND = PROJECT / "tests" / "fuzz" / "found"
_INPUT_SECONDS = 20  # for one input, with a tracer or an engine in its way
_MEMORY_MIB = 1024
_FINDINGS_MOST = 8


def main() -> int:
    """Run what the command line asks for."""
    arguments = _arguments()
    if arguments.engine:
        return _engine(arguments)
    from tests.fuzz.targets import all_targets

    targets = all_targets()
    if arguments.list:
        for target in targets.values():
            print(f"{target.name:20} {(target.run.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if arguments.target != "all" and arguments.target not in targets:
        print(f"there is no target {arguments.target!r}; see --list", file=sys.stderr)
        return 2
    chosen = list(targets.values()) if arguments.target == "all" else [targets[arguments.target]]
    findings = 0
    for target in chosen:
        if arguments.inputs:
            findings += _judge(target, [path.read_bytes() for path in arguments.inputs])
        elif arguments.judge:
            findings += _judge(target, [*target.seeds(), *inputs_of(target)])
        elif arguments.plain:
            findings += _fuzz_plainly(target, arguments.seconds, arguments.seed)
        else:
            findings += _fuzz(target, arguments.seconds)
    return 1 if findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", default="all")
    parser.add_argument("inputs", nargs="*", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _judge(target: Target, inputs: list[bytes]) -> int:
    """Judge inputs one by one; how many are findings."""
    edges: set[int] = set()
    work = memory = findings = 0
    for data in inputs:
        try:
            outcome = judge(target, data)
        except Finding as finding:
            findings += 1
            print(finding)
            continue
        edges |= outcome.edges
        work, memory = max(work, outcome.work), max(memory, outcome.memory_bytes)
    print(
        f"{target.name:20} {len(inputs):5} inputs {len(edges):6} edges "
        f"{work:7} lines at most {memory // 1024:6} KiB at most {findings} findings"
    )
    return findings


# --- with atheris ---------------------------------------------------------------------------


def _fuzz(target: Target, seconds: int) -> int:
    """Let the engine look for inputs, in a process of its own; keep what is new."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for data in (*target.seeds(), *inputs_of(target)):
            keep(work / "inputs", data)
        (work / "inputs").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", target.name, f"--seconds={seconds}"]
        engine = subprocess.run(
            [*command, f"--engine={work}"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        output = engine.stdout + engine.stderr
        findings = 0
        for crash in sorted((work / "found").glob("*")):
            findings += 1
            path = keep(_FOUND / target.name, crash.read_bytes())
            print(f"{target.name}: a finding, {path}")
            print("\n".join(output.splitlines()[-40:]))
        inputs = [path.read_bytes() for path in (work / "inputs").iterdir()]
        kept, found = minimal(target, [*target.seeds(), *inputs])
        for finding in found:
            findings += 1
            print(finding, keep(_FOUND / target.name, finding.data))
        if not findings or kept:
            _replace(target, kept)
        executions = re.findall(r"stat::number_of_executed_units: *([0-9]+)", output)
        if not executions and not findings:
            print(output[-4000:], file=sys.stderr)
            return 1
        print(json.dumps(_figures(target, sum(map(int, executions)), kept, findings)), flush=True)
    return findings


def _fuzz_plainly(target: Target, seconds: int, seed: int) -> int:
    """The same with the engine of the tests, which knows what refusals say."""
    campaign = Campaign(target, Random(seed))
    end = time.monotonic() + seconds
    findings = 0
    campaign.start([*target.seeds(), *inputs_of(target)])
    while time.monotonic() < end:
        try:
            campaign.step()
        except Finding as finding:
            findings += 1
            print(finding, keep(_FOUND / target.name, finding.data))
            if findings == _FINDINGS_MOST:
                break
    kept, _ = minimal(target, campaign.inputs)
    _replace(target, kept)
    print(json.dumps(_figures(target, campaign.executions, kept, findings)), flush=True)
    return findings


def _replace(target: Target, kept: list[bytes]) -> None:
    """Make `kept` the corpus, without what the seeds are anyway."""
    seeds = set(target.seeds())
    directory = directory_of(target)
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()
    for data in kept:
        if data not in seeds:
            keep(directory, data)


def _figures(
    target: Target, executions: int, kept: list[bytes], findings: int
) -> dict[str, object]:
    edges: set[int] = set()
    for data in kept:
        edges |= judge(target, data, measure_memory=False).edges
    return {
        "target": target.name,
        "executions": executions,
        "inputs": len(kept),
        "bytes": sum(map(len, kept)),
        "edges": len(edges),
        "findings": findings,
    }


def _engine(arguments: argparse.Namespace) -> int:
    """The engine's process: instrument the product, then never return."""
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES), exclude=list(NOT_TRACED)):
        from tests.fuzz.targets import all_targets

        target = all_targets()[arguments.target]
    from tests.fuzz.target import run

    work: Path = arguments.engine
    (work / "found").mkdir(exist_ok=True)

    def one(data: bytes) -> None:
        run(target, data)

    options = [
        sys.argv[0],
        str(work / "inputs"),
        f"-max_total_time={arguments.seconds}",
        f"-max_len={target.most_bytes}",
        f"-timeout={_INPUT_SECONDS}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={work / 'found'}/",
        "-print_final_stats=1",
    ]
    atheris.Setup(options, one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
