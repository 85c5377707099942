"""Mapping of published tensors to converted ones; none may be missing, unknown, or of another shape."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stretto.errors import CheckpointError

NAMED = 12  # number of tensors that an error message names


@dataclass(frozen=True)
class Part:
    """Tensor to be written.

    Attributes:
        name: Name in the checkpoint.
        stored: Shape of the published tensor.
        edit: Conversion of the published tensor; None if it is unchanged.
    """

    name: str
    stored: tuple[int, ...]
    edit: Callable[[Tensor], Tensor] | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """Shape of the tensor to be written."""
        stored = torch.empty(self.stored, device="meta")
        return tuple((self.edit(stored) if self.edit else stored).shape)


Plan = dict[str, Part]  # keys: published names


def shapes_of(model_class: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Hugging Face model's tensors without allocating them."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check(plan: Plan, published: Mapping[str, Tensor], dropped: Iterable[str]) -> list[str]:
    """Return the names of the dropped tensors.

    Args:
        plan: Tensors to write, by published name.
        published: Published tensors.
        dropped: Names, or prefixes that end in a dot.

    Raises:
        CheckpointError: If tensors are missing, unknown or of another shape; the message names them.
    """
    prefixes = tuple(dropped)
    others = [name for name in published if name not in plan]
    unknown = [name for name in others if not any(_is_under(name, prefix) for prefix in prefixes)]
    missing = [name for name in plan if name not in published]
    wrong = [
        f"{name} {list(published[name].shape)} for {list(part.stored)}"
        for name, part in plan.items()
        if name in published and tuple(published[name].shape) != part.stored
    ]
    found = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    if missing or unknown or wrong:
        raise CheckpointError("tensors do not fit: " + "; ".join(_named(*each) for each in found.items() if each[1]))
    return others


def _is_under(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith(".") else name == prefix


def _named(kind: str, names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind}: {', '.join(sorted(names)[:NAMED])}{rest}"
