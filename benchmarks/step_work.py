"""Python instructions of a complete decode step with CFG pairs, compared with stock vLLM with as many rows.

    python -m benchmarks.step_work --pairs 1 8 32

Guided replies are compared with greedy decoding by stock vLLM: everything that the engine core does in a step, from
`schedule` to the outputs. Work that a GPU runs as a graph or a kernel counts as one call on both sides: the model's
forward pass and vLLM's kernels. The launches of our sampler are left out; it repeats the same rows. The sampler is that
of a GPU, with its tables in host memory, so waits for a device are not measured. One line of JSON for each number of
pairs.
"""

import statistics
from pathlib import Path
from types import CodeType
from typing import Any

from benchmarks.engine import SpeechArm, StockArm
from benchmarks.engines import SteppedEngine
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS, append_result, command_line
from benchmarks.host_work import count_instructions
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm.v1.request import RequestStatus  # noqa: E402

from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.worker.sampler import SpeechSampler  # noqa: E402

SCALE, FRAMES = 1.5, 200
WARM_UP, STEPS = 20, 8
TWINS = str(Path(cpu_kernels.__file__).parent)
MODELS = "multi_stream.py", "backbones.py"


def is_of_the_device(code: CodeType) -> bool:
    """Return True for a function that is one call on a GPU: the CPU version of a kernel, or the model's forward."""
    is_forward = code.co_name == "forward" and code.co_filename.endswith(MODELS)
    return is_forward or code.co_filename.startswith(TWINS)


def settle(engine: SteppedEngine, num_rows: int) -> None:
    """Step until every row decodes, and then WARM_UP steps."""
    left = WARM_UP
    while left:
        before = engine.num_decoding()
        engine.step()
        left -= before == engine.num_decoding() == num_rows


def sample_as_a_gpu(engine: SteppedEngine) -> SpeechSampler:
    """Replace the sampler of the CPU, which is returned, by that of a GPU, which repeats the last output."""
    runner, outputs = engine.runner, list[Any]()
    state, plain = runner.model_state, runner.sampler
    inner = SpeechSampler.__call__

    def keep(self: SpeechSampler, *step: Any) -> Any:
        outputs.append(inner(self, *step))
        return outputs[-1]

    setattr(SpeechSampler, "__call__", keep)  # noqa: B010  (mypy refuses an assignment to a method)
    engine.step()
    setattr(SpeechSampler, "__call__", inner)  # noqa: B010
    plain.req_states = runner.req_states
    sampler = state._kernel_sampler(plain, state._readout())
    output = outputs[-1]
    tokens, codes, _, sampled = sampler._results(sampler._program.results, len(output.sampled_token_ids))
    tokens.copy_(output.sampled_token_ids[:, 0])
    codes.copy_(output.logprobs_tensors.logprob_token_ids)
    sampled.copy_(output.num_sampled)
    sampler._graphs.run = lambda variant, num_rows: None
    runner.sampler = sampler
    engine.step()
    return plain


def instructions(engine: SteppedEngine, num_rows: int) -> float:
    """Return the instructions of the median step that decodes `num_rows` rows."""
    counts = [count_instructions(engine.step, is_of_the_device) for _ in range(STEPS)]
    assert engine.num_decoding() == num_rows, "a request has ended, or was preempted"
    return statistics.median(counts)


def finish(engine: SteppedEngine) -> None:
    """Abort all requests, in the scheduler and in the worker."""
    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    engine.step()


def measure(pairs: int, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Measure both arms and return the ratio between them."""
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


if __name__ == "__main__":
    given = command_line(
        __doc__, "step_work", pairs=([1, 8, 32], "guided replies in a step"), checkpoint=(CHECKPOINT, "to load")
    ).parse_args()
    config = EngineConfig.from_file(ENGINE_ARGS, given.checkpoint)
    cpu_kernels.install()
    both = SpeechArm(config), StockArm(config)
    for number in given.pairs:
        append_result(given.out, "step_work", measure(number, *both))
