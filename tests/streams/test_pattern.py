"""Ends of a delay pattern, against the drawings in the docstrings of their modules."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stretto.engine import rules
from stretto.engine.worker.slots import Arrays, DeviceArrays, HostArrays
from stretto.families.opuslm.family import PADDED_TAIL
from stretto.streams.layout import (
    FORCED_TAIL,
    NO_TAIL,
    PADDED_WARM_UP,
    SAMPLED_TAIL,
    SAMPLED_WARM_UP,
    Tail,
    WarmUp,
)

DELAYS = (0, 1, 2)
FRAMES, SAMPLED, PAD, END, END_OF_REPLY = "ABC", "~", ".", "e", "E"
WARM_UPS = {PADDED_WARM_UP: ("ABC", ".AB", "..A"), SAMPLED_WARM_UP: ("ABC", "~AB", "~~A")}
TAILS = {
    FORCED_TAIL: ("CeE", "BC.", "ABC"),
    SAMPLED_TAIL: ("Ce~E", "BC~~", "ABC~"),
    PADDED_TAIL: ("Ce~E", "BC~.", "ABC~"),
    NO_TAIL: ("C~~e", "BC~.", "ABC."),
}


def shown(carries_drawn: bool, frame: int) -> str:
    """Return the input value of a stream at `frame`."""
    if not carries_drawn:
        return PAD
    return FRAMES[frame] if 0 <= frame < len(FRAMES) else SAMPLED


@pytest.mark.parametrize(("warm_up", "drawing"), WARM_UPS.items(), ids=["padded", "sampled"])
def test_delay_pattern_warm_ups_match_the_diagrams(warm_up: WarmUp, drawing: tuple[str, ...]) -> None:
    for stream, delay in enumerate(DELAYS):
        frames = range(-delay, len(FRAMES) - delay)
        family = SimpleNamespace(warm_up_is_sampled=warm_up.is_sampled)
        keeps = [rules.keeps_sampled(True, frame >= 0, -9, SAMPLED_TAIL.last_kept(delay), family) for frame in frames]
        assert "".join(map(shown, keeps, frames)) == drawing[stream]


@pytest.mark.parametrize("arrays", [HostArrays(), DeviceArrays(torch.device("cpu"))], ids=["numpy", "torch"])
@pytest.mark.parametrize(("tail", "drawing"), TAILS.items(), ids=["forced", "sampled", "padded", "none"])
def test_delay_pattern_tails_match_the_diagrams(tail: Tail, drawing: tuple[str, ...], arrays: Arrays) -> None:
    max_delay = max(DELAYS)
    num_closing_rows, num_rows = tail.num_closing_rows(max_delay), tail.num_rows(max_delay)
    assert (drawing[0].index(END) - 1, len(drawing[0]) - 1) == (num_closing_rows, 1 + num_closing_rows + num_rows)
    rows = np.arange(2, 2 + len(drawing[0]))  # frame C is in the first row drawn
    end, upload = len(FRAMES) + num_closing_rows, arrays.upload
    behind = rows - end
    is_spoken, has_begun = upload(np.full((len(rows), 1), True)), upload(rows[:, None] >= DELAYS)
    family = SimpleNamespace(
        last_kept=tail.last_kept(0), warm_up_is_sampled=False, num_tail_rows=num_rows, end_of_reply=9, pad_id=0
    )
    kept = upload(np.array([[tail.last_kept(delay) for delay in DELAYS]]))
    carries = arrays.rules.keeps_sampled(is_spoken, has_begun, upload(behind[:, None]), kept, family)
    for stream in range(1, len(DELAYS)):
        cells = (shown(bool(carries[index, stream]), int(row) - DELAYS[stream]) for index, row in enumerate(rows))
        assert "".join(cells) == drawing[stream]
    drawn, starts = np.full(len(rows), 7), (np.zeros(len(rows), np.int64), np.full(len(rows), end))
    values = map(upload, (drawn, rows, *starts, behind, drawn))
    first = arrays.rules.first_stream(*values, family)
    between = [index for index in range(len(rows)) if 0 < behind[index] < num_rows]
    assert ["~" if first[index] == 7 else PAD for index in between] == [drawing[0][index] for index in between]


@pytest.mark.parametrize(("tail", "num_rows"), [*zip(TAILS, [1, 1, 1, 0], strict=True)])
def test_reply_without_delays_still_ends_after_its_audio(tail: Tail, num_rows: int) -> None:
    assert (tail.num_rows(0), tail.num_closing_rows(0)) == (num_rows, 0)
