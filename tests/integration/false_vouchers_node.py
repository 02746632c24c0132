"""`python -m tests.integration.false_vouchers_node {forging|withholding}`: a node that lies.

Its vouchers are invalid, or it gives none; it does all else as it should.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from nodes.__main__ import main
from nodes.node import Protocols, Services
from nodes.protocols import HONEST, honest_services
from tests.seams.false_vouchers import Forging, Withholding

LIARS: dict[str, type[Any]] = {"forging": Forging, "withholding": Withholding}


def lying(liar: type[Any]) -> Protocols:
    def services(*arguments: Any) -> Services:
        honest = honest_services(*arguments)
        servers = {kind: liar(server) for kind, server in honest.servers.items()}
        return replace(honest, servers=servers)

    return replace(HONEST, services=services)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[2:], protocols=lying(LIARS[sys.argv[1]])))
