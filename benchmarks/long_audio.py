"""Ten minutes of audio in one request: what a step costs at the end of it, and what memory it has taken by then.

    python -m benchmarks.long_audio [--rows 30000] [--guidance 3.0]

The engine core, vLLM's front end and ours run in this process on one thread, with Bagpiper's streams on random
weights. The last line is JSON: processor time of the model's forward pass, whose attention reads every row so far, and
of all the rest, in the median step of the first and of the last thousand rows; and the growth of resident memory
between those. KV cache that has not been written yet is touched beforehand: it would count.

The rest does no more work at the end than at the beginning, and yet takes longer: attention has read more than the
processor's caches hold, and what comes after it finds them cold. `ms_per_step_control` shows what that alone makes: the
first thousand rows of another reply, where each forward pass reads in the end as much of the KV cache as attention
reads after all rows.
"""

import argparse
import itertools
import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.published_layouts import BAGPIPER_SMALL, PROMPT_ROWS, TEXT
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine import EngineCoreRequest  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector  # noqa: E402

from benchmarks.stepped_engine import SteppedEngine, Watch  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import Trailer, read_rows, sampling_params  # noqa: E402
from stretto.engine.reply_rules import SegmentTracker  # noqa: E402
from stretto.engine.utterance import Utterance  # noqa: E402
from stretto.families.tiny.reader import TEXT_CODEC  # noqa: E402
from stretto.streams.chunking import ChunkPolicy, Pacer  # noqa: E402

SPAN = 1000  # rows at the beginning and at the end that are compared
WARM_UP = 100
BLOCK_SIZE = 32
MAX_ROWS = 32_768 - 128
LONG = replace(BAGPIPER_SMALL, name="bagpiper-long", max_model_len=32_768)


@dataclass(frozen=True)
class Mark:
    """Where a run stands after some rows: processor seconds so far, and resident memory."""

    forward_s: float
    other_s: float
    resident_mb: float


