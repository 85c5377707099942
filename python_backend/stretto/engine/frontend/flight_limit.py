"""How many sequences may be in flight for first frames to come in time, found by the time that replies take to theirs.

Additive increase and multiplicative decrease, as TCP keeps a queue short whose length it is not told (Chiu and Jain,
"Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", 1989).
"""

from dataclasses import dataclass

GREATEST_CUT = 0.5  # what one late reply leaves at least, however late it is
UNUSED_CUT = 0.97  # what is left of a bound of which less than half was in use: few late replies are chance
UNBOUNDED = 1024.0  # sequences; where no bound is given to begin with
LEAST = 4.0  # sequences: two guided replies, so that nobody whose first frames take long has all others refused


@dataclass(frozen=True, slots=True)
class Entry:
    """How a reply was let in. in_flight: sequences, with its own; round: of the bound, which ends at each cut."""

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """A bound of sequences in flight, `value`, under which most first frames come within `target_s`: `LEAST` to `most`.

    A reply that is late while half of the bound is in use cuts it, in proportion to how late it is, and ends the round:
    who was let in before says nothing any more. One that is late while less is in use cuts it a little. One that is in
    time while half is in use raises it: as many as fill it, by one reply.
    """

    def __init__(self, target_s: float, most: float):
        self._most = min(most, UNBOUNDED)
        self.target_s, self.value, self._round = target_s, self._most, 0

    def enter(self, num_sequences: int, in_flight: int) -> Entry:
        """Of a reply that is let in."""
        return Entry(num_sequences, in_flight, self._round)

    def see(self, entry: Entry, first_frame_s: float) -> None:
        """A reply had its first frame so many seconds after it was let in."""
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
