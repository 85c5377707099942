"""Complete weight loading.

vLLM refuses unknown tensors and parameters without any loaded tensor. For fused parameters, such as query, key and
value projections, one loaded part satisfies it, and the other parts keep their initial values.
"""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

from stretto.errors import CheckpointError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EXPERTS = {"w13_weight": ("gate_proj", "up_proj"), "w2_weight": ("down_proj",)}  # fused over all experts of a layer
Weights = Iterable[tuple[str, Tensor]]


def load_strictly(model: nn.Module, load: Callable[[Weights], set[str]], weights: Weights) -> set[str]:
    """Return the result of `load` for `weights`.

    Raises:
        CheckpointError: If a tensor's shape does not match, or parts of fused parameters are missing.
    """
    seen: dict[str, list[int]] = {}

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            seen[name] = list(tensor.shape)
            yield name, tensor

    try:
        loaded = load(watched())
    except (AssertionError, RuntimeError) as error:
        name, shape = list(seen.items())[-1]
        raise CheckpointError(f"{name}: {shape} does not fit: {error}") from error
    missing = [name for name in fused_parts(model) if name not in seen]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(sorted(missing))}")
    return loaded


def fused_parts(model: nn.Module) -> Iterator[str]:
    """Yield the checkpoint names of the parts of fused weights and biases."""
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        for part in EXPERTS.get(kind, ()):
            experts = module.removesuffix(".routed_experts")
            yield from (f"{experts}.{number}.{part}.weight" for number in range(len(parameter)))
        parent, _, fused = module.rpartition(".")
        if kind in ("weight", "bias") and fused in FUSED:
            yield from (f"{parent}.{part}.{kind}" for part in FUSED[fused])
