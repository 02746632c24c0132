"""`python -m tests.integration.skewed_node FOLDER …`: a node whose clock is wrong as a file says.

FOLDER/NUMBER has two numbers of seconds, which may change while the node runs: how wrong its clock
is, and, if it is to lie, by how much more what it tells others of its clock is. Whom it has told
something false is in FOLDER/NUMBER.told, a node's number in each line.

It compares its clock with others' each second, so that a test need not wait for a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bftfs import limits
from bftfs.envelope import ClockReply
from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.server.clock_comparison import ClockServer
from bftfs.server.step import Ready, Sender
from nodes.__main__ import main

if __name__ == "__main__":
    number = Path(sys.argv[sys.argv.index("--data") + 1]).name
    told = Path(sys.argv[1]) / number
    heard = told.with_suffix(".told")
    right_us, tell = clock.now_us, ClockServer.step

    def wrong_us(which: int) -> int:
        return int(told.read_text().split()[which]) * SECOND_US

    def lie(server: Any, view: Any, sender: Sender, *given: Any) -> Ready:
        ready = tell(server, view, sender, *given)
        beyond_us = wrong_us(1)
        if beyond_us and isinstance(ready.reply, ClockReply):
            time_us = ready.reply.now_us + beyond_us
            ready.reply = ClockReply(time_us, time_us)
            with heard.open("a") as file:
                file.write(f"{sender.node}\n")
        return ready

    limits.CLOCKS_COMPARED_EVERY_US = SECOND_US
    clock.now_us = lambda: right_us() + wrong_us(0)
    ClockServer.step = lie  # type: ignore[method-assign]
    raise SystemExit(main(sys.argv[2:]))
