"""Measure the refinement of complete utterances, which fills the codebooks after the first.

    python -m benchmarks.refinement --utterances 1 4 16 --width 256 --layers 4

VALL-E's non-autoregressive model with random weights (head width 64, eight codebooks of 1024 codes) fills utterances of
about `--frames` frames after prompts of `--rows` rows. Lengths differ by up to a tenth. The benchmark alternates
between filling the utterances one at a time and in one batch. Figures are medians over the rounds:

    fill_s                       time to fill a single utterance on its own
    speedup_over_one_at_a_time   wall time of all utterances one at a time, divided by the wall time of the batch
    speedup_cpu                  the same ratio in processor time
    real_time_factor             seconds per utterance in the batch, divided by the utterance's duration
    differ                       utterances with different codes in the batch, because of float32 rounding

The benchmark writes one line of JSON for each number of utterances.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness import append_result, command_line, median_ratio
from stretto.codecs.refinement import Passage
from stretto.families.valle.family import FRAME_RATE, SOS_EOS, ValleVocabulary
from stretto.families.valle.refinement import ValleRefinement, ValleShape

KNOWN = ValleVocabulary()
HEAD_WIDTH = 64


def make_refinement(width: int, num_layers: int, device: str) -> ValleRefinement:
    """Return a model with torch's default initialisation and the family's default vocabulary."""
    torch.manual_seed(0)
    shape = ValleShape(
        width=width,
        num_heads=width // HEAD_WIDTH,
        num_layers=num_layers,
        max_rows=KNOWN.max_model_len,
        num_ids=KNOWN.layout.vocab_size,
        num_codebooks=KNOWN.num_codebooks,
        codebook_size=KNOWN.codebook_size,
        codes=KNOWN.codec,
        end=SOS_EOS,
    )
    return ValleRefinement(shape).eval().requires_grad_(False).to(device)


def passages(number: int, num_frames: int, num_rows: int) -> list[Passage]:
    """Return utterances whose lengths differ by up to a tenth."""
    random = np.random.default_rng(0)
    lengths = random.integers(num_frames * 9 // 10, num_frames + 1, number)
    return [
        Passage(
            random.integers(KNOWN.vocab_size, size=(num_rows, KNOWN.num_codebooks)),
            random.integers(KNOWN.codebook_size, size=length),
        )
        for length in lengths
    ]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Run `work` and return its wall time and processor time in seconds."""
    wall_s = time.perf_counter()
    cpu_s = time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def measure(refinement: ValleRefinement, number: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Fill `number` utterances one at a time and in a batch; return the figures."""
    given = passages(number, arguments.frames, arguments.rows)
    refinement.fill(given[:1])  # warms up
    alone = list[tuple[float, float]]()
    batch = list[tuple[float, float]]()
    differ = 0
    for _ in range(arguments.rounds):
        one = list[np.ndarray]()
        all_of_them = list[np.ndarray]()
        alone.append(timed(lambda: one.extend(refinement.fill([each])[0] for each in given)))  # noqa: B023
        batch.append(timed(lambda: all_of_them.extend(refinement.fill(given))))  # noqa: B023
        differ += sum((a != b).any() for a, b in zip(one, all_of_them, strict=True))
    wall_s, cpu_s = (median_ratio([each[at] for each in alone], [each[at] for each in batch]) for at in (0, 1))
    fill_s, batch_s = (statistics.median(each[0] for each in runs) for runs in (alone, batch))
    seconds = sum(len(each.first_codes) for each in given) / FRAME_RATE
    return {
        "utterances": number,
        **{name: getattr(arguments, name) for name in ("frames", "rows", "width", "layers", "rounds", "threads")},
        "fill_s": round(fill_s / number, 4),
        "speedup_over_one_at_a_time": round(wall_s, 2),
        "speedup_cpu": round(cpu_s, 2),
        "real_time_factor": round(batch_s / seconds, 4),
        "differ": int(differ),
    }


if __name__ == "__main__":
    flags = command_line(
        __doc__,
        "refinement",
        utterances=([1, 4, 16], "numbers of utterances per batch"),
        frames=(200, "frames per utterance"),
        rows=(200, "rows per prompt"),
        width=(256, "width of the model"),
        layers=(4, "layers of the model"),
        rounds=(3, "number of turns for each arm"),
        threads=(1, "number of torch threads"),
        device=("cpu", "torch device"),
    ).parse_args()
    torch.set_num_threads(flags.threads)
    model = make_refinement(flags.width, flags.layers, flags.device)
    for count in flags.utterances:
        append_result(flags.out, "refinement", measure(model, count, flags))
