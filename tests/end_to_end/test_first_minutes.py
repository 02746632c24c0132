"""The first minutes of an ordinary user: up, a file, status, a node that is damaged, down.

Everything happens in namespaces of its own, with a /dev/fuse that everybody may use; with the first
process of the namespace all others end, and their mounts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.expectations import unavailable
from tests.end_to_end.watchdog import PROJECT

UID = 65534  # nobody: fusermount3 demands a user that has a name

# What root does: a device for everybody, and ways to Python and to the project, if they lie where
# only root may go.
_PREPARE = """
set -eu
places=$1; shift
mount -t tmpfs -o mode=755 none "$places"
mknod "$places/fuse" c 10 229; chmod 666 "$places/fuse"
mount --bind "$places/fuse" /dev/fuse
number=0
for kept in "$@"; do
    mkdir "$places/$number"; mount --bind "$kept" "$places/$number"; number=$((number + 1))
done
number=0
for kept in "$@"; do
    closed=""; path=""
    IFS=/; for step in ${kept#/}; do
        path="$path/$step"
        if [ -z "$closed" ] && [ -d "$path" ] && [ $(($(stat -c %a "$path") % 2)) = 0 ]; then
            closed=$path
        fi
    done; unset IFS
    [ -z "$closed" ] || mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$kept"; mount --bind "$places/$number" "$kept"; number=$((number + 1))
done
chown "$USER_ID" "$HOME"
exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups bash -euc "$FIRST_MINUTES"
"""


@pytest.fixture
def home(mounting: None, outside: Path) -> Path:
    """The home of the user."""
    if shutil.which("setpriv") is None:
        unavailable("needs `setpriv` (util-linux), to act as an ordinary user")
    trial = ["unshare", "--mount", "--pid", "--fork", "true"]
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        unavailable("needs mount namespaces")
    return outside


def said(home: Path, script: str) -> str:
    """What the commands of an ordinary user print, all of which must succeed."""
    places = home.with_name(f"{home.name}-places")
    places.mkdir()
    kept = dict.fromkeys((sys.base_prefix, sys.prefix, str(PROJECT)))
    finished = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("bash", "-c", _PREPARE, "prepare", str(places), *kept),
        ],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=220,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "USER_ID": str(UID),
            "FIRST_MINUTES": f'bftfs() {{ "{sys.executable}" -m bftfs "$@"; }}\ncd\n{script}',
        },
    )
    assert finished.returncode == 0, finished.stdout
    assert "Traceback" not in finished.stdout
    return finished.stdout


@pytest.mark.timeout(240, func_only=True)
def test_an_ordinary_user_makes_a_volume_and_uses_it(home: Path) -> None:
    output = said(
        home,
        """
        echo taken > file
        bftfs up --mount file && exit 1
        ls -A; test ! -e .local
        bftfs up --mount files
        stat -c 'the root is %u:%g' files
        echo hello > files/hello; cat files/hello
        cd files; bftfs status | grep 'all nodes answer'
        cd ..; bftfs down
        echo nonsense > .local/share/bftfs/nodes/4/node.key
        bftfs up --mount files
        cat files/hello; cp files/hello files/again
        bftfs status | grep down,
        bftfs down
        mkdir --mode 0 closed; bftfs status --data closed || echo "exit code $?"
        """,
    )
    lines = output.splitlines()
    assert f"bftfs: {home}/file: is not a directory; choose an empty directory to mount on" in lines
    assert f"the root is {UID}:{UID}" in lines
    assert lines.count("hello") == 2
    assert "bftfs: node 4 stopped at once" in output
    assert "5 of 6 nodes are running (5 started)" in output
    assert "1 down, 0 more may fail: files can be used" in lines
    assert f"bftfs: {home}/closed: cannot be looked into (Permission denied)" in output
    assert lines[-1] == "exit code 2"


@pytest.mark.timeout(240, func_only=True)
def test_an_ordinary_user_follows_readme_and_operations(home: Path) -> None:
    output = said(home, f'"{sys.executable}" -m tests.end_to_end.tour')
    assert output.startswith("12 commands of README, 15 of backup, 28 of operations")
