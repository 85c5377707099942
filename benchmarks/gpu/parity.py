"""The codes of the device against a slow reference on the CPU, in fp32, with CUDA graphs and without.

Random checkpoints of two families, and the bundled model where its weights are here. Where the reference itself was
nearly undecided (`LEAD`), the device may decide otherwise: such replies are counted, and are not wrong.
"""

import importlib
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stretto.engine.environment import prepare_environment
from stretto.families.base import Family
from stretto.families.tiny.family import TINY
from stretto.records.prompt import Prompt

from benchmarks.checkpoints.bundled import CHECKPOINT
from benchmarks.checkpoints.random_checkpoint import write_checkpoint
from benchmarks.gpu.sections import Setup

LEAD = 3e-4  # in logits; fp32 sums in another order differ by some 1e-5
MAX_MODEL_LEN = 160
CHUNKED = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 9}
SIZES = [1, 2, 4, 8, 16, 32]


def graphs(mode: str, compiler: int = 3) -> dict[str, Any]:
    """Engine arguments for one of vLLM's `cudagraph_mode`s, with torch.compile (3) or without (0)."""
    config = {"mode": compiler, "cudagraph_mode": mode, "cudagraph_capture_sizes": SIZES}
    return {"enforce_eager": False, "compilation_config": config, "attention_backend": "TRITON_ATTN"}


CUDA: dict[str, Any] = {"attention_backend": "TRITON_ATTN", "gpu_memory_utilization": 0.3}
MODES: dict[str, dict[str, Any]] = {
    "eager": {"async_scheduling": False},
    "eager, async, chunked, preempted": {"async_scheduling": True, **CHUNKED},
    "FULL_AND_PIECEWISE, async": {"async_scheduling": True, **graphs("FULL_AND_PIECEWISE")},
    "FULL_AND_PIECEWISE, async, chunked, preempted": {
        "async_scheduling": True, **graphs("FULL_AND_PIECEWISE"), **CHUNKED
    },
    "PIECEWISE": {"async_scheduling": False, **graphs("PIECEWISE")},
    "FULL": {"async_scheduling": False, **graphs("FULL")},
    "FULL_DECODE_ONLY, not compiled": {"async_scheduling": True, **graphs("FULL_DECODE_ONLY", compiler=0)},
}  # fmt: skip
WITHOUT_GRAPHS = [mode for mode in MODES if mode.startswith("eager")]
FOR_THE_BUNDLED = ["eager", "FULL_AND_PIECEWISE, async"]


@dataclass(frozen=True)
class Case:
    """A checkpoint, what it is asked, and the reference's rows and leads."""

    name: str
    folder: Path
    prompts: dict[str, Prompt]
    replies: dict[str, tuple[list[list[int]], float]]


def answer(name: str, folder: Path, family: Family, prompts: dict[str, Prompt]) -> Case:
    """The case of `prompts`, answered by the reference of the tests."""
    reference = importlib.import_module("tests.reference.speech_lm").Reference(folder, family, MAX_MODEL_LEN)
    width, replies = family.layout.num_output_streams, {}
    for request_id, prompt in prompts.items():
        rows, lead = reference.reply(prompt)
        replies[request_id] = ([row[:width] for row in rows], lead)
    return Case(name, folder, prompts, replies)


def cases(setup: Setup, folder: Path) -> Iterator[Case]:
    """Two random checkpoints, then the bundled model."""
    make_prompts = importlib.import_module("tests.engine.prompts").make_prompts
    number = 4 if setup.is_small else 12
    eight_streams = importlib.import_module("tests.speech_families").EIGHT_STREAMS
    for family, name in ((TINY, "tiny"), (eight_streams, "tests.speech_families:EIGHT_STREAMS")):
        checkpoint = write_checkpoint(folder / family.name, family, name)
        yield answer(family.name, checkpoint, family, make_prompts(family, number))
    if (CHECKPOINT / "model.safetensors").exists() and not setup.is_small:
        yield answer("bundled", CHECKPOINT, TINY, bundled_prompts())


def bundled_prompts() -> dict[str, Prompt]:
    """Three sentences for the bundled model."""
    from stretto.preprocessing.request import Preprocessor, RawRequest

    preprocessor = Preprocessor(CHECKPOINT)
    texts = {"one": "it is nine.", "two": "open the door, please.", "three": "the train leaves at ten."}
    prompts = {name: preprocessor.prepare(RawRequest(text=text, task="tts")) for name, text in texts.items()}
    return {name: replace(prompt, sampling=replace(prompt.sampling, seed=1)) for name, prompt in prompts.items()}


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """A line for each mode and checkpoint: if time runs out, the first modes have been seen with every checkpoint."""
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # or attention in Triton multiplies fp32 numbers as TF32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        asked = list(cases(setup, Path(folder)))
        for mode in WITHOUT_GRAPHS if setup.is_small else MODES:
            for case in asked:
                if case.name != "bundled" or mode in FOR_THE_BUNDLED:
                    yield {"checkpoint": case.name, "mode": mode, **attempt(setup, case, mode)}


Watch = Callable[[], AbstractContextManager[object]]


def attempt(setup: Setup, case: Case, mode: str, watch: Watch = nullcontext) -> dict[str, Any]:
    """One mode; where it fails, why, so that the modes after it have their turn. `watch` goes round the replies."""
    try:
        return compare(setup, case, MODES[mode], watch)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500], "ok": False}


def compare(setup: Setup, case: Case, mode: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """How many of the engine's replies are the reference's."""
    engine_class = importlib.import_module("tests.engine.harness").Engine
    args = {"max_model_len": MAX_MODEL_LEN, **({} if setup.is_small else CUDA), **mode}
    engine = engine_class(case.folder, **args)
    try:
        arrivals = {request_id: 3 * index for index, request_id in enumerate(case.prompts)}
        with watch():
            answers = engine.run(case.prompts, arrivals)
    finally:
        engine.shutdown()
    other = [request_id for request_id, (rows, _) in case.replies.items() if answers[request_id].rows != rows]
    wrong = [request_id for request_id in other if case.replies[request_id][1] >= LEAD]
    preempted = sum(each.trailer.num_preemptions for each in answers.values())
    figures = {"replies": len(answers), "equal": len(answers) - len(other), "undecided": len(other) - len(wrong)}
    return {**figures, "preemptions": preempted, "wrong": wrong, "ok": not wrong}
