"""`python -m benchmarks.profiled_node FILE --data DIR --cluster FILE`: a node under a profiler.

What it serves is profiled, its start is not; the profile is in FILE when the node has ended.
"""

import cProfile
import sys

from nodes.__main__ import main
from nodes.protocols import HONEST

if __name__ == "__main__":
    profile = cProfile.Profile()
    try:
        status = profile.runcall(main, sys.argv[2:], protocols=HONEST)
    finally:
        profile.dump_stats(sys.argv[1])
    sys.exit(status)
