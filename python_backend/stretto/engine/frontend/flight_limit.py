"""How many sequences may be in flight for first frames to come in time, found by the time that replies take to theirs.

Additive increase and multiplicative decrease, as TCP keeps a queue short whose length it is not told (Chiu and Jain,
"Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", 1989).
"""

from dataclasses import dataclass

GREATEST_CUT = 0.5  # what one late reply leaves at least, however late it is
LEAST = 4.0  # sequences: two guided replies, so that nobody whose first frames take long has all others refused


@dataclass(frozen=True, slots=True)
class Entry:
    """How a reply was let in. in_flight: sequences, with its own; round: of the bound, which ends at each cut."""

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """A bound of sequences in flight, `value`, under which most first frames come within `target_s`: `LEAST` to `most`.

    The first reply of a round that is late, others being in flight, cuts the bound to what was in flight as it came, in
    proportion to how late it is, and ends the round. Each that is in time raises it, if half of it was in use: by a
    reply for as many as fill it. Who was let in before the last cut says nothing.
    """

    def __init__(self, target_s: float, most: float):
        self.target_s, self.value = target_s, most
        self._most, self._round = most, 0

    def enter(self, num_sequences: int, in_flight: int) -> Entry:
        """Of a reply that is let in."""
        return Entry(num_sequences, in_flight, self._round)

    def see(self, entry: Entry, first_frame_s: float) -> None:
        """A reply had its first frame so many seconds after it was let in."""
        if entry.round != self._round:
            return
        if first_frame_s <= self.target_s:
            if 2 * entry.in_flight >= self.value:
                raised = self.value + min(entry.num_sequences, entry.num_sequences**2 / self.value)
                self.value = min(self._most, raised)
        elif entry.in_flight > entry.num_sequences:
            cut = max(GREATEST_CUT, self.target_s / first_frame_s)
            self.value = min(self._most, max(LEAST, cut * min(self.value, entry.in_flight)))
            self._round += 1
