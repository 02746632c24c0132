"""bftfs.runtime.interrupts: Ctrl-C ends conversations between their steps."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from bftfs.runtime.interrupts import Interrupts

QUIET = signal.default_int_handler


@pytest.fixture
def interrupts() -> Interrupts:
    return Interrupts(lambda: None)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_waits_for_the_end_of_a_step(interrupts: Interrupts) -> None:
    done = []

    def steps() -> None:
        with interrupts.noted():
            interrupts.check()
            press()
            done.append("the rest of the step")
            interrupts.check()
            done.append("the next step")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done == ["the rest of the step"]
    assert signal.getsignal(signal.SIGINT) is QUIET


def test_the_second_one_does_not_wait(interrupts: Interrupts) -> None:
    done = []

    def step() -> None:
        with interrupts.noted():
            press()
            press()
            done.append("the rest of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert not done


def test_one_in_the_last_step_is_not_lost(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.noted():
        press()
    with interrupts.noted():  # and not heard again
        interrupts.check()


def test_who_waits_is_woken() -> None:
    bell = os.eventfd(0)
    interrupts = Interrupts(lambda: os.eventfd_write(bell, 1))
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.noted():
            press()
        assert select.select([bell], [], [], 0)[0]
    finally:
        os.close(bell)


def test_a_program_that_has_decided_itself_is_left_alone(interrupts: Interrupts) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.noted():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            press()
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_while_the_command_line_is_loaded_gives_one_sentence() -> None:
    """Loading takes longer than some commands."""
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from bftfs.__main__ import main\n"
        "main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (finished.returncode, finished.stderr) == (130, "bftfs: interrupted\n")