def resident_mb() -> float:
    """What this process holds of the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class LongReplies:
    """Replies one after the other, each all the way from the scheduler to chunks."""

    def __init__(self, folder: Path, guidance_scale: float):
        write_checkpoint(folder, LONG, "benchmark_long", hidden=64, layers=2)
        arguments = {
            "dtype": "float32",
            "max_model_len": LONG.max_model_len,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 2048,
            "block_size": BLOCK_SIZE,
            "kv_cache_memory_bytes": 160 << 20,
            "enforce_eager": True,
        }
        self._engine = SteppedEngine(vllm_config(EngineConfig(folder, arguments)))
        for cache in self._engine.runner.kv_caches:
            cache.zero_()
        self._rules = self._engine.scheduler.table.rules
        self._guidance_scale = guidance_scale
        self._read_behind = list[torch.Tensor]()
        model = self._engine.runner.model
        self._forward, model.forward = model.forward, self._forward_and_read
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
        """From now on let each forward pass read, in the end, what attention reads of the KV cache after `num_rows`."""
        num_halves = 1 if self._guidance_scale == 1.0 else 2
        share = num_halves * (PROMPT_ROWS + num_rows) / (self._engine.scheduler.kv_cache_config.num_blocks * BLOCK_SIZE)
        caches = [cache.view(-1) for cache in self._engine.runner.kv_caches]
        self._read_behind = [cache[: int(share * len(cache))] for cache in caches]

    def _prompt(self, num_rows: int) -> Prompt:
        task = LONG.task("speak")
        rows = np.zeros((PROMPT_ROWS, LONG.layout.num_input_streams), np.int32)
        rows[:, 0] = np.random.default_rng(0).integers(TEXT.start, TEXT.stop, PROMPT_ROWS)
        audio = replace(task.sampling.audio, min_rows=num_rows, max_rows=num_rows)
        scale = self._guidance_scale
        return Prompt(task.name, rows, replace(task.sampling, audio=audio, guidance_scale=scale, seed=0))

    def run(self, num_rows: int) -> list[Mark]:
        """Where a reply of `num_rows` frames stands after every row."""
        prompt = self._prompt(num_rows)
        params = sampling_params(prompt, self._rules)
        tokens = prompt.rows[:, 0].tolist()
        (request_id,) = self._engine.add([tokens], [params])
        processor = OutputProcessor(None, log_stats=False)
        collector = RequestOutputCollector(RequestOutputKind.DELTA, request_id)
        request = EngineCoreRequest(request_id, tokens, None, params, None, 0.0, None, None, None)
        request.external_req_id = request_id
        processor.add_request(request, None, queue=collector)
        tracker = SegmentTracker(self._rules, LONG.task("speak"), len(tokens))
        policy = ChunkPolicy(frame_rate=LONG.frame_rate)
        utterance = Utterance(tracker, (), TEXT_CODEC, Pacer(policy))
        marks = list[Mark]()
        self._watch.restart()
        while self._engine.scheduler.has_requests():
            for outputs in (self._engine.step() or {}).values():
                processor.process_outputs(outputs.outputs)
            if (output := collector.get_nowait()) is not None:
                self._read(utterance, output)
            marks.append(self._mark())
        return marks

    def _read(self, utterance: Utterance, output: Any) -> None:
        ids = list(output.outputs[0].token_ids)
        if output.finished:
            size = len(Trailer._fields)
            self.trailer, ids = Trailer(*ids[-size:]), ids[:-size]
        for chunk in utterance.push(read_rows(ids, LONG.layout.num_output_streams)):
            self.num_frames += 0 if chunk.codes is None else chunk.codes.shape[1]

    def _mark(self) -> Mark:
        forward_s = self._watch.seconds["forward"]
        return Mark(forward_s, sum(self._watch.seconds.values()) - forward_s, resident_mb())


def ms_per_step(span: list[Mark]) -> dict[str, float]:
    """Milliseconds of the median step between the marks, by part."""
    steps = list(itertools.pairwise(span))
    forward = statistics.median(after.forward_s - before.forward_s for before, after in steps)
    other = statistics.median(after.other_s - before.other_s for before, after in steps)
    return {"forward": round(1e3 * forward, 4), "all_else": round(1e3 * other, 4)}


def compare(marks: list[Mark], control: list[Mark]) -> dict[str, Any]:
    """The first `SPAN` rows, the last, and the first of the control; and the memory taken between first and last."""
    first, last = marks[WARM_UP : WARM_UP + SPAN + 1], marks[-SPAN - 1 :]
    return {
        "ms_per_step_first": ms_per_step(first),
        "ms_per_step_last": ms_per_step(last),
        "ms_per_step_control": ms_per_step(control[WARM_UP : WARM_UP + SPAN + 1]),
        "resident_mb_first": round(first[-1].resident_mb, 1),
        "resident_mb_growth": round(last[-1].resident_mb - first[-1].resident_mb, 1),
    }


def check(num_rows: int, guidance_scale: float) -> dict[str, Any]:
    """The figures of one reply of `num_rows` rows, and of the control."""
    with tempfile.TemporaryDirectory() as folder:
        replies = LongReplies(Path(folder), guidance_scale)
        marks = replies.run(num_rows)
        assert replies.trailer is not None
        guided = replies.trailer.num_guided_frames
        replies.read_as_after(num_rows - SPAN // 2)
        control = replies.run(WARM_UP + SPAN)
        return {"rows": num_rows, "guidance_scale": guidance_scale, "guided_frames": guided, **compare(marks, control)}


def parse() -> argparse.Namespace:
    parser = command_line(__doc__, "long_audio")
    parser.add_argument("--rows", type=int, default=30_000, help="of audio; 50 of them are a second")
    parser.add_argument("--guidance", type=float, default=3.0, help="1.0 for none")
    arguments = parser.parse_args()
    if not 2 * SPAN + WARM_UP <= arguments.rows <= MAX_ROWS:
        parser.error(f"--rows: expected {2 * SPAN + WARM_UP} ... {MAX_ROWS}, got {arguments.rows}")
    return arguments


if __name__ == "__main__":
    asked = parse()
    append_result(asked.out, "long_audio", check(asked.rows, asked.guidance))
