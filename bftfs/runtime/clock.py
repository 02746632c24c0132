"""The real clocks and the real source of randomness, in the form in which engines take them."""

from __future__ import annotations

import secrets
import time

draw = secrets.randbelow


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """Microseconds since some moment, never going back."""
    return time.monotonic_ns() // 1000
