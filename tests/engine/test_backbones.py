"""Replies of every backbone equal those of Hugging Face's class with the same weights."""

from pathlib import Path

import pytest
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.v1.worker.gpu.cudagraph_utils import has_compiled_submodule

from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.testing.checkpoints import make_prompt, make_prompts, write_checkpoint
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.small_vocabularies import families_with_conditions
from tests.tiers import by_night

pytestmark = pytest.mark.engine


# One key head stays a view of the projection where several heads are copied. 88 is no multiple of the three heads.
@pytest.mark.parametrize(
    ("backbone", "hidden", "heads", "kv_heads"),
    [
        ("qwen3", 88, 3, 1),
        *by_night(("qwen3", 128, 4, 2), ("llama", 128, 4, 2), ("qwen3", 128, 1, 1), ("llama", 128, 4, 1)),
        *by_night(("olmo2", 128, 4, 2), ("olmo2", 128, 4, 1)),
    ],
)
def test_replies_match_the_hugging_face_backbone(
    backbone: str, hidden: int, heads: int, kv_heads: int, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, TINY, "tiny", hidden=hidden, layers=2, backbone=backbone, heads=heads, kv_heads=kv_heads)
    reference = ReferenceModel(tmp_path, TINY, 512)
    prompts = {f"r{index}": make_prompt(TINY, index) for index in range(6)}
    with Engine(tmp_path, max_num_batched_tokens=64) as engine:
        norms = {type(module) for name, module in engine.model_state.model.named_modules() if name.endswith("norm")}
        answers = engine.run(prompts)
        alone = engine.run({"r3": prompts["r3"]})
    assert alone["r3"].rows == answers["r3"].rows
    assert norms == {RMSNorm}, "on one rank a norm is one kernel of vLLM's"
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == [row[: TINY.layout.num_output_streams] for row in rows]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("family", "backbone"), [(TINY, "olmo2"), *((family, "llama") for family in families_with_conditions().values())]
)
def test_compiled_backbone_replies_match_eager_replies(family: Family, backbone: str, tmp_path: Path) -> None:
    """Dynamo traces the model as on a GPU, and the traced code runs without further compilation."""
    folder = write_checkpoint(tmp_path, family, family.name, layers=2, backbone=backbone)
    prompts = make_prompts(family, 3)
    traced = {"mode": 2, "backend": "eager", "cudagraph_mode": "NONE"}
    replies = []
    for is_compiled, arguments in ((False, {}), (True, {"enforce_eager": False, "compilation_config": traced})):
        with Engine(folder, **arguments) as engine:
            assert has_compiled_submodule(engine.model_state.model) == is_compiled
            replies.append({name: answer.rows for name, answer in engine.run(prompts).items()})
    assert replies[0] == replies[1]
