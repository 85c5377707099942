"""The interpreted text draw, which reads only a few groups of columns, against the draw over all columns."""

import numpy as np
import pytest
import torch
import triton

from stretto.engine.columns import COLUMNS
from stretto.engine.kernels.gpu.step_draw import DRAWS
from stretto.engine.kernels.gpu.step_text import TILE, WIDTH, draw_text_kernel, text_maxima_kernel
from stretto.engine.sampling.draw import draw
from stretto.engine.sampling.noise import seed_key, stream_keys
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.engine.sampling.repetition import penalize
from tests.tiers import by_night

pytestmark = pytest.mark.slow
NUM_COLUMNS = 17_000  # more than 128 groups, of which the last is not full
NUM_GROUPS = triton.cdiv(NUM_COLUMNS, WIDTH.value)
# temperature, top_k, top_p, and how much the logits differ: of flat ones a nucleus is more than 128 groups hold.
ROWS = [
    (0.0, 5, 0.5, 3.0),
    (0.8, 30, 1.0, 3.0),
    (0.8, 30, 0.7, 3.0),
    (1.0, NUM_GROUPS + 5, 0.9, 3.0),
    (0.5, 0, 0.8, 6.0),
    (1.0, 0, 0.9, 0.2),
    (1.3, 0, 1.0, 3.0),
]


class Batch:
    """Rows with different options, each in its own slot; half of the columns are forbidden."""

    def __init__(self, step: float):
        random = np.random.default_rng(int(10 * step))
        temperature, top_k, top_p, spread = (np.array(values) for values in zip(*ROWS, strict=True))
        logits = spread[:, None] * random.standard_normal((len(ROWS), NUM_COLUMNS))
        logits = np.round(logits / step) * step if step else logits
        self.logits = torch.from_numpy(logits.astype(np.float32))
        self.offset = torch.from_numpy(random.standard_normal(NUM_COLUMNS).astype(np.float32).round())
        self.denied = torch.from_numpy(random.random((2, 2, NUM_COLUMNS)) < 0.5)
        self.seen = torch.from_numpy(random.random((len(ROWS), NUM_COLUMNS + 1)) < 0.3)
        self.penalty = np.linspace(1.05, 2.0, len(ROWS)).astype(np.float32)
        self.seeds = [seed_key(seed) for seed in range(len(ROWS))]
        self.params = temperature.astype(np.float32), top_k, top_p.astype(np.float32)
        self.state = torch.tensor([[-1, -1, row % 2, 0, 0] for row in range(len(ROWS))])  # ends from the first token on
        self.lengths = torch.arange(40, 40 + len(ROWS), dtype=torch.int32)

    def expected(self, is_penalized: bool) -> torch.Tensor:
        """Return the tokens of a draw over all columns."""
        masks = [self.denied[row % 2, row % 2] for row in range(len(ROWS))]
        logits = self.logits + self.offset
        if is_penalized:
            logits = penalize(logits, self.seen[:, :-1], torch.from_numpy(self.penalty))
        masked = logits.masked_fill(torch.stack(masks), -torch.inf)
        keys = stream_keys(np.array(self.seeds, np.int32), self.lengths.numpy(), 1)
        params = DrawParams(*map(torch.from_numpy, self.params))
        ids = torch.arange(NUM_COLUMNS)[None]
        plan = DrawPlan.from_parameters(self.params[0], self.params[2])
        return draw(masked[:, None], ids, torch.from_numpy(keys), params, plan)[:, 0]

    def plan(self) -> torch.Tensor:
        names = "text_temperature", "text_top_p", "repetition_penalty"
        reals = dict(zip(names, (self.params[0], self.params[2], self.penalty), strict=True))
        plan = np.zeros((len(COLUMNS), len(ROWS)), np.int32)
        for name, values in {
            "role": DRAWS.value,
            "slot": np.arange(len(ROWS)),
            "task": np.arange(len(ROWS)) % 2,
            "text_min": 1,
            "text_top_k": self.params[1],
            "seed_key": self.seeds,
            **{name: column.view(np.int32) for name, column in reals.items()},
        }.items():
            plan[COLUMNS.index(name)] = values
        return torch.from_numpy(plan)

    def drawn(self, is_penalized: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that the kernels draw, and the number of groups listed per row."""
        plan, logits, num_rows = self.plan(), self.logits.clone(), len(ROWS)
        drawn, lists = torch.zeros(num_rows, dtype=torch.int32), torch.full((num_rows, NUM_GROUPS), -1).int()
        maxima = torch.zeros(num_rows, NUM_GROUPS)
        seen = self.seen.view(torch.uint8) if is_penalized else None
        sizes = NUM_COLUMNS, num_rows, 5, NUM_COLUMNS, NUM_GROUPS
        text_maxima_kernel[num_rows, triton.cdiv(NUM_GROUPS, TILE.value)](
            logits, maxima, self.offset, self.denied, seen, plan, self.state, *sizes
        )
        block = triton.next_power_of_2(NUM_GROUPS)
        draw_text_kernel[num_rows,](drawn, logits, maxima, lists, plan, self.lengths, self.state, *sizes, block)
        return drawn, (lists >= 0).sum(1)


@pytest.mark.parametrize("is_penalized", [True, *by_night(False)])
@pytest.mark.parametrize("step", [0.0, *by_night(0.5)])
def test_grouped_text_sampling_matches_full_row_sampling(step: float, is_penalized: bool) -> None:
    batch = Batch(step)
    drawn, num_listed = batch.drawn(is_penalized)
    assert drawn.tolist() == batch.expected(is_penalized).tolist()
    assert (batch.expected(True) != batch.expected(False)).any()
    if not step:
        assert num_listed[0] == 1
        assert num_listed[1:3].tolist() == [30, 30]
