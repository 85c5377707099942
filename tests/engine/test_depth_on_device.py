"""Replies of an engine whose steps and depth transformer are interpreted GPU kernels, against the slow reference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks.gpu.parity import LEAD, answer
from stretto.engine.kernels.gpu.depth import DeviceDepth, DeviceSteppedDepth
from stretto.engine.models.multi_stream import depth_network
from stretto.engine.worker import model_state as state
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompts
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import BY_STEP, CSM, QWEN3_TTS
from tests.tiers import by_night

pytestmark = pytest.mark.engine
FAMILIES = {"small_csm": CSM, "small_qwen3_tts": QWEN3_TTS, "small_by_step": BY_STEP}
NUM_FRAMES = 2  # of interpreted kernels, each of which takes a second
NUM_PROMPTS = 2
STEP_KERNELS = {"additional_config": {"step_kernels": True}}


def shortened(prompt: Prompt) -> Prompt:
    audio = replace(prompt.sampling.audio, max_rows=NUM_FRAMES)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio))


def unpacked(folder: Path, family: Family) -> Any:
    """Return the depth transformer of a checkpoint; vLLM packs the weights that it multiplies with on a CPU."""
    layout = family.layout
    tensors = load_file(folder / "model.safetensors")
    begin = "depth."
    mine = {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}
    num_first, width = mine["first_head"].shape
    num_ends = num_first - len(layout.audio[0])
    sizes = [len(ids) for ids in layout.audio]
    assert family.depth is not None
    network: Any = depth_network(family.depth, sizes, num_ends, width, None)
    network.load_weights(mine.items())
    return network


@pytest.mark.parametrize("name", ["small_csm", *by_night("small_qwen3_tts", "small_by_step")])
def test_replies_equal_the_slow_reference(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    folder = write_checkpoint(tmp_path, family, name, layers=1)
    prompts = {request: shortened(prompt) for request, prompt in make_prompts(family, NUM_PROMPTS).items()}
    expected = answer(folder, family, prompts).expected.replies
    networks = list[Any]()
    for cpu_class, device_class in {"CpuDepth": DeviceDepth, "CpuSteppedDepth": DeviceSteppedDepth}.items():

        def make(depth: Any, device_class: Any = device_class) -> Any:
            networks.append(device_class(unpacked(folder, family)))
            return networks[-1]

        monkeypatch.setattr(state, cpu_class, make)
    with Engine(folder, max_num_seqs=4, max_num_batched_tokens=64, **STEP_KERNELS) as engine:
        answers = engine.run(prompts)
    assert len(networks) == 1
    for request, (rows, lead) in expected.items():
        assert lead > LEAD, request
        assert answers[request].rows == rows, request
