"""Base class of the network that conditions requests in the slow reference."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from stretto.records.prompt import Condition


class ReferenceConditions(ABC):
    """Second implementation of the network of `RequestConditions`, for a transformers model.

    Attributes:
        added: Vector [H] that is added to the embeddings of all rows of the current request.
    """

    added: torch.Tensor

    def __init__(self, spec: Any):
        self.spec = spec

    @abstractmethod
    def random_weights(self, config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random tensors of the network, named as in a checkpoint."""

    @abstractmethod
    def random_condition(self, index: int) -> Condition | None:
        """Return the condition of test prompt `index`; None for a request without one."""

    @abstractmethod
    def attach(self, weights: dict[str, torch.Tensor], model: Any) -> None:
        """Remove the network's tensors from a checkpoint's weights, and add hooks to a transformers model."""

    @abstractmethod
    def use(self, condition: Condition | None) -> None:
        """Use the condition of a request from now on; None for a request without one."""
