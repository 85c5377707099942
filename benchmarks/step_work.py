"""What a whole decode step costs the host: Python's instructions with pairs, against stock vLLM with as many rows.

    python -m benchmarks.step_work --pairs 1 8 32

Guided replies, and greedy decoding by stock vLLM: all that the engine core does in a step, from `schedule` to the
outputs. What a GPU has in a graph or a kernel counts as one call on either side: the model's forward pass, vLLM's
kernels, and our sampler's launches, which are left out: it says the same rows over and over. The sampler is that of a
GPU, its tables in host memory: that nothing waits for a device is for others to see. One line of JSON for each number
of pairs.
"""

import argparse
import statistics
from pathlib import Path
from types import CodeType
from typing import Any

from benchmarks.checkpoints.bundled import CHECKPOINT, ENGINE_ARGS
from benchmarks.host_work import count_instructions
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm.v1.request import RequestStatus  # noqa: E402

from benchmarks.engine import SpeechArm, StockArm  # noqa: E402
from benchmarks.stepped_engine import SteppedEngine  # noqa: E402
from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.worker.sampler import SpeechSampler  # noqa: E402

SCALE, FRAMES = 1.5, 200
WARM_UP, STEPS = 20, 8
TWINS = str(Path(cpu_kernels.__file__).parent)
MODELS = "multi_stream.py", "backbones.py"


def is_of_the_device(code: CodeType) -> bool:
    """Whether a GPU does this by one call: a kernel, whose twin this is, or a graph of the model."""
    is_forward = code.co_name == "forward" and code.co_filename.endswith(MODELS)
    return is_forward or code.co_filename.startswith(TWINS)


def settle(engine: SteppedEngine, num_rows: int) -> None:
    """Step until every row decodes, and for a while."""
    left = WARM_UP
    while left:
        before = engine.num_decoding()
        engine.step()
        left -= before == engine.num_decoding() == num_rows


def sample_as_a_gpu(engine: SteppedEngine) -> SpeechSampler:
    """Put the sampler of a GPU in the place of the CPU's, which is returned; it says what was said last."""
    runner, said = engine.runner, list[Any]()
    state, plain = runner.model_state, runner.sampler
    inner = SpeechSampler.__call__

    def keep(self: SpeechSampler, *step: Any) -> Any:
        said.append(inner(self, *step))
        return said[-1]

    setattr(SpeechSampler, "__call__", keep)  # noqa: B010  (no method may be assigned to)
    engine.step()
    setattr(SpeechSampler, "__call__", inner)  # noqa: B010
    plain.req_states = runner.req_states
    sampler = state._kernel_sampler(plain, state._readout())
    output = said[-1]
    tokens, codes, _, sampled = sampler._results(sampler._program.results, len(output.sampled_token_ids))
    tokens.copy_(output.sampled_token_ids[:, 0])
    codes.copy_(output.logprobs_tensors.logprob_token_ids)
    sampled.copy_(output.num_sampled)
    sampler._graphs.run = lambda variant, num_rows: None
    runner.sampler = sampler
    engine.step()
    return plain


def instructions(engine: SteppedEngine, num_rows: int) -> float:
    """Of the median step that decodes `num_rows` rows."""
    counts = [count_instructions(engine.step, is_of_the_device) for _ in range(STEPS)]
    assert engine.num_decoding() == num_rows, "a request has ended, or was preempted"
    return statistics.median(counts)


def finish(engine: SteppedEngine) -> None:
    """End all requests, the worker's too."""
    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    engine.step()


def measure(pairs: int, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Either arm, and the ratio between them."""
    num_rows = 2 * pairs
    ours.engine.add(*ours.requests(pairs, FRAMES, SCALE))
    settle(ours.engine, num_rows)
    plain = sample_as_a_gpu(ours.engine)
    columns = ours.engine.runner.sampler._program.columns
    uploads = columns.num_uploads
    of_ours = instructions(ours.engine, num_rows)
    assert columns.num_uploads == uploads, "a steady step has uploaded something"
    ours.engine.runner.sampler = plain
    finish(ours.engine)
    stock.engine.add(*stock.requests(num_rows, FRAMES))
    settle(stock.engine, num_rows)
    of_stock = instructions(stock.engine, num_rows)
    finish(stock.engine)
    figures = {"ratio": round(of_ours / of_stock, 4), "ours": of_ours, "stock": of_stock}
    return {"pairs": pairs, "instructions": figures}


def main(arguments: argparse.Namespace) -> None:
    """Measure every number of pairs, a line each."""
    config = EngineConfig.from_file(ENGINE_ARGS, arguments.checkpoint)
    cpu_kernels.install()
    ours, stock = SpeechArm(config), StockArm(config)
    for pairs in arguments.pairs:
        append_result(arguments.out, "step_work", measure(pairs, ours, stock))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "step_work")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8, 32], help="guided replies in a step")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
