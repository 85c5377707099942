"""Loading that misses nothing. vLLM refuses unknown tensors and parameters that nothing was loaded into; but of those
that it keeps as one, such as queries, keys and values, one part is enough for it, and the others stay as they were."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

from stretto.errors import CheckpointError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EXPERTS = {"w13_weight": ("gate_proj", "up_proj"), "w2_weight": ("down_proj",)}  # of all experts of a layer, as one
Weights = Iterable[tuple[str, Tensor]]


def load_strictly(model: nn.Module, load: Callable[[Weights], set[str]], weights: Weights) -> set[str]:
    """What `load` returns for `weights`. CheckpointError names a tensor whose shape does not fit, and the parts of
    fused parameters that did not come."""
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
    """The names under which a checkpoint has the parts of fused weights and biases."""
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        for part in EXPERTS.get(kind, ()):
            experts = module.removesuffix(".routed_experts")
            yield from (f"{experts}.{number}.{part}.weight" for number in range(len(parameter)))
        parent, _, fused = module.rpartition(".")
        if kind in ("weight", "bias") and fused in FUSED:
            yield from (f"{parent}.{part}.{kind}" for part in FUSED[fused])
