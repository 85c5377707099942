"""The interpreted draw of frames of several rows reads the table of forbidden columns within its bounds."""

import pytest
import torch

from stretto.engine.columns import COLUMNS
from stretto.engine.kernels.gpu.step_draw import DRAWS, SAMPLING_FUNCTIONS, STATE, draw_streams_kernel

pytestmark = pytest.mark.slow
NUM_COLUMNS, NUM_PLACES = 7, 3


@pytest.mark.parametrize("place", range(NUM_PLACES))
def test_row_is_masked_by_its_own_place_only(place: int) -> None:
    """The memory around the table forbids every column."""
    memory = torch.ones(3 * NUM_PLACES, NUM_COLUMNS, dtype=torch.uint8)
    table = memory[NUM_PLACES : 2 * NUM_PLACES]
    permitted = [5, 3, 2][place]
    table[place, permitted] = 0
    plan = torch.zeros(len(COLUMNS), 1, dtype=torch.int32)
    plan[COLUMNS.index("role")] = DRAWS.value
    plan[COLUMNS.index("audio_top_p")] = torch.ones(1).view(torch.int32)
    position = 1 + place
    state = torch.zeros(1, len(STATE), dtype=torch.int64)
    state[0, STATE.index("audio_start")] = 1
    drawn, logits = torch.full((1, 1), -1, dtype=torch.int32), torch.zeros(1, NUM_COLUMNS)
    draw_streams_kernel[1, 1](
        drawn, logits, None, torch.arange(NUM_COLUMNS)[None], torch.tensor([[0], [NUM_COLUMNS]]),
        torch.zeros(1, dtype=torch.int64), plan, torch.tensor([position], dtype=torch.int32), state,
        torch.zeros(1, 8, 1, dtype=torch.int32), None, table, 0,
        1, NUM_COLUMNS, 1, 1, len(STATE), 8, 1, 1, NUM_COLUMNS, 0, 128, 0, NUM_PLACES, False,
        True, 0, *SAMPLING_FUNCTIONS,
    )  # fmt: skip
    assert drawn.tolist() == [[permitted]]
