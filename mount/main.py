"""The command lines of the mount process.

python -m mount --data DIR MOUNTPOINT [-o OPTIONS] [--foreground]
mount.bftfs DIR MOUNTPOINT [-sfnv] [-o OPTIONS]        as mount(8) runs it, for /etc/fstab
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.exit_code import exit_code_of
from bftfs.printable import as_word
from bftfs.runtime import supervisor
from mount.mountpoint import prepare, require_fuse, resolved
from mount.options import MountOptions, parse

_CONTEXT = {"help_option_names": ["-h", "--help"]}


_READY = b"\0"


def run_in_background(work: Callable[[Callable[[], None]], int], *, output: Path) -> int:
    """Run `work` in a process with a session of its own. Gives the exit code for this process.

    `work` is given a function to call when it is ready. Its output goes to our standard error until
    then, and to the file `output` afterwards.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _die_with(parent)
        _work_as_child(work, writing, output)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        ready = pipe.read(1) == _READY
    if ready:
        return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or 1


_PR_SET_PDEATHSIG = 1  # [prctl(2)]


def _die_with(parent: int | None) -> None:
    """End this process when its `parent` ends, as Ctrl-C at the terminal does; None: undo that.

    The terminal sends no signals to a child that has a session of its own.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(0 if parent is None else signal.SIGTERM))
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # the parent had ended already


def _work_as_child(work: Callable[[Callable[[], None]], int], pipe: int, output: Path) -> None:
    """What the child process does; never returns."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)

    def ready() -> None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        _die_with(None)
        os.write(pipe, _READY)
        os.close(pipe)

    code = 1
    try:
        code = work(ready)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@click.command(context_settings=_CONTEXT)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The cluster's files.")
@click.argument("mountpoint", type=Path)  # click.Path would stat it, which may wait for ever
@click.option("-o", "options", default="", help="Mount options, separated by commas.")
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground.")
@click.option("--sloppy", is_flag=True, help="Ignore unknown mount options.")
def mount_command(
    data: Path, mountpoint: Path, options: str, foreground: bool, sloppy: bool
) -> int:
    """Mount a cluster whose nodes are running; return once it is usable."""
    return _mount(data, mountpoint, parse(options, sloppy=sloppy), foreground=foreground)


def _mount(data: Path, mountpoint: Path, options: MountOptions, *, foreground: bool) -> int:
    directory = DataDirectory.existing(data.absolute())
    require_fuse(allow_other=options.allow_other)
    mountpoint = resolved(mountpoint)
    if prepare(mountpoint):
        print(f"{as_word(mountpoint)}: removed a mount whose process had died", file=sys.stderr)

    def work(ready: Callable[[], None]) -> int:
        # Imported here: without libfuse, pyfuse3 cannot be imported, and the user is told why.
        try:
            from mount.serve import serve
        except ImportError as error:
            raise UsageError(
                f"pyfuse3 cannot be used ({error}); install libfuse with "
                "`apt-get install fuse3 libfuse3-3`",
                exit_code=1,
            ) from None
        serve(directory, mountpoint, options, ready=ready)
        return 0

    if foreground:

        def ready() -> None:
            print(f"{as_word(mountpoint)}: mounted; Ctrl-C unmounts it", flush=True)
            supervisor.tell(supervisor.READY)

        return work(ready)
    return run_in_background(
        lambda ready: exit_code_of(lambda: work(ready)), output=directory.mount_log
    )


@click.command(context_settings=_CONTEXT)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("mountpoint", type=Path)  # click.Path would stat it, which may wait for ever
@click.option("-o", "options", default="", help="Mount options, separated by commas.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-f", "fake", is_flag=True, help="Check everything, but do not mount.")
@click.option("-v", "verbose", is_flag=True, help="Print the command that is run.")
@click.option("-n", "no_table", is_flag=True, help="Ignored: there is no /etc/mtab to write.")
@click.option("-t", "kind", default="bftfs", help="Ignored: the type of file system.")
def helper_command(
    source: Path,
    mountpoint: Path,
    options: str,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    no_table: bool,
    kind: str,
) -> int:
    """Mount the cluster whose files are in the directory SOURCE."""
    del no_table, kind
    directory = DataDirectory.existing(source.absolute())
    parse(options, sloppy=sloppy)
    # `bftfs status` and `bftfs down` know a mount process by this command line.
    words = ["-P", "-m", "mount", "--data", str(directory.path), str(mountpoint.absolute())]
    if options:
        words += ["-o", options]
    if sloppy:
        words.append("--sloppy")
    if verbose:
        print(f"mount.bftfs: {sys.executable} {' '.join(words)}")
    if not fake:
        os.execv(sys.executable, [sys.executable, *words])
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m mount`; does not return."""
    _run(mount_command, "python -m mount", arguments)


def mount_helper(arguments: Sequence[str] | None = None) -> None:
    """`mount.bftfs`; does not return."""
    _run(helper_command, "mount.bftfs", arguments)


def _run(command: click.Command, name: str, arguments: Sequence[str] | None) -> None:
    sys.exit(exit_code_of(lambda: command.main(arguments, prog_name=name, standalone_mode=False)))
