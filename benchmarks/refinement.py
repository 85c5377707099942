"""Codebooks filled in of whole utterances: one at a time, and in batches of like length.

    python -m benchmarks.refinement --utterances 1 4 16 --width 256 --layers 4

VALL-E's second half with random weights (head width 64, eight codebooks of 1024 codes) fills utterances of about
`--frames` frames behind prompts of `--rows` rows, lengths up to a tenth apart, alone and as one batch, in turns;
figures are medians over the rounds. `fill_s`: of one utterance alone. `speedup_over_one_at_a_time`: wall time of all of
them one at a time over that of the batch, `speedup_cpu` the same of processor time. `real_time_factor`: seconds to fill
an utterance ÷ seconds of it, as part of the batch. `differ`: utterances in which a code is another beside others, where
two lead by what float32 rounds away. One line of JSON for each number of utterances.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.results_file import append_result, command_line
from stretto.codecs.refinement.base import Passage
from stretto.codecs.refinement.valle import ValleRefinement, ValleShape
from stretto.families.valle.family import FRAME_RATE, SOS_EOS, ValleVocabulary

KNOWN = ValleVocabulary()
HEAD_WIDTH = 64


def make_refinement(width: int, num_layers: int, device: str) -> ValleRefinement:
    """Random weights, as torch's layers draw them, over the vocabulary of the family's defaults."""
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
    """Utterances of lengths up to a tenth apart."""
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
    """Seconds of wall and of processor time that some work takes."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def measure(refinement: ValleRefinement, number: int, arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of so many utterances."""
    told = passages(number, arguments.frames, arguments.rows)
    refinement.fill(told[:1])  # what torch prepares at first use
    alone, batch, differ = list[tuple[float, float]](), list[tuple[float, float]](), 0
    for _ in range(arguments.rounds):
        one, all_of_them = list[np.ndarray](), list[np.ndarray]()
        alone.append(timed(lambda: one.extend(refinement.fill([each])[0] for each in told)))  # noqa: B023
        batch.append(timed(lambda: all_of_them.extend(refinement.fill(told))))  # noqa: B023
        differ += sum((a != b).any() for a, b in zip(one, all_of_them, strict=True))
    wall_s, cpu_s = (statistics.median(a[at] / b[at] for a, b in zip(alone, batch, strict=True)) for at in (0, 1))
    fill_s, batch_s = (statistics.median(each[0] for each in runs) for runs in (alone, batch))
    seconds = sum(len(each.given) for each in told) / FRAME_RATE
    return {
        "utterances": number,
        **{name: getattr(arguments, name) for name in ("frames", "rows", "width", "layers", "rounds", "threads")},
        "fill_s": round(fill_s / number, 4),
        "speedup_over_one_at_a_time": round(wall_s, 2),
        "speedup_cpu": round(cpu_s, 2),
        "real_time_factor": round(batch_s / seconds, 4),
        "differ": int(differ),
    }


def main() -> None:
    """Measures, prints and keeps the figures."""
    parser = command_line(__doc__, "refinement")
    add = parser.add_argument
    add("--utterances", type=int, nargs="+", default=[1, 4, 16])
    add("--frames", type=int, default=200)
    add("--rows", type=int, default=200)
    add("--width", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    refinement = make_refinement(arguments.width, arguments.layers, arguments.device)
    for number in arguments.utterances:
        append_result(arguments.out, "refinement", measure(refinement, number, arguments))


if __name__ == "__main__":
    main()
