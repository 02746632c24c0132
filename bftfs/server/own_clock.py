"""A node's trust in its own clock: whether it agrees with its peers' clocks.

**Situation.** A time server is wrong, or a machine was restored or suspended: a node's clock is
minutes or years from all others. By such a clock it would take versions that no correct node takes,
and let go of history that is to be kept.

**Rules.**

1. A node that sees more than t others further from its clock than clocks may differ
   (`limits.CLOCKS_AGREE_US`) distrusts its clock.
2. A node also distrusts its clock if this has moved, since the last comparison, further ahead than
   the time between two comparisons and that difference together, or back by more than that
   difference.
3. It trusts its clock again when 2 t + b others agree with it, and not more than t differ. A node
   that starts distrusts its clock until then, if it has peers: it may have started in a jump.
4. For as long as the detection window after a jump ahead by more than `limits.CLOCK_JUMP_US`,
   history is kept as if the clock had not jumped: if all clocks jump together, nobody notices
   anything else. (A smaller one costs the window as much. So does a machine's sleep.)
5. While it distrusts its clock it takes no new versions, from no author, and collects nothing. It
   answers, heals, and takes what others have taken: these need no clock.
6. For `limits.SET_BACK_US` after its clock was set back it tells its peers the latest time that the
   clock has shown (`borne_us`), rounded up, so that all tell the same. It accepts histories with
   times up to the latest one that more than t + b servers tell, itself included (`before_us`). So
   what was begun by then, and is at too few servers for others to believe them, can be ended.
7. It stores these times, and when it compared last (`remembered`): machines are restarted to set
   their clocks. It tells nobody a time that is more than a minute later than what it has stored: a
   server that has confirmed its clock by such an answer can rely on the answer's being remembered.
   (docs/decisions/0017-clock-jumps.md)

**Why it is safe.** docs/threat-model.md, G7, says it: of more than t others one is correct. Of more
than t + b that tell of a time more than t do not lie: t clocks that were wrong by themselves, and
liars that tell any time, are too few. And of 2 t + b others that have confirmed a clock, t
may lie or fail later: with the one whose clock it is, more than t + b are left to tell of it.

**Tests.** `tests/unit/server/test_own_clock.py`, `tests/seams/test_clock_jumps.py`.

**Concurrency.** One thread; `reason` may be read by any.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.conversation import Event, Pause
from bftfs.identifiers import NodeId
from bftfs.server.step import Ready, Want
from bftfs.server.tally import figure
from bftfs.storage import Write

_NAMED = 8  # of the nodes that differ
_PLAUSIBLE_US = limits.CLOCKS_COMPARED_EVERY_US + limits.CLOCKS_AGREE_US  # since a comparison
_JUMPED = "its clock has jumped, and its peers do not confirm it yet: it takes no new versions"
# A request that comes before the first comparison looks again after pauses that double, and waits
# no longer than this in all. It waits for no event: that wait would have no bound in time.
_LOOK_US, _WAITED_MOST_US = 1_000, 2 * limits.SECOND_US
_STARTED = "its peers have not confirmed its clock since it started: it takes no new versions yet"


class OwnClock:
    """What one node knows of its clock."""

    def __init__(
        self,
        t: int,
        tell: Callable[[str], None] = lambda _reason: None,
        *,
        b: int = 0,
        compared: bool = False,
    ) -> None:
        """Up to `t` others may be wrong, of which `b` may lie. `tell` hears when trust ends, and
        why; or returns: "".

        One that is to be `compared` with others is not trusted before that.
        """
        self.reason = _STARTED if compared else ""  # why the clock is not trusted; empty if it is
        self.due = Event()  # announced when the clock has to be compared
        self._t = t
        self._b = b
        self._tell = tell
        self._was_confirmed = False
        self._jumps_us = 0  # the sum of the recent jumps, if they lead ahead…
        self._jumped_us = 0  # …and when the last was seen, by this clock
        self._compared_us: int | None = None  # when that was done last, by this clock
        self._latest_us = 0  # the latest time that this clock has shown…
        self._set_back_us = 0  # …and what it showed when it was first seen behind that, if it is
        self._noted_us = 0  # what it showed when it was looked at last
        self._borne_us: tuple[int, ...] = ()  # what peers tell of theirs

    @figure("1 while the node takes no new versions, because its clock may be wrong.")
    def distrusted(self) -> float:
        """1 while it is not trusted."""
        return bool(self.reason)

    @figure("1 if peers have agreed with the node's clock.")
    def confirmed(self) -> float:
        """1 if it is trusted, and has been compared."""
        return self._was_confirmed and not self.reason

    def refusal(self, now_us: int) -> Refused | None:
        """What an author is told whose version would be taken by this clock, if it is distrusted.

        Other nodes may take it, and this one another time.
        """
        if self._has_jumped(now_us):
            if not self.reason:
                self._conclude(_JUMPED)
            self.due.announce()
        self._note(now_us)
        return Refused(errno.EAGAIN, self.reason) if self.reason else None

    def stops(self, now_us: int) -> Ready | None:
        """How an author's request is answered that would be taken by this clock; None: it is.

        When the node has just started the request waits for the first comparison: a refusal would
        make the node miss what others take.
        """
        refusal = self.refusal(now_us)
        if refusal is None:
            return None
        if self.reason == _STARTED:
            return Ready(wants=(Want(b"clock", lambda _view: self._confirmed_soon()),))
        return Ready(refusal)

    async def _confirmed_soon(self) -> list[Write] | None:
        waited_us, pause_us = 0, _LOOK_US
        while self.reason == _STARTED:
            if waited_us >= _WAITED_MOST_US:
                return None
            await Pause(pause_us)
            waited_us += pause_us
            pause_us *= 2
        return []

    def is_confirmed(self, now_us: int) -> bool:
        """True if peers have agreed with it since the node started, and it is trusted."""
        return self.refusal(now_us) is None and self._was_confirmed

    def jumped_ahead_us(self, now_us: int, within_us: int) -> int:
        """By how much the clock has jumped ahead, if that was less than `within_us` ago."""
        return self._jumps_us if now_us < self._jumped_us + within_us else 0

    def is_stored(self, remembered: bytes, now_us: int) -> bool:
        """True if a node that has stored this may tell others the time."""
        return now_us - _stored_us(remembered)[0] <= limits.CLOCKS_COMPARED_EVERY_US

    def is_confirmed_by(self, differences: Mapping[NodeId, int]) -> bool:
        """True if so many others agree, and so few differ, that the clock is trusted."""
        apart = len(_apart(differences))
        agree = len(differences) - apart
        return apart <= self._t and agree >= max(2 * self._t + self._b, 1)

    def borne_us(self, now_us: int) -> int:
        """A time that it had not reached when it was set back; 0 if it was not, of late.

        It is the latest that it has shown, rounded up to a unit of less than half the way back:
        other nodes have read their clocks a little earlier or later.
        """
        self._note(now_us)
        if not self._set_back_us:
            return 0
        unit_us = 1 << max((self._latest_us - self._set_back_us).bit_length() - 2, 0)
        return -(-self._latest_us // unit_us) * unit_us

    def before_us(self, now_us: int) -> int:
        """A bound of the times that servers accepted by their clocks before these were set back.

        That is the latest time that more than t + b servers tell, this one included, and how far a
        clock may have been beyond that; 0: there is none. More than t of these do not lie: that
        many clocks are wrong only if all have jumped.

        The server's clock was within `limits.CLOCKS_AGREE_US` of those that confirmed it. From then
        on it may have gone on, or jumped unnoticed, until the next comparison. And what they tell
        is as of a minute before, if they have crashed.
        """
        told_us = sorted((self.borne_us(now_us), *self._borne_us), reverse=True)
        most = self._t + self._b
        if len(told_us) <= most or not told_us[most]:
            return 0
        return told_us[most] + limits.BORNE_BEYOND_US

    @property
    def remembered(self) -> bytes:
        """The row that the node stores about its clock, for `recall`: five times of eight bytes."""
        times_us = (
            self._latest_us,
            self._set_back_us,
            self._compared_us or 0,
            self._jumps_us,
            self._jumped_us,
        )
        return b"".join(time_us.to_bytes(8, "big") for time_us in times_us)

    def recall(self, remembered: bytes) -> None:
        """The node has started again, and had stored this."""
        latest_us, set_back_us, compared_us, jumps_us, jumped_us = _stored_us(remembered)
        self._latest_us = max(self._latest_us, latest_us)
        self._set_back_us, self._noted_us = set_back_us, compared_us
        if self._compared_us is None and compared_us:
            self._compared_us = compared_us
            self._jumps_us, self._jumped_us = jumps_us, jumped_us

    def _note(self, now_us: int) -> None:
        """Follow the clock, and see when it is set back.

        If it jumps ahead after that, but not as far, the hour does not pass by it.
        """
        gone_on_us, self._noted_us = now_us - self._noted_us, now_us
        if self._set_back_us and gone_on_us > _PLAUSIBLE_US:
            self._set_back_us += gone_on_us
        if now_us >= self._latest_us:
            self._latest_us, self._set_back_us = now_us, 0
        elif not self._set_back_us or now_us < self._set_back_us:
            self._set_back_us = now_us
        elif now_us - self._set_back_us > limits.SET_BACK_US:
            self._latest_us, self._set_back_us = now_us, 0

    def compared(
        self, differences: Mapping[NodeId, int], now_us: int, borne_us: Sequence[int] = ()
    ) -> None:
        """The clocks of others that have answered are ahead of this one by so much, at least.

        `borne_us`: the latest times that these clocks had shown when they were set back.
        """
        self._borne_us = tuple(borne_us)
        if self._compared_us is not None and self._has_jumped(now_us):
            by_us = now_us - self._compared_us
            if not 0 <= by_us <= limits.CLOCK_JUMP_US:
                self._jumps_us = max(self._jumps_us + by_us, 0)
                self._jumped_us = now_us
        apart = _apart(differences)
        if len(apart) > self._t:
            self._conclude(_differs(apart))
        elif self.is_confirmed_by(differences):
            self._was_confirmed = True
            self._conclude("")
        elif self._has_jumped(now_us) and not self.reason:
            self._conclude(_JUMPED)
        self._compared_us = now_us
        self._note(now_us)

    def _has_jumped(self, now_us: int) -> bool:
        before_us = self._compared_us
        return before_us is not None and not (
            before_us - limits.CLOCKS_AGREE_US <= now_us <= before_us + _PLAUSIBLE_US
        )

    def _conclude(self, reason: str) -> None:
        before, self.reason = self.reason, reason
        if before == _STARTED:
            is_new = bool(reason)
        else:
            is_new = bool(reason) != bool(before) or before == _JUMPED != reason
        if is_new:
            self._tell(reason)


def _stored_us(remembered: bytes) -> tuple[int, ...]:
    """The times of `OwnClock.remembered`; 0 where there is none."""
    return tuple(int.from_bytes(remembered[start : start + 8], "big") for start in range(0, 40, 8))


def _apart(differences: Mapping[NodeId, int]) -> dict[NodeId, int]:
    """The clocks that are further away than correct ones may be."""
    return {
        node: difference
        for node, difference in sorted(differences.items())
        if abs(difference) > limits.CLOCKS_AGREE_US
    }


def _differs(apart: Mapping[NodeId, int]) -> str:
    named = list(apart.items())[:_NAMED]
    said = ", ".join(
        f"node {node}'s by {abs(difference) // limits.SECOND_US} s"
        f" ({'ahead' if difference > 0 else 'behind'})"
        for node, difference in named
    )
    more = f" and {len(apart) - len(named)} more" if len(apart) > len(named) else ""
    return (
        f"its clock differs from other nodes', {said}{more}: it takes no new versions until it "
        "agrees with them; set the clocks"
    )
