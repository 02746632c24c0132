"""Who may see the pages: the browser that was given the token, by an address of this machine.

**Situation.** Other users of this machine can connect to the port. Web pages from elsewhere run in
the same browser, send requests to any address, and may let their own name stand for 127.0.0.1.

**Rules.** 1. A request names the host `127.0.0.1` or `localhost` with our port: other names are
those of somebody else's page (DNS rebinding). 2. All pages are below a random place. The cookie is
for that place only, since browsers give the cookies of a host to servers on all its ports. 3. The
token is in one address, which is printed to the user's terminal; a browser that shows it gets the
cookie. Every page needs the cookie. No page of others can cause a request that has it
(SameSite=Strict), no script can read it (HttpOnly). 4. Only GET and HEAD; nothing that is sent is
read.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

_SECRET_BYTES: Final = 24
COOKIE: Final = "bftfs"

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """The secrets of one run, and its port."""

    port: int
    place: str  # where all pages are: the first part of each address
    token: str
    cookie: str

    @classmethod
    def drawn(cls, port: int) -> Gate:
        """A gate with new secrets."""
        place, token, cookie = (secrets.token_urlsafe(_SECRET_BYTES) for _ in range(3))
        return cls(port, place, token, cookie)

    @property
    def address(self) -> str:
        """The address for the user, with the token."""
        return f"http://127.0.0.1:{self.port}/{self.place}/enter?token={self.token}"

    def is_ours(self, host: str) -> bool:
        """True if a request's Host names this machine and our port."""
        return host in (f"127.0.0.1:{self.port}", f"localhost:{self.port}")

    def has_token(self, token: str) -> bool:
        """True if somebody shows the token."""
        return compare_digest(token.encode(), self.token.encode())

    def admits(self, cookie: str) -> bool:
        """True if a request has the cookie."""
        return compare_digest(cookie.encode(), self.cookie.encode())
