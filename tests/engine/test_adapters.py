"""Replies with LoRA adapters, mixed in one batch, equal the reference with the adapter merged into the weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stretto.config import EngineConfig
from stretto.engine.host import vllm_config
from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from stretto.testing.reference import ReferenceModel
from tests import published_csm as csm
from tests.engine.adapters import write_adapter, write_merged
from tests.engine.harness import DEFAULTS, Engine
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.reference.module_lm import ModuleReference
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine
NAMES = (None, "narrator", "whisperer")
LENGTH = 160
# A budget below most prompts, four slots, and blocks for little more than one pair.
TIGHT = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 9}


class Adapted:
    """A random checkpoint with two adapters, and the reference's replies with each adapter and without one.

    Attributes:
        family: Family whose rows come from heads, or MODULES, whose rows also come from MTP modules.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        self.family = family
        kind, write = (ModuleReference, write_modules) if family is MODULES else (ReferenceModel, write_checkpoint)
        for name in ("base", "merged"):
            (folder / name).mkdir()
        self.checkpoint = folder / "base"
        write(self.checkpoint, family, family.name)
        ranks = {"narrator": 4, "whisperer": 8}
        self.folders = {
            name: write_adapter(folder / name, self.checkpoint, seed, rank)
            for seed, (name, rank) in enumerate(ranks.items())
        }
        checkpoints: dict[str | None, Path] = {None: self.checkpoint}
        for name, adapter in self.folders.items():
            checkpoints[name] = write_merged(folder / "merged" / name, self.checkpoint, adapter)
        self._references = {name: kind(path, family, LENGTH) for name, path in checkpoints.items()}

    def reply(self, prompt: Prompt, guess: list[list[int]]) -> list[list[int]]:
        rows, lead = self._references[prompt.adapter].reply(prompt, guess=guess)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        return [row[: self.family.layout.num_output_streams] for row in rows]


@pytest.fixture(scope="module", params=[pytest.param(EIGHT_STREAMS, id="heads"), *by_night(MODULES, ids=["modules"])])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(tmp_path_factory.mktemp("adapted"), request.param)


def test_one_batch_mixes_adapters(adapted: Adapted) -> None:
    """Each prompt runs with each adapter and without one: guided and unguided, evicted, and from the cache."""
    prompts = {
        f"{name} {index}": replace(make_prompt(adapted.family, index), adapter=name)
        for index in (1, 2, 3)
        for name in NAMES
    }
    assert len({prompt.sampling.guidance_scale != 1.0 for prompt in prompts.values()}) == 2
    with Engine(
        adapted.checkpoint, adapters=adapted.folders, async_scheduling=True, max_model_len=LENGTH, **TIGHT
    ) as engine:
        crowded = engine.run(prompts)
        again = engine.run(prompts, arrivals={request_id: 9 * at for at, request_id in enumerate(prompts)})
        assert engine.is_clean()
    expected = {name: adapted.reply(prompt, crowded[name].rows) for name, prompt in prompts.items()}
    assert len(set(map(str, expected.values()))) == len(expected), "an adapter changes nothing"
    for request_id, rows in expected.items():
        assert crowded[request_id].rows == again[request_id].rows == rows, request_id
    assert any(answer.trailer.num_preemptions for answer in crowded.values())


@pytest.mark.nightly
def test_adapter_leaves_the_depth_transformer_unchanged(tmp_path: Path) -> None:
    """Adapters do not change the depth transformer, although its layers have the same names as the backbone's."""
    model = csm.make_model()
    reference = csm.CsmReference(model)
    checkpoint, _ = csm.convert(tmp_path, model)
    prompt = csm.prompt_of(1, num_frames=9)
    plain = reference.reply(prompt)
    folder = write_adapter(tmp_path / "narrator", checkpoint, 0)
    merged = load_file(write_merged(tmp_path / "merged", checkpoint, folder) / "model.safetensors")
    for name, weight in model.backbone_model.layers.named_parameters():
        weight.copy_(merged[f"model.layers.{name}"])
    changed = reference.reply(prompt)
    assert plain != changed
    with Engine(checkpoint, adapters={"narrator": folder}, max_model_len=LENGTH) as engine:
        answers = engine.run({"plain": prompt, "changed": replace(prompt, adapter="narrator")})
    for name, frames in (("plain", plain), ("changed", changed)):
        assert answers[name].rows[: len(frames)] == frames, name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, EIGHT_STREAMS, "eight_streams")


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SECOND = FIRST.replace("lora_A", "lora_B")
HEAD = "base_model.model.lm_head.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors | {HEAD: torch.zeros(4, 128)}, "got base_model.model.lm_head.lora_A.weight"),
        (lambda tensors: {FIRST.replace("rs.0", "rs.9"): tensors[FIRST]}, "model.layers.0 to 2, .* got .*layers.9"),
        (
            lambda tensors: tensors | {FIRST: tensors[FIRST][:, :-1].contiguous()},
            r"shape \[r, 128\], got \[4, 127\]",
        ),
        (
            lambda tensors: tensors | {FIRST: tensors[FIRST][:3].contiguous()},
            r"of rank 4 for .*q_proj, got .*'A': 3",
        ),
        (lambda tensors: {FIRST: tensors[FIRST]}, r"lora_A and lora_B of rank 4 for .*q_proj, got ranks {'A': 4}"),
        (
            lambda tensors: {
                FIRST: tensors[FIRST][:3].contiguous(),
                SECOND: tensors[SECOND][:, :3].contiguous(),
            },
            r"of rank 4 for .*q_proj, got ranks {'A': 3, 'B': 3}",
        ),
        (lambda tensors: {}, "has no tensors"),
    ],
)
def test_mismatched_adapters_are_refused(checkpoint: Path, tmp_path: Path, change: Change, message: str) -> None:
    folder = write_adapter(tmp_path / "narrator", checkpoint, 0)
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=f"adapters.narrator: .*{message}"):
        vllm_config(EngineConfig(checkpoint, DEFAULTS, adapters={"narrator": folder}))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"r": 4}', "cannot be read: Missing required"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"r": NaN, "lora_alpha": 8, "target_modules": []}', "r: expected an integer, got nan"),
        ('{"r": 4, "lora_alpha": 8, "target_modules": [], "alpha_pattern": [8]}', "cannot be read"),
        (
            '{"r": 4, "lora_alpha": 8, "target_modules": [], "rank_pattern": {"(.*)*!": 8}}',
            r"expected a module name made of letters, digits, _ and ., got '\(\.\*\)\*!'",
        ),
        ('{"r": 4, "lora_alpha": 8, "target_modules": [], "use_dora": true}', "DoRA"),
        ('{"r": 4, "lora_alpha": 8, "target_modules": [], "bias": "all"}', "bias"),
        ('{"r": 513, "lora_alpha": 8, "target_modules": []}', "ranks of at most 512, got 513"),
    ],
)
def test_unsupported_adapters_are_refused(checkpoint: Path, tmp_path: Path, said: str, message: str) -> None:
    folder = write_adapter(tmp_path / "narrator", checkpoint, 0)
    (folder / "adapter_config.json").write_text(said)
    with pytest.raises(CheckpointError, match=message):
        vllm_config(EngineConfig(checkpoint, DEFAULTS, adapters={"narrator": folder}))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_files_must_be_regular_files(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "narrator", checkpoint, 0)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match=rf"adapters.narrator: .*{name}: expected a regular file"):
        vllm_config(EngineConfig(checkpoint, DEFAULTS, adapters={"narrator": folder}))
