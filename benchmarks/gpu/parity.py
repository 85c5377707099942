"""Jobs that compare codes from the device with references.

In fp32, a job compares one mode of the engine with a slow reference, whose replies are in the bundle
(`stored_replies.py`). In bf16, a job compares runs with CUDA graphs with runs without them. Except for the arguments
that define a mode, and a small cache, engines have those that `make-repository --gpu` writes. The jobs use randomly
initialised checkpoints of two families, and the bundled model if its weights are present. If the reference's two best
candidates are nearly equal (`LEAD`), the device may choose the other one. Such replies are counted, but are not errors.

Another job detects waits within a step. vLLM lets torch raise an error at the first call that synchronises with the
device. The job also lists the kernels that Triton compiles after the engine has started. If one of them is Stretto's,
this is an error, because its specialisation would depend on the batch.
"""

import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.stored_replies import FOLDER, Recalled, Replies, recall
from benchmarks.harness import CHECKPOINT
from stretto.convert.profiles import engine_arguments
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.family.plugin import config_at
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint

MODE = "FULL_DECODE_ONLY, async"
LEAD = 3e-4  # difference of logits; fp32 sums in another order differ by about 1e-5
MAX_MODEL_LEN = 160
CHUNKED = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 9}
SIZES = [1, 2, 4, 8, 16, 32]
FRAMES = ("CSM", "llama"), ("QWEN3_TTS", "qwen3")  # small vocabularies, and the backbones of their releases


def graphs(mode: str, compiler: int = 0) -> dict[str, Any]:
    """Return engine arguments for one of vLLM's `cudagraph_mode`s, with torch.compile (3) or without (0)."""
    config = {"mode": compiler, "cudagraph_mode": mode, "cudagraph_capture_sizes": SIZES}
    return {"enforce_eager": False, "async_scheduling": True, "compilation_config": config}


# A small KV cache of fixed size, so that jobs can run side by side.
MEMORY: dict[str, Any] = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30}
# In float32, which FlashAttention does not support, to compare with a reference.
CUDA: dict[str, Any] = {"dtype": "float32", "attention_backend": "TRITON_ATTN", **MEMORY}
MODES: dict[str, dict[str, Any]] = {
    "eager": {"async_scheduling": False},
    "FULL_DECODE_ONLY, async": graphs("FULL_DECODE_ONLY"),
    "FULL_DECODE_ONLY, async, chunked, preempted": {**graphs("FULL_DECODE_ONLY"), **CHUNKED},
    "FULL_AND_PIECEWISE, async": graphs("FULL_AND_PIECEWISE", compiler=3),
}
WITHOUT_GRAPHS = {"enforce_eager": True, "compilation_config": {}}  # for all modes, in a dry run
EVERY_SIZE = list(range(1, 17))  # a graph for every number of rows, so that no product is padded


def deployed(checkpoint: Path, family: Family) -> dict[str, Any]:
    """Return the engine arguments that `make-repository --gpu` writes for a checkpoint."""
    arguments = engine_arguments(config_at(checkpoint), family, is_on_gpu=True)
    longest = min(arguments["max_model_len"], MAX_MODEL_LEN)
    return {name: value for name, value in arguments.items() if name != "max_waiting"} | {"max_model_len": longest}


def mode_arguments(setup: Setup, case: "Case", mode: str) -> dict[str, Any]:
    """Return the arguments of an engine in one of `MODES`: those of `deployed`, with the mode's changes."""
    base = deployed(case.folder, case.family)
    if setup.is_small:
        return {**base, "dtype": "float32", **MODES[mode], **WITHOUT_GRAPHS}
    return {**base, **CUDA, **MODES[mode]}


