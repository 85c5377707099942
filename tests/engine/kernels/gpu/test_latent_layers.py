"""Models with latent frames call vLLM's fused operators on a GPU, because most of their layers are not compiled."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.ir import ops
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from stretto.engine.models import latents
from tests.engine.harness import Engine
from tests.engine.kernels.gpu.operators import Count
from tests.engine.test_devices import GPU, RELEASES, on_a_gpu
from tests.tiers import by_night

pytestmark = pytest.mark.engine
NUM_ROWS = 4
Run = Callable[[], object]
LLAMA_LAYER = Counter({"mm": 4, "fused_add_rms_norm": 2, "rotary_embedding": 1, "silu_and_mul": 1})
# Queries and keys are copied for the rotation.
LOCAL_ATTENTION = Counter({"clone": 2, "local_attention": 1})
POCKET_LAYER = Counter({"mm": 4, "clone": 3, "native_layer_norm": 2, "add": 2, "rotary_embedding": 1, "gelu": 1})


def rows(width: int, number: int = NUM_ROWS) -> torch.Tensor:
    return torch.empty(number, width, device=GPU)


def positions(number: int = NUM_ROWS) -> torch.Tensor:
    return torch.empty(number, dtype=torch.int64, device=GPU)


def voxcpm2(model: Any) -> list[Run]:
    """Return runs of the second layer of the backbone and of the patch encoder."""
    x, number = rows(model.config.hidden_size), NUM_ROWS * (1 + model.head.num_latents)
    tokens, layers = rows(model.config.encoder["width"], number), model.patches.transformer.layers
    return [
        lambda: model.model.layers[1](positions(), x, x),
        lambda: layers[1](positions(number), tokens, tokens, number // NUM_ROWS),
    ]


def pocket_tts(model: Any) -> list[Run]:
    """Return a run of a layer of the backbone."""
    return [lambda: model.model.layers[1](positions(), rows(model.config.hidden_size))]


def vibevoice(model: Any) -> list[Run]:
    """Return a run of a connector; the backbone is compiled on a GPU."""
    return [lambda: model.acoustic_connector(rows(model.num_numbers))]


def operators(run: Run) -> Counter[str]:
    """Return the operators of a run that launch work."""
    native = (op.set_priority(["native"]) for op in (ops.rms_norm, ops.fused_add_rms_norm))
    with torch.no_grad(), next(native), next(native), Count() as counted:
        run()
    return +counted.operators


@pytest.mark.parametrize(
    ("runs_of", "native", "fused"),
    [
        (pocket_tts, [29], [POCKET_LAYER]),
        *by_night(
            (voxcpm2, [37, 40], [LLAMA_LAYER, LLAMA_LAYER + LOCAL_ATTENTION]),
            (vibevoice, [8], [Counter({"addmm": 2, "rms_norm": 1})]),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_layers_outside_torch_compile_are_fused(
    runs_of: Callable[[Any], list[Run]],
    native: list[int],
    fused: list[Counter[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`native` are the numbers of operators with vLLM's defaults, which leave the fusion to torch.compile."""
    engine = Engine(RELEASES[runs_of.__name__](tmp_path), max_num_seqs=4, max_model_len=96)
    monkeypatch.setattr(Attention, "forward", lambda self, query, key, value, *args, **kwargs: query)
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            model: Any = state.model
            for module in model.modules():
                if isinstance(module, RMSNorm | SiluAndMul | RotaryEmbedding):
                    module._forward_method = module.forward_native
            runs = runs_of(model)
            assert [operators(run).total() for run in runs] == native
            model.latent_readout(state.rules)
            assert [operators(run) for run in runs] == fused
    finally:
        engine.shutdown()


def test_batch_invariant_models_use_products_for_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(RELEASES["pocket_tts"](tmp_path), max_num_seqs=4, max_model_len=96)
    replaced = list[Any]()
    monkeypatch.setattr(latents, "use_row_invariant_products", replaced.append)
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            for is_invariant in (False, True):
                monkeypatch.setattr(latents, "envs", SimpleNamespace(VLLM_BATCH_INVARIANT=is_invariant))
                state.model.latent_readout(state.rules)
                assert replaced == [state.model] * is_invariant
    finally:
        engine.shutdown()
