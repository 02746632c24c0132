"""The units run what there is, and may do what that needs; systemd finds no fault with them."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from bftfs.cli.main import program
from bftfs.errors import UsageError
from nodes.__main__ import node_command

UNITS = Path(__file__).parents[3] / "docs" / "packaging" / "systemd"
NODE, MOUNT = UNITS / "bftfs-node@.service", UNITS / "bftfs-mount@.service"
SNAPSHOTS, TIMER = UNITS / "bftfs-snapshots@.service", UNITS / "bftfs-snapshots@.timer"

# What gives a service a mount namespace of its own. [systemd.exec(5)]
_MOUNT_NAMESPACES = {
    "bindpaths", "bindreadonlypaths", "execpaths", "inaccessiblepaths", "mountapivfs",
    "noexecpaths", "privatedevices", "privatemounts", "privatetmp", "procsubset",
    "protectcontrolgroups", "protecthome", "protectkernellogs", "protectkernelmodules",
    "protectkerneltunables", "protectproc", "protectsystem", "readonlypaths", "readwritepaths",
    "rootdirectory", "rootimage", "temporaryfilesystem",
}  # fmt: skip

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
    parser.read(unit)
    return parser["Service"]


def runnable(unit: Path, directory: Path) -> Path:
    """The unit with a program that is there on any machine, in place of an installed bftfs."""
    copy = directory / unit.name.replace("@", "@0")
    copy.write_text(unit.read_text().replace("/usr/bin/bftfs", "/bin/true"))
    return copy


@needs_systemd
@pytest.mark.parametrize("unit", [NODE, MOUNT, SNAPSHOTS], ids=lambda unit: unit.name)
def test_systemd_accepts_it(unit: Path, tmp_path: Path) -> None:
    outcome = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(runnable(unit, tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@needs_systemd
def test_systemd_accepts_the_timer(tmp_path: Path) -> None:
    runnable(SNAPSHOTS, tmp_path)  # what it starts
    outcome = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(runnable(TIMER, tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    times = next(line for line in TIMER.read_text().splitlines() if line.startswith("OnCalendar="))
    outcome = subprocess.run(
        ["systemd-analyze", "calendar", times.partition("=")[2]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


@needs_systemd
def test_what_systemd_does_not_accept_is_found(tmp_path: Path) -> None:
    broken = runnable(NODE, tmp_path)
    broken.write_text(broken.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    outcome = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(broken)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "WatchdogSeconds" in outcome.stderr


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "exposure"),
    [(NODE, 15), (MOUNT, 50), (SNAPSHOTS, 40)],
    ids=["node", "mount", "snapshots"],
)
def test_it_is_exposed_to_little(unit: Path, exposure: int, tmp_path: Path) -> None:
    """By systemd's own measure, in tenths: 100 is a service without any restriction."""
    outcome = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={exposure}",
            str(runnable(unit, tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-400:]


def test_the_node_is_started_as_its_command_line_wants_it() -> None:
    words = shlex.split(service(NODE)["ExecStart"])
    assert words[:3] == ["/usr/bin/bftfs", "node", "run"]
    context = node_command.make_context("node", words[3:])
    assert context.params["data"] == Path("/var/lib/bftfs/nodes/%i")
    assert str(context.params["data"]) in service(NODE)["ReadWritePaths"]


def test_the_mount_is_started_as_its_command_line_wants_it() -> None:
    words = shlex.split(service(MOUNT)["ExecStart"])
    assert words[:2] == ["/usr/bin/bftfs", "mount"]
    command = program.get_command(click.Context(program), "mount")
    assert command is not None
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words[2:])
    assert values["foreground"]
    assert values["options"] == "${BFTFS_OPTIONS}"
    assert not rest
    assert values["mountpoint"] == "/mnt/%i"


def test_snapshots_are_made_as_the_command_line_wants_it() -> None:
    words = shlex.split(service(SNAPSHOTS)["ExecStart"])
    assert words[:3] == ["/usr/bin/bftfs", "snapshot", "run"]
    snapshot = program.get_command(click.Context(program), "snapshot")
    assert isinstance(snapshot, click.Group)
    command = snapshot.get_command(click.Context(snapshot), "run")
    assert command is not None
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words[3:])
    assert values["path"] == service(MOUNT)["ExecStart"].split()[-1]
    assert not rest


@pytest.mark.parametrize("unit", [NODE, MOUNT], ids=lambda unit: unit.name)
def test_it_is_supervised(unit: Path) -> None:
    settings = service(unit)
    assert settings["Type"] == "notify"
    assert settings["WatchdogSec"]
    assert settings["RestartPreventExitStatus"] == str(UsageError("").exit_code)


def test_the_mount_is_seen_by_everybody() -> None:
    assert not _MOUNT_NAMESPACES & set(service(MOUNT))
    assert _MOUNT_NAMESPACES & set(service(NODE))
