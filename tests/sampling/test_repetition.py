"""Detection of repeated draws, against a loop that counts them."""

import torch

from stretto.engine.sampling.repetition import RepetitionRule, is_repeated

ROWS, STREAMS, LONGEST = 40, 3, 9


def test_repeats_are_counted_in_the_window_of_each_row() -> None:
    random = torch.Generator().manual_seed(0)
    history = torch.randint(-1, 4, (ROWS, LONGEST, STREAMS), generator=random)
    drawn = torch.randint(0, 4, (ROWS, STREAMS), generator=random)
    window = torch.randint(0, LONGEST + 1, (ROWS,), generator=random)
    max_repeats = torch.randint(1, 4, (ROWS,), generator=random)
    found = is_repeated(drawn, history, RepetitionRule(window, max_repeats))
    for row in range(ROWS):
        for stream in range(STREAMS):
            said = history[row, : window[row], stream].tolist()
            assert found[row, stream] == (said.count(drawn[row, stream].item()) >= max_repeats[row])
    assert 0 < found.sum() < found.numel()
    assert not found[window == 0].any()