def half_arguments(setup: Setup, checkpoint: Path, family: Family, *, has_graphs: bool) -> dict[str, Any]:
    """Return the arguments of a bfloat16 engine: those of `deployed`, with a small cache, with or without graphs."""
    arguments = {**deployed(checkpoint, family), "async_scheduling": False}
    if setup.is_small:
        return {**arguments, "dtype": "float32", **WITHOUT_GRAPHS}
    arguments |= {**MEMORY, "dtype": "bfloat16"}
    if not has_graphs:
        return {**arguments, "enforce_eager": True}
    compilation = {**arguments.get("compilation_config", {}), "cudagraph_capture_sizes": EVERY_SIZE}
    return {**arguments, "compilation_config": compilation}


@dataclass(frozen=True)
class Case:
    """Checkpoint with prompts, and the slow reference's replies to them."""

    family: Family
    folder: Path
    prompts: dict[str, Prompt]
    expected: Recalled

    @property
    def name(self) -> str:
        return self.family.name


def answer(
    folder: Path,
    family: Family,
    prompts: dict[str, Prompt],
    reference: str = "stretto.testing.reference:ReferenceModel",
) -> Case:
    """Return the case of a checkpoint; compute the slow reference's replies unless they are stored."""

    def compute() -> Replies:
        module, reference_class = reference.split(":")
        reference_model = getattr(importlib.import_module(module), reference_class)
        computed = reference_model(folder, family, MAX_MODEL_LEN)
        width = family.layout.num_output_streams
        replies: Replies = {}
        for request_id, prompt in prompts.items():
            rows, lead = computed.reply(prompt)
            replies[request_id] = ([row[:width] for row in rows], lead)
        return replies

    return Case(family, folder, prompts, recall(family.name, folder, prompts, compute))


def cases(setup: Setup, folder: Path) -> Iterator[Case]:
    """Yield two randomly initialised checkpoints, then the bundled model."""
    for family, name in families():
        checkpoint = write_checkpoint(folder / family.name, family, name)
        yield answer(checkpoint, family, prompts_of(setup, family))
    if (CHECKPOINT / "model.safetensors").exists() and not setup.is_small:
        yield answer(CHECKPOINT, replace(TINY, name="bundled"), bundled_prompts())


def modules(setup: Setup, folder: Path) -> Iterator[Case]:
    """Yield a random checkpoint with multi-token-prediction modules, which give several rows per step."""
    name = "modules"
    family = importlib.import_module("tests.speech_families").MODULES
    checkpoint = importlib.import_module("tests.random_checkpoints").write_modules(folder, family, name)
    yield answer(checkpoint, family, prompts_of(setup, family), "tests.reference.module_lm:ModuleReference")


def families() -> tuple[tuple[Family, str], ...]:
    """Return the families of the randomly initialised checkpoints and their names in config.json."""
    eight_streams = importlib.import_module("tests.speech_families").EIGHT_STREAMS
    return (TINY, "tiny"), (eight_streams, "eight_streams")


def prompts_of(setup: Setup, family: Family) -> dict[str, Prompt]:
    """Return twelve prompts, or four in a dry run."""
    return importlib.import_module("stretto.testing.checkpoints").make_prompts(family, 4 if setup.is_small else 12)


def bundled_prompts() -> dict[str, Prompt]:
    """Return three sentences for the bundled model."""
    from stretto.preprocessing.request import Preprocessor, RawRequest

    preprocessor = Preprocessor(CHECKPOINT)
    texts = {"one": "it is nine.", "two": "open the door, please.", "three": "the train leaves at ten."}
    prompts = {name: preprocessor.prepare(RawRequest(text=text, task="tts")) for name, text in texts.items()}
    return {name: replace(prompt, sampling=replace(prompt.sampling, seed=1)) for name, prompt in prompts.items()}


def run(setup: Setup, mode: str) -> Iterator[dict[str, Any]]:
    """Yield a result line for each checkpoint."""
    be_exact()
    with tempfile.TemporaryDirectory() as folder:
        for case in itertools.islice(cases(setup, Path(folder)), _some(setup, mode)):
            yield {"checkpoint": case.name, "mode": mode, **compare(setup, case, mode)}


