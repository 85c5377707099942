"""Operators of layers with latent frames on a GPU: vLLM's fused ones, because most of the layers are not compiled."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.ir import ops
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from stretto.engine.worker.model_state import SpeechModelState
from tests.engine.devices import GPU, on_a_gpu
from tests.engine.harness import Engine
from tests.engine.kernels.gpu.operators import Count

NUM_ROWS = 4
Run = Callable[[], object]


def rows(width: int, number: int = NUM_ROWS) -> torch.Tensor:
    return torch.empty(number, width, device=GPU)


def positions(number: int = NUM_ROWS) -> torch.Tensor:
    return torch.empty(number, dtype=torch.int64, device=GPU)


def operators(run: Run) -> Counter[str]:
    """Return the operators of a run that launch work."""
    native = (op.set_priority(["native"]) for op in (ops.rms_norm, ops.fused_add_rms_norm))
    with torch.no_grad(), next(native), next(native), Count() as counted:
        run()
    return +counted.operators


@contextmanager
def latents_on_a_gpu(release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpeechModelState]:
    """Return the state of a worker of a model with latents, as if on a GPU."""
    engine = Engine(release, max_num_seqs=4, max_model_len=96)
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            yield state
    finally:
        engine.shutdown()


def assert_layers_are_fused(
    release: Path,
    runs_of: Callable[[Any], list[Run]],
    native: list[int],
    fused: list[Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Assert that layers outside torch.compile launch fused operators.

    Args:
        runs_of: Function of (model) that returns functions, each of which runs a layer.
        native: Numbers of operators of the runs with vLLM's defaults, which leave the fusion to torch.compile.
        fused: Operators of the runs in the engine.
    """
    monkeypatch.setattr(Attention, "forward", lambda self, query, key, value, *args, **kwargs: query)
    with latents_on_a_gpu(release, monkeypatch) as state:
        model: Any = state.model
        for module in model.modules():
            if isinstance(module, RMSNorm | SiluAndMul | RotaryEmbedding):
                module._forward_method = module.forward_native
        runs = runs_of(model)
        assert [operators(run).total() for run in runs] == native
        model.latent_readout(state.rules)
        assert [operators(run) for run in runs] == fused
