"""The image has what bftfs needs, and the compose file runs commands that there are."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import pytest

from bftfs.cli.main import program
from nodes.__main__ import node_command

yaml: Any = pytest.importorskip("yaml", reason="needs pyyaml")

PROJECT = Path(__file__).parents[3]
CONTAINER = PROJECT / "docs" / "packaging" / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = [name for name in SERVICES if name.startswith("node-")]


def test_the_image_is_made_of_what_there_is() -> None:
    text = (CONTAINER / "Containerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    sources = [source for line in copied for source in line.split()]
    assert {"bftfs", "nodes", "mount", "pyproject.toml"} <= set(sources)
    assert all((PROJECT / source).exists() for source in sources)
    kept = (CONTAINER / "Containerfile.dockerignore").read_text().split()
    assert {f"!{source}" for source in sources} <= set(kept)


def test_the_image_has_the_packages_that_make_installs() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    needed = re.search(r"^PACKAGES := (.*)$", makefile, re.M)
    assert needed is not None
    words = set((CONTAINER / "Containerfile").read_text().split())
    assert set(needed[1].split()) <= words


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_compose_accepts_it() -> None:
    command = ["docker-compose", "--file", str(CONTAINER / "compose.yaml"), "config", "--quiet"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_started_as_its_command_line_wants_it(name: str) -> None:
    service, number = SERVICES[name], name.removeprefix("node-")
    assert service["hostname"] == name
    assert service["command"][:2] == ["node", "run"]
    context = node_command.make_context("node", service["command"][2:])
    assert context.params["data"] == Path(f"/var/lib/bftfs/nodes/{number}")
    volumes = [volume.split(":")[:2] for volume in service["volumes"]]
    assert volumes == [
        [f"./cluster/nodes/{number}", f"/var/lib/bftfs/nodes/{number}"],
        ["./description", "/etc/bftfs"],  # no other node's key, and no client's
    ]


def test_there_are_as_many_nodes_as_the_cluster_is_made_of() -> None:
    made = re.findall(r"tcp:(node-\d+):7000", (CONTAINER / "compose.yaml").read_text())
    assert made == NODES
    assert len(NODES) == 6


def test_the_mount_is_started_as_its_command_line_wants_it() -> None:
    words = SERVICES["mount"]["command"]
    assert words[0] == "mount"
    command = program.get_command(click.Context(program), "mount")
    assert command is not None
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words[1:])
    assert values["foreground"]
    assert not rest


@pytest.mark.parametrize(("answer", "code"), [("200 OK", 0), ("503 Unavailable", 1)])
def test_a_container_is_healthy_if_its_node_is_ready(
    tmp_path: Path, answer: str, code: int
) -> None:
    kind, _, *words, path = SERVICES["node-0"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert path == "/var/lib/bftfs/nodes/0/metrics.socket"
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(1024))
                connection.sendall(f"HTTP/1.0 {answer}\r\n\r\n".encode())

        serving = threading.Thread(target=serve)
        serving.start()
        outcome = subprocess.run(
            [sys.executable, *words, str(tmp_path / "socket")], check=False, timeout=20
        )
        serving.join()
    assert outcome.returncode == code
    assert asked[0].startswith(b"GET /ready ")