def frames(setup: Setup, folder: Path) -> Iterator[Case]:
    """Yield random checkpoints of families whose depth transformer runs inside the graph of a step."""
    small = importlib.import_module("tests.small_vocabularies")
    for attribute, backbone in FRAMES[: 1 if setup.is_small else None]:
        family = getattr(small, attribute)
        checkpoint = write_checkpoint(folder / attribute, family, f"small_{attribute.lower()}", backbone=backbone)
        few = dict(itertools.islice(prompts_of(setup, family).items(), 1 if setup.is_small else 6))
        yield answer(checkpoint, family, few)  # the reference is slow


def higgs_audio(setup: Setup, folder: Path) -> Iterator[Case]:
    """Yield a randomly initialised Higgs Audio release, whose audio rows have their own layers."""
    random_models = importlib.import_module("plugins.higgs_audio.lab.random_higgs_audio")
    published = importlib.import_module("plugins.higgs_audio.tests.published_higgs_audio")
    scales = (1.0, 2.0, 1.0, 1.5)
    model = random_models.make_model(num_codebooks=4, num_codes=16, seed=7)
    checkpoint, family, reference = published.convert(folder, model)
    prompts = {f"r{index}": published.make_prompt(family, index, scale) for index, scale in enumerate(scales)}

    def compute() -> Replies:
        expected: Replies = {}
        for request_id, prompt in prompts.items():
            rows, lead = reference.naive(prompt)
            expected[request_id] = published.said(family, rows), lead
        return expected

    yield Case(family, checkpoint, prompts, recall(family.name, checkpoint, prompts, compute))


CASES: dict[str, Callable[[Setup, Path], Iterator[Case]]] = {
    "cases": cases,
    "modules": modules,
    "frames": frames,
    "higgs_audio": higgs_audio,
}


