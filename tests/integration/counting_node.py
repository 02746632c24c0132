"""`python -m tests.integration.counting_node`: a node that only counts."""

from nodes.__main__ import main
from tests.integration.counting import PROTOCOLS

if __name__ == "__main__":
    raise SystemExit(main(protocols=PROTOCOLS))
