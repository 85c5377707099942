"""Limits for networks whose sizes come from an untrusted config."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from stretto.errors import CheckpointError

MAX_PARTS = 200_000  # modules and tensors; published networks have at most about 20,000
MAX_ALLOCATED = 1 << 32  # elements of a network that is not on the `meta` device


@contextmanager
def bounded_networks() -> Iterator[None]:
    """Limit the networks that are built in this thread within the `with` block, because their sizes come from a config.

    Raises:
        CheckpointError: If modules have too many parts or elements. It is raised while they are built, which would
            otherwise exhaust the memory or take hours.
    """
    owner = threading.get_ident()
    num_parts = 0
    num_elements = 0

    def count(module: nn.Module, name: str, registered: nn.Module | Tensor | None) -> None:
        nonlocal num_parts, num_elements
        if threading.get_ident() != owner:
            return
        num_parts += 1
        num_elements += registered.numel() if isinstance(registered, Tensor) and not registered.is_meta else 0
        if num_parts > MAX_PARTS or num_elements > MAX_ALLOCATED:
            expected = f"networks of at most {MAX_PARTS} modules and tensors, and {MAX_ALLOCATED} elements"
            raise CheckpointError(f"a config has too large a number: expected {expected}, got more")

    handles = [
        register(count)
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
