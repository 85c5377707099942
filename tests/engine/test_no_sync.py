"""A decode step never waits for the device, so the host is free to launch the next step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stretto.engine.worker import model_state as state
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.slots import DeviceArrays
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompts
from tests.engine.harness import DEFAULTS, Answer, Engine
from tests.engine.plain_depth import PlainDepth
from tests.engine.syncs import counted
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import TRACKED_CSM, families_of_plugins
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine


def has_plain_depth(family: Family) -> bool:
    """Return True for the engine's own depth transformer, in a family with requests as long as an engine's."""
    return (
        family.max_model_len >= DEFAULTS["max_model_len"] and family.depth is not None and family.depth.network is None
    )


FAMILIES = {
    "tiny": TINY,
    "eight_streams": EIGHT_STREAMS,
    "modules": MODULES,
    "small_tracked_csm": TRACKED_CSM,
    **{name: family for name, family in families_of_plugins().items() if has_plain_depth(family)},
}
BY_NIGHT = [name for name in FAMILIES if name not in ("tiny", "eight_streams")]
NARROW = {"max_num_seqs": 5, "max_num_batched_tokens": 64}


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tables in host memory, but pin copies to the device."""

    def pinning(device: torch.device) -> DeviceArrays:
        arrays = DeviceArrays(device)
        arrays._is_pinning = True
        return arrays

    monkeypatch.setattr(state, "arrays_on", pinning)
    monkeypatch.setattr(state, "CpuDepth", PlainDepth)


def run(folder: Path, prompts: dict, is_async: bool) -> dict[str, Answer]:
    with Engine(folder, async_scheduling=is_async, **NARROW) as engine:
        return engine.run(prompts)


def shortened(prompt: Prompt) -> Prompt:
    """Return a prompt for a reply of few rows, for the day: kernels are interpreted."""
    text, audio = prompt.sampling.text, prompt.sampling.audio
    text = replace(text, max_rows=min(text.max_rows, 8))
    return replace(prompt, sampling=replace(prompt.sampling, text=text, audio=replace(audio, max_rows=12)))


@pytest.mark.parametrize(
    ("name", "is_async"),
    [
        pytest.param("tiny", True, id="tiny"),
        *by_night(("eight_streams", False), *((name, True) for name in BY_NIGHT), ids=["eight_streams", *BY_NIGHT]),
    ],
)
def test_steps_never_block_the_host(name: str, is_async: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    write = write_modules if family is MODULES else write_checkpoint
    backbone = {"backbone": "llama"} if family.mechanism.conditions else {}
    folder = write(tmp_path, family, name, layers=1, **backbone)  # every layer is vLLM's own
    # Each task, guided and not, greedy and drawn, by each schedule.
    prompts = make_prompts(family, 4)
    if name == "tiny":
        prompts = {i: shortened(prompt) for i, prompt in prompts.items()}
    expected = run(folder, prompts, is_async)
    as_on_a_gpu(monkeypatch)
    begun, note_audio = dict[str, int](), RunSlots.note_audio
    monkeypatch.setattr(RunSlots, "note_audio", lambda slots, starts: (begun.update(starts), note_audio(slots, starts)))
    engine = Engine(folder, async_scheduling=is_async, **NARROW)
    assert not engine.model_state.slots.is_exact
    try:
        with counted(monkeypatch) as seen:
            answers = engine.run(prompts)
    finally:
        engine.shutdown()
    assert {i: answer.rows for i, answer in answers.items()} == {i: answer.rows for i, answer in expected.items()}
    assert not seen
    assert begun.keys() == {i for i, prompt in prompts.items() if len(family.task(prompt.task).segments) > 1}


def test_blocking_operations_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "x[0].item(), x[x > 1].sum(), bool(x.any()), x.tolist(), x.repeat_interleave(x), x[::2].pin_memory()"
    script = f"def ask(x):\n    return {asked}\n"
    place = Path(state.__file__)
    scope: dict = {}
    exec(compile(script, str(place.with_name("asking.py")), "exec"), scope)
    with counted(monkeypatch) as seen:
        scope["ask"](torch.arange(3))
    noticed = {what.split(" at ")[0] for what in seen}
    assert {"item", "index", "__bool__", "tolist", "repeat_interleave", "pin_memory in pieces"} <= noticed
