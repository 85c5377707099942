"""Random tensors by published name, the same on every machine; needs only numpy."""

from collections.abc import Mapping

import numpy as np


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return float32 tensors of a language model, in the order of `shapes`, whose best logit leads clearly."""
    random = np.random.Generator(np.random.PCG64(seed))
    found = {}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape)
        if "norm" in name:
            noise = 1 + 0.2 * noise
        elif name.endswith("bias"):
            noise *= 0.3
        elif "embed" in name:
            noise *= 0.5
        else:
            noise *= 0.3 if "head" in name else 1.5 * shape[-1] ** -0.5
        found[name] = noise.astype(np.float32)
    return found