def run_others(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Yield a line for each case of `CASES[name]`, with graphs in steps without prompts."""
    be_exact()
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[name](setup, Path(folder)):
            yield {"checkpoint": case.name, "mode": MODE, **compare(setup, case, MODE)}


@dataclass(frozen=True)
class LatentCase:
    """Release with prompts; for some prompts, the expected latents [T, D] and the error bound of each frame [T]."""

    folder: Path
    prompts: dict[str, Prompt]
    expected: dict[str, tuple[np.ndarray, np.ndarray]]


def run_latents(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a line for each random release that compares batched and unbatched latents with a reference.

    The reference is the authors' code or a slow implementation, with the error bounds from the CPU tests. Batched and
    unbatched replies must be bit-identical.
    """
    be_exact()
    mode = "FULL_DECODE_ONLY, async, chunked, preempted"
    args = {**MODES[mode], **WITHOUT_GRAPHS} if setup.is_small else {**CUDA, **MODES[mode]}
    for name, make in itertools.islice(LATENTS.items(), 1 if setup.is_small else None):
        with tempfile.TemporaryDirectory() as folder:
            case = make(Path(folder))
            together = replies(case.folder, args, case.prompts)
            alone = {
                name_of_reply: replies(case.folder, args, {name_of_reply: case.prompts[name_of_reply]})[name_of_reply]
                for name_of_reply in case.expected
            }
        frames = {name_of_reply: _latents(alone[name_of_reply].rows) for name_of_reply in alone}
        wrong = [
            name_of_reply
            for name_of_reply, (latents, bound) in case.expected.items()
            if _exceeds(frames[name_of_reply], latents, bound)
        ]
        different = [
            name_of_reply for name_of_reply in alone if alone[name_of_reply].rows != together[name_of_reply].rows
        ]
        preempted = sum(answered.trailer.num_preemptions for answered in together.values())
        figures = {"replies": len(together), "preemptions": preempted, "different": different, "wrong": wrong}
        yield {"checkpoint": name, "mode": mode, **figures, "ok": not wrong and not different}


def _latents(rows: list[list[int]]) -> np.ndarray:
    """Return the latents [T, D] of a reply's frames. Rows whose words are all 0 have no latent and are skipped."""
    words = np.array(rows, np.int32)[:, 1:]
    return np.ascontiguousarray(words[words.any(1)]).view(np.float32)


def _exceeds(actual: np.ndarray, latents: np.ndarray, bound: np.ndarray) -> bool:
    """Return True if a latent differs by more than its bound, or if there are too few latents."""
    number, size = latents.shape
    return len(actual) < number or bool((np.abs(actual[:number, :size] - latents).max(1) > bound).any())


def _bound(latents: np.ndarray, nudged: np.ndarray) -> np.ndarray:
    """Return the permitted difference [T] of latents [T, D], as in the CPU tests."""
    nudges = importlib.import_module("tests.engine.nudges")
    bound: np.ndarray = nudges.SPREAD * nudged + nudges.SHARE * latents.std()
    return bound


def _pocket_tts(folder: Path) -> LatentCase:
    release = importlib.import_module("plugins.pocket.tests.pocket_release")
    raw_request = importlib.import_module("stretto.preprocessing.request").RawRequest
    checkpoint = release.convert_release(folder, "english")
    preprocessor = importlib.import_module("stretto.preprocessing.request").Preprocessor(checkpoint)
    reply = release.reply("english")
    texts = {"own": (reply.text, reply.seed), "r0": ("one more", 0), "r1": ("and a third", 1)}
    prompts = {
        name: release.seeded(preprocessor.prepare(raw_request(text=text)), seed) for name, (text, seed) in texts.items()
    }
    return LatentCase(checkpoint, prompts, {"own": (reply.latents, _bound(reply.latents, reply.nudged))})


def _voxcpm2(folder: Path) -> LatentCase:
    release = importlib.import_module("plugins.voxcpm2.tests.voxcpm2_release")
    checkpoint = release.convert_release(folder)
    preprocessor = importlib.import_module("stretto.preprocessing.request").Preprocessor(checkpoint)
    prompts = {mode: preprocessor.prepare(release.request(mode)) for mode in release.MODES}
    replies = {mode: release.reply("plain", mode) for mode in prompts}
    expected = {mode: (reply.latents, _bound(reply.latents, reply.nudged)) for mode, reply in replies.items()}
    return LatentCase(checkpoint, prompts, expected)


def _vibevoice(folder: Path) -> LatentCase:
    release = importlib.import_module("plugins.vibevoice.tests.vibevoice_release")
    checkpoint = release.convert_release(folder, "long")
    model = release.model_of("long")
    expected = {}
    prompts = {f"r{index}": release.make_prompt(index) for index in range(3)}
    for name in ("r0", "r1"):
        nudges = [
            1e-6 * torch.randn(release.NUM_NUMBERS, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
        ]
        rows = prompts[name].rows
        sampling = prompts[name].sampling
        arguments = rows, sampling.seed, sampling.guidance_scale, sampling.latents.steps, sampling.audio.max_rows
        (_, latents, *_), *nudged = (release.Reference(model, nudge).reply(*arguments) for nudge in (None, *nudges))
        spread = np.max([release.spread_of(nudged_reply[1], latents) for nudged_reply in nudged], 0)
        expected[name] = latents, _bound(latents, spread)
    return LatentCase(checkpoint, prompts, expected)


LATENTS = {"pocket_tts": _pocket_tts, "voxcpm2": _voxcpm2, "vibevoice": _vibevoice}


def _some(setup: Setup, mode: str) -> int | None:
    """Return the number of checkpoints to run, None for all. Without graphs in a dry run, one is enough."""
    return 1 if setup.is_small and mode != "eager" and "preempted" not in mode else None


def be_exact() -> None:
    """Disable TF32 in torch, and in Triton, whose attention would use it by default."""
    os.environ["TRITON_F32_DEFAULT"] = "ieee"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


Watch = Callable[[], AbstractContextManager[object]]


def compare(setup: Setup, case: Case, mode: str, watch: Watch = nullcontext) -> dict[str, Any]:
    """Generate replies inside `watch` and return the number that equals the reference."""
    expected = case.expected.replies
    answers = replies(case.folder, mode_arguments(setup, case, mode), case.prompts, watch)
    other = [request_id for request_id, (rows, _) in expected.items() if answers[request_id].rows != rows]
    wrong = [request_id for request_id in other if expected[request_id][1] >= LEAD]
    preempted = sum(answered.trailer.num_preemptions for answered in answers.values())
    figures = {"replies": len(answers), "equal": len(answers) - len(other), "undecided": len(other) - len(wrong)}
    is_stored = case.expected.is_stored
    return {**figures, "preemptions": preempted, "wrong": wrong, "stored": is_stored, "ok": not wrong}


def replies(folder: Path, args: dict[str, Any], prompts: dict[str, Prompt], watch: Watch = nullcontext) -> Any:
    """Return an engine's replies to prompts that arrive one after another."""
    args = {"max_model_len": MAX_MODEL_LEN, **args}
    engine = importlib.import_module("tests.engine.harness").Engine(folder, **args)
    try:
        with watch():
            return engine.run(prompts, {request_id: 3 * index for index, request_id in enumerate(prompts)})
    finally:
        engine.shutdown()


def run_half(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a line for each randomly initialised checkpoint that compares bfloat16 with and without graphs."""
    for family, name in itertools.islice(families(), _some(setup, "bfloat16")):
        with tempfile.TemporaryDirectory() as folder:
            hidden = 64 if setup.is_small else 256  # heads of 64, which FlashAttention 3 supports
            checkpoint = write_checkpoint(Path(folder), family, name, hidden=hidden)
            prompts = prompts_of(setup, family)
            eager, captured = (
                replies(checkpoint, half_arguments(setup, checkpoint, family, has_graphs=has_graphs), prompts)
                for has_graphs in (False, True)
            )
        first = {
            request_id: _first_difference(eager[request_id].rows, captured[request_id].rows) for request_id in eager
        }
        different = {request_id: row for request_id, row in first.items() if row is not None}
        figures = {"replies": len(first), "equal": len(first) - len(different), "first_difference": different}
        yield {"checkpoint": family.name, "mode": "bfloat16, graphs = eager", **figures, "ok": not different}


def _first_difference(one: list[list[int]], other: list[list[int]]) -> int | None:
    pairs = enumerate(zip(one, other, strict=False))
    shorter = None if len(one) == len(other) else min(len(one), len(other))
    return next((index for index, (a, b) in pairs if a != b), shorter)


OURS = "stretto."


@contextmanager
def compiled(names: list[str]) -> Iterator[None]:
    """Append to `names` the module and name of each kernel that Triton compiles during the `with` block."""
    from triton import knobs

    former = knobs.runtime.jit_post_compile_hook

    def note(**kwargs: Any) -> Any:
        function = kwargs["fn"]
        names.append(f"{function.module}.{function.name}")
        return None if former is None else former(**kwargs)

    knobs.runtime.jit_post_compile_hook = note
    try:
        yield
    finally:
        knobs.runtime.jit_post_compile_hook = former


def run_waits(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield one result line, whose error names a synchronising call.

    Only CUDA has such calls, so a dry run only exercises the code. The job sets VLLM_GPU_SYNC_CHECK, which vLLM reads
    on import.
    """
    names: list[str] = []
    be_exact()
    with tempfile.TemporaryDirectory() as folder:
        case = next(cases(setup, Path(folder)))
        figures = compare(setup, case, MODE, lambda: compiled(names))
    ours = [name for name in names if name.startswith(OURS)]
    yield {"mode": MODE, **figures, "compiled": names, "ok": figures["ok"] and not ours}


def store_all(folder: Path, is_small: bool = False) -> Iterator[str]:
    """Store the replies of the slow references of all jobs in `folder`; yield the names of the cases."""
    os.environ[FOLDER] = str(folder)
    setup = Setup("cpu" if is_small else "cuda", folder)
    for make in CASES.values():
        with tempfile.TemporaryDirectory() as scratch:
            yield from (case.name for case in make(setup, Path(scratch)))


if __name__ == "__main__":
    for case_name in store_all(Path(sys.argv[1])):
        print(case_name, flush=True)
