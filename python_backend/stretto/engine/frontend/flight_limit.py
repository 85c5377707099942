"""Adaptive limit on sequences in flight that keeps first frames within a target time.

Additive increase and multiplicative decrease, as in TCP congestion control (Chiu and Jain, "Analysis of the increase
and decrease algorithms for congestion avoidance in computer networks", 1989).
"""

from dataclasses import dataclass

GREATEST_CUT = 0.5  # smallest factor of one decrease, however late the reply is
UNUSED_CUT = 0.97  # factor if less than half of the limit was in use
UNBOUNDED = 1024.0  # sequences; initial limit if none is configured
LEAST = 4.0  # sequences: two guided replies, so that one slow reply cannot cause all others to be rejected


@dataclass(frozen=True, slots=True)
class Entry:
    """Admission record of a reply.

    Attributes:
        num_sequences: Sequences of the reply.
        in_flight: Sequences in flight at admission, its own included.
        round: Round of the limit; a round ends at each multiplicative decrease.
    """

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """Limit `value` on sequences in flight, between `LEAST` and `most`, for first frames within `target_s`.

    A late reply with at least half of the limit in use decreases it in proportion to the delay and ends the round, so
    that replies admitted before are ignored. A late reply with less in use decreases it slightly. A timely reply with
    at least half in use increases it: by one reply for as many replies as fill it.
    """

    def __init__(self, target_s: float, most: float):
        self._most = min(most, UNBOUNDED)
        self.target_s, self.value, self._round = target_s, self._most, 0

    def enter(self, num_sequences: int, in_flight: int) -> Entry:
        """Return the admission record of a reply."""
        return Entry(num_sequences, in_flight, self._round)

    def see(self, entry: Entry, first_frame_s: float) -> None:
        """Update the limit with the time from admission to the first frame of a reply, in seconds."""
        if entry.round != self._round:
            return
        is_used = 2 * entry.in_flight >= self.value
        if first_frame_s <= self.target_s:
            if is_used:
                raised = self.value + min(entry.num_sequences, entry.num_sequences**2 / self.value)
                self.value = min(self._most, raised)
        elif not is_used:
            self.value = max(UNUSED_CUT * self.value, 2.0 * entry.in_flight)
        elif entry.in_flight > entry.num_sequences:
            cut = max(GREATEST_CUT, self.target_s / first_frame_s)
            self.value = min(self._most, max(LEAST, cut * self.value))
            self._round += 1
