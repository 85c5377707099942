"""Which published tensor becomes which; nothing may be missing, unknown, or of another shape."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stretto.errors import CheckpointError

NAMED = 12  # of so many tensors that do not fit, the names are said


@dataclass(frozen=True)
class Part:
    """One tensor to be written. edit: what becomes of the published one, which has `stored` as its shape."""

    name: str
    stored: tuple[int, ...]
    edit: Callable[[Tensor], Tensor] | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """The shape it will have."""
        stored = torch.empty(self.stored, device="meta")
        return tuple((self.edit(stored) if self.edit else stored).shape)


Plan = dict[str, Part]  # by published name


def shapes_of(model_class: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Hugging Face model's tensors, none of them made."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check(plan: Plan, published: Mapping[str, Tensor], dropped: Iterable[str]) -> list[str]:
    """The names that are dropped; CheckpointError names all tensors that are missing, unknown or misshapen.

    dropped: names, or first parts of names that end in a dot.
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
