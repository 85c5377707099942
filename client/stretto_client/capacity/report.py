"""Result of `stretto capacity`, as a table with a summary and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stretto_client.capacity.host import Host
from stretto_client.capacity.levels import PLAYER_BUFFER_S, Level, p95_bound, percentile
from stretto_client.capacity.search import NUM_TRIED, Capacity

MOST_LAG_S = 0.05  # 95th percentile of the client's own delay above which it distorts the result
COLUMNS = ("streams", "requests", "first audio p50", "p95", "first sound p95", "real-time factor p95")
COLUMNS_PER_SECOND = ("audio s/s", "characters/s", "result")


@dataclass(frozen=True, slots=True)
class Report:
    """A measured capacity, and its conditions.

    Attributes:
        host: The machine; None if the server is on another one.
        lag_s: 95th percentile of how late this client was, in seconds.
        cost_per_hour: Price of an hour of the machine, in any currency; None if it is unknown.
    """

    capacity: Capacity
    version: str
    model: str
    host: Host | None
    load: str
    lag_s: float
    cost_per_hour: float | None = None

    def guidance_scale(self) -> float | None:
        """Return the guidance scale that the server reported; None if no reply was complete."""
        scales = (trace.guidance_scale for level in self.capacity.tried for trace in level.traces)
        return next((scale for scale in scales if scale is not None), None)

    def lines(self) -> list[str]:
        """Return the table and the summary."""
        machine = "another machine" if self.host is None else self.host.describe()
        guidance = self.guidance_scale()
        scale = "" if guidance is None else f", guidance {guidance:g}"
        lines = [machine, f"model {self.model}, Stretto {self.version}{scale}", self.load, ""]
        return [*lines, *table(self.capacity.tried), "", *self.summary()]

    def summary(self) -> list[str]:
        """Return the result in sentences."""
        capacity = self.capacity
        best = capacity.best
        if best is None:
            fault = capacity.first_fault.fault() if capacity.first_fault is not None else "no time to measure"
            return [f"0 streams: with a single one, {fault}.", *self._warnings()]
        streams = f"{best.streams} concurrent {plural('stream', best.streams)}"
        p95 = f"{percentile(best.first_audio_s, 95):.2f} s"
        hour = f"{3600 * best.chars_per_s:,.0f} characters in an hour"
        lines = [
            f"{streams}: 95 % of {len(best.first_audio_s)} replies began within {p95}, and {self._gaps(best)}.",
            f"This is {best.audio_per_s:.1f} s of audio in a second, and {hour}{self._cost(best)}.",
            self._above(),
        ]
        return [*lines, *self._certainty(best), *self._warnings()]

    @staticmethod
    def _gaps(best: Level) -> str:
        player = f"player that holds back {PLAYER_BUFFER_S:g} s paused"
        return f"{best.num_gaps} {player}" if best.num_gaps else f"no {player}"

    def _cost(self, best: Level) -> str:
        cost = self.cost_per_1000_characters()
        return "" if cost is None else f": {cost:.4g} for 1,000 characters, at {self.cost_per_hour:g} an hour"

    def cost_per_1000_characters(self) -> float | None:
        """Return the price of 1,000 characters; None if the price of the machine, or its capacity, is unknown."""
        best = self.capacity.best
        if self.cost_per_hour is None or best is None or not best.chars_per_s:
            return None
        return self.cost_per_hour / (3.6 * best.chars_per_s)

    def _above(self) -> str:
        above = self.capacity.first_fault
        if above is None:
            return "The time was not enough to find the limit: --seconds N measures longer."
        return f"With {above.streams}: {above.fault()}."

    def _certainty(self, best: Level) -> list[str]:
        if not self.capacity.is_measured:
            return [f"The time was not enough to measure this: it was only tried with about {NUM_TRIED} requests."]
        if self.capacity.is_certain:
            return [f"The p95 is below {p95_bound(best.first_audio_s):.2f} s with 95 % confidence."]
        doubt = f"{len(best.first_audio_s)} replies are too few to be sure that the p95 is below"
        return [f"{doubt} {best.target.first_audio_s:g} s: --seconds N measures longer."]

    def _warnings(self) -> list[str]:
        warnings = []
        if self.host is not None and self.host.is_busy:
            busy = f"{self.host.busy_cores:.1f} of {self.host.cores} cores"
            warnings.append(f"Warning: other programs used {busy} before the start, so the result is too low.")
        if self.lag_s > MOST_LAG_S:
            warnings.append(
                f"Warning: this client was {1000 * self.lag_s:.0f} ms late in 5 % of the time, which the times include."
            )
        return warnings

    def record(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        capacity = self.capacity
        best = capacity.best
        bound = None if best is None else p95_bound(best.first_audio_s)
        return {
            "streams": 0 if best is None else best.streams,
            "is_measured": capacity.is_measured,
            "is_certain": capacity.is_certain,
            "first_audio_p95_bound_s": bound,
            "cost_per_1000_characters": self.cost_per_1000_characters(),
            "cost_per_hour": self.cost_per_hour,
            "best": None if best is None else level_record(best),
            "levels": [level_record(level) for level in capacity.tried],
            "host": None if self.host is None else asdict(self.host),
            "model": self.model,
            "version": self.version,
            "guidance_scale": self.guidance_scale(),
            "client_lag_p95_s": self.lag_s,
            "warnings": self._warnings(),
        }


def plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def progress_line(level: Level) -> str:
    """Return the line that is printed when a level has been measured."""
    number = len(level.traces)
    about = f"{level.streams} {plural('stream', level.streams)}, {number} {plural('request', number)}"
    return f"{about}: {level.fault() or f'first audio p95 {percentile(level.first_audio_s, 95):.2f} s'}"


def level_record(level: Level) -> dict[str, Any]:
    """Return the measurements of a level, as JSON."""
    record: dict[str, Any] = {"streams": level.streams, "requests": len(level.traces), "refused": level.num_refused}
    for name, values in (
        ("first_audio", level.first_audio_s),
        ("first_sound", level.first_sound_s),
        ("real_time_factor", level.real_time_factors),
    ):
        for percent in (50, 95):
            record[f"{name}_p{percent}"] = round(percentile(values, percent), 4) if values else None
    record |= {"replies_with_gaps": level.num_gaps, "audio_s_per_s": round(level.audio_per_s, 3)}
    return record | {"characters_per_s": round(level.chars_per_s, 2), "fault": level.fault()}


def table(levels: Sequence[Level]) -> list[str]:
    """Return the lines of a table with a row for each level."""
    rows = [list(COLUMNS + COLUMNS_PER_SECOND)]
    for level in levels:
        record = level_record(level)
        names = ("first_audio_p50", "first_audio_p95", "first_sound_p95", "real_time_factor_p95")
        numbers = ["–" if record[name] is None else f"{record[name]:.2f}" for name in names]
        rates = [f"{level.audio_per_s:.1f}", f"{level.chars_per_s:.0f}"]
        rows.append([str(level.streams), str(len(level.traces)), *numbers, *rates, level.fault() or "good"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
        for row in rows
    ]
