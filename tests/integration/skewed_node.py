"""`python -m tests.integration.skewed_node FILE …`: a node whose clock is as wrong as FILE says.

FILE has a number of seconds, which may change while the node runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from nodes.__main__ import main

if __name__ == "__main__":
    skew, right_us = Path(sys.argv[1]), clock.now_us
    clock.now_us = lambda: right_us() + int(skew.read_text()) * SECOND_US
    raise SystemExit(main(sys.argv[2:]))
