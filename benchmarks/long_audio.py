"""Measure the cost of the last steps and the growth of memory when one request generates ten minutes of audio.

    python -m benchmarks.long_audio [--rows 30000] [--guidance 3.0]

The engine core and both front ends (vLLM's and Stretto's) run in this process on one thread, with Bagpiper's streams
and random weights. The benchmark compares the median step of the first thousand rows with that of the last thousand. It
compares resident memory and two parts of the processor time: the model's forward pass, whose attention reads all rows
so far, and everything else. The KV cache is touched beforehand, because pages that are written for the first time would
count as growth.

"Everything else" does the same work at the end as at the beginning, but takes longer, because attention has filled the
processor's caches. `ms_per_step_control` isolates this effect. It covers the first thousand rows of another reply, in
which each forward pass also reads as much of the KV cache as attention reads at the end. The benchmark writes one line
of JSON.
"""

import itertools
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import SteppedEngine, Watch, engine_args, forced_prompt, split_trailer
from benchmarks.harness import append_result, command_line
from benchmarks.layouts import LONG, PROMPT_ROWS, SPEAK
from stretto.engine.environment import prepare_environment
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine import EngineCoreRequest  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector  # noqa: E402

from stretto.engine.protocol import Trailer, read_rows  # noqa: E402
from stretto.engine.reply_rules import ReplyState  # noqa: E402
from stretto.engine.utterance import Utterance  # noqa: E402
from stretto.families.tiny.prompt import TEXT_CODEC  # noqa: E402
from stretto.streams.chunking import ChunkPolicy, Pacer  # noqa: E402
from stretto.testing.conformance import sampling_params  # noqa: E402

SPAN = 1000  # number of rows at the beginning and at the end that are compared
WARM_UP = 100
BLOCK_SIZE = 32
MAX_ROWS = 32_768 - 128


@dataclass(frozen=True)
class Mark:
    """Processor seconds and resident memory of a run after a row."""

    forward_s: float
    other_s: float
    resident_mb: float


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class LongReplies:
    """Runner of replies one after another, each from the scheduler to its chunks."""

    def __init__(self, folder: Path, guidance_scale: float):
        write_checkpoint(folder, LONG, "benchmark_long", hidden=64, layers=2)
        sizes = {"block_size": BLOCK_SIZE, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 160 << 20}
        self._engine = SteppedEngine.from_args(folder, engine_args(LONG.max_model_len, 1, **sizes))
        for cache in self._engine.runner.kv_caches:
            cache.zero_()
        self._rules = self._engine.scheduler.table.rules
        self._guidance_scale = guidance_scale
        self._read_behind = list[torch.Tensor]()
        model = self._engine.runner.model
        self._forward = model.forward
        model.forward = self._forward_and_read
        self._watch = Watch()
        self._watch.wrap(model, "forward", "forward")
        self.num_frames = 0
        self.trailer: Trailer | None = None

    def _forward_and_read(self, *args: Any, **kwargs: Any) -> Any:
        result = self._forward(*args, **kwargs)
        for rows in self._read_behind:
            rows.sum()
        return result

    def read_as_after(self, num_rows: int) -> None:
        """Make each later forward pass also read as much of the KV cache as attention reads after `num_rows` rows."""
        num_halves = 1 if self._guidance_scale == 1.0 else 2
        share = num_halves * (PROMPT_ROWS + num_rows) / (self._engine.scheduler.kv_cache_config.num_blocks * BLOCK_SIZE)
        caches = [cache.view(-1) for cache in self._engine.runner.kv_caches]
        self._read_behind = [cache[: int(share * len(cache))] for cache in caches]

    def run(self, num_rows: int) -> list[Mark]:
        """Generate a reply of `num_rows` frames; return the state after every row."""
        prompt = forced_prompt(LONG, SPEAK, 0, num_rows, scale=self._guidance_scale)
        params = sampling_params(prompt, self._rules)
        tokens = prompt.rows[:, 0].tolist()
        (request_id,) = self._engine.add([tokens], [params])
        processor = OutputProcessor(None, log_stats=False)
        collector = RequestOutputCollector(RequestOutputKind.DELTA, request_id)
        request = EngineCoreRequest(request_id, tokens, None, params, None, 0.0, None, None, None)
        request.external_req_id = request_id
        processor.add_request(request, None, queue=collector)
        begun = ReplyState.begin(self._rules, SPEAK, len(tokens))
        policy = ChunkPolicy(frame_rate=LONG.frame_rate)
        utterance = Utterance(begun, (), TEXT_CODEC, Pacer(policy))
        marks = list[Mark]()
        self._watch.restart()
        while self._engine.scheduler.has_requests():
            processor.process_outputs(list(self._engine.outputs()))
            if (output := collector.get_nowait()) is not None:
                self._read(utterance, output)
            marks.append(self._mark())
        return marks

    def _read(self, utterance: Utterance, output: Any) -> None:
        ids = list(output.outputs[0].token_ids)
        if output.finished:
            ids, self.trailer = split_trailer(ids)
        for chunk in utterance.push(read_rows(ids, self._rules.num_row_words)):
            self.num_frames += 0 if chunk.codes is None else chunk.codes.shape[1]

    def _mark(self) -> Mark:
        forward_s = self._watch.seconds["forward"]
        return Mark(forward_s, sum(self._watch.seconds.values()) - forward_s, resident_mb())


def ms_per_step(span: list[Mark]) -> dict[str, float]:
    """Return the median step between the marks, in milliseconds by part."""
    steps = list(itertools.pairwise(span))
    forward = statistics.median(after.forward_s - before.forward_s for before, after in steps)
    other = statistics.median(after.other_s - before.other_s for before, after in steps)
    return {"forward": round(1e3 * forward, 4), "all_else": round(1e3 * other, 4)}


def compare(marks: list[Mark], control: list[Mark]) -> dict[str, Any]:
    """Return the figures for the first and last `SPAN` rows and for the control, and the growth of memory."""
    first = marks[WARM_UP : WARM_UP + SPAN + 1]
    last = marks[-SPAN - 1 :]
    return {
        "ms_per_step_first": ms_per_step(first),
        "ms_per_step_last": ms_per_step(last),
        "ms_per_step_control": ms_per_step(control[WARM_UP : WARM_UP + SPAN + 1]),
        "resident_mb_first": round(first[-1].resident_mb, 1),
        "resident_mb_growth": round(last[-1].resident_mb - first[-1].resident_mb, 1),
    }


def check(num_rows: int, guidance_scale: float) -> dict[str, Any]:
    """Generate a reply of `num_rows` rows and the control, and return their figures."""
    with tempfile.TemporaryDirectory() as folder:
        replies = LongReplies(Path(folder), guidance_scale)
        marks = replies.run(num_rows)
        assert replies.trailer is not None
        guided = replies.trailer.num_guided_frames
        replies.read_as_after(num_rows - SPAN // 2)
        control = replies.run(WARM_UP + SPAN)
        return {"rows": num_rows, "guidance_scale": guidance_scale, "guided_frames": guided, **compare(marks, control)}


if __name__ == "__main__":
    parser = command_line(
        __doc__,
        "long_audio",
        rows=(30_000, "number of audio rows, 50 per second"),
        guidance=(3.0, "guidance scale; 1.0 for no guidance"),
    )
    given = parser.parse_args()
    if not 2 * SPAN + WARM_UP <= given.rows <= MAX_ROWS:
        parser.error(f"--rows: expected {2 * SPAN + WARM_UP} ... {MAX_ROWS}, got {given.rows}")
    append_result(given.out, "long_audio", check(given.rows, given.guidance))
