"""Arguments of a codec's kernels, for each kind of layer that codecs have, to compile them for a GPU."""

import inspect
from typing import Any

from stretto.codecs.kernels.attention import attention_kernel, rotation_kernel
from stretto.codecs.kernels.codebooks import codebooks_kernel
from stretto.codecs.kernels.depthwise import depthwise_kernel
from stretto.codecs.kernels.product import NUM_WARPS, constants, product_kernel
from stretto.codecs.kernels.sizes import IEEE

POINTERS = ("sums", "activations", "x", "weight", "bias", "before", "after", "one", "other", "gain", "residual")
TABLES = ("out", "cosines", "sines", "frequencies", "entries")
NORMS = ("norm_weight", "norm_bias")
MULTIPLES = ("num_channels", "num_columns", "num_outputs", "weight_tap", "weight_column", "before_batch", "after_batch")
ALIGNED = (*POINTERS, *NORMS, *MULTIPLES)  # multiples of 16 in most layers
NONE = dict.fromkeys(NORMS)
NO_ROWS: dict[str, Any] = {"state_rows": None, "rows_after": 0}
NO_STATE = NO_ROWS | {"before": None, "after": None, "first": None, "before_batch": 0, "after_batch": 0}
ALONE: dict[str, Any] = {"residual": None, "gain": None}
ONE = {"weight_channel": 1, "stride": 1}
NO_FACTORS = dict.fromkeys(("one", "other"))


def types_of(kernel: Any) -> dict[str, str]:
    """Return the types of a kernel's arguments; those that are not named are 32-bit integers."""
    named = dict.fromkeys((*POINTERS, *NORMS, *TABLES), "*fp32")
    named |= dict.fromkeys(("first", "codes", "state_rows"), "*i64")
    named |= dict.fromkeys(("eps", "scale"), "fp32")
    return {name: named.get(name, "i32") for name in inspect.signature(kernel.fn).parameters}


def product(
    *changes: dict[str, Any], precision: str = "tf32x3", activation: str = "", columns: int = 64, head_dim: int = 2
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    """Return a case of the product, whose arguments are constant as `changes` say."""
    fixed = ONE | constants(precision, activation, columns, head_dim)
    for change in changes:
        fixed |= change
    if not activation:
        fixed |= NO_FACTORS | {"activations": None}
    return product_kernel, types_of(product_kernel), fixed, NUM_WARPS


def linear(*changes: dict[str, Any], **options: Any) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    """Return a case of a linear layer."""
    sizes = {"rate": 1, "num_taps": 1, "weight_tap": 0}
    return product(NO_STATE, sizes, *changes, **options)


FIRST = {"first": None}
SAME = {"rate": 1}
SUMS_ONLY = {"sums": None}
UNBIASED = {"bias": None}
FILTERS = {"activation": "", "block_rows": 16, "block_columns": 64, "weight_tap": 1}
CODEC_CASES: list[tuple[Any, dict[str, str], dict[str, Any], int]] = [
    *(product(NONE, FIRST, SAME, {"gain": None}, precision=each, activation="snake") for each in (IEEE, "tf32x3")),
    *(product(NONE, FIRST, SAME, {"gain": None}, precision=each, activation="snake") for each in ("tf32", "bf16")),
    product(NONE, FIRST, SAME, ALONE, SUMS_ONLY, activation="snake"),
    *(product(NONE, FIRST, ALONE, precision=each, activation="snake") for each in (IEEE, "tf32x3")),
    product(NONE, SAME, ALONE, activation="snake"),  # with late inputs
    product(NONE, FIRST, SAME, ALONE, NO_ROWS, activation="snake"),  # whose states are no rows of a table
    product(NONE, FIRST, SAME, ALONE, NO_STATE, precision=IEEE),
    *(product(NONE, FIRST, SAME, ALONE, columns=each) for each in (32, 16)),
    product(NONE, FIRST, SAME, ALONE, precision=IEEE, columns=16),
    product(NONE, FIRST, SAME, ALONE, activation="elu"),
    *(linear(ALONE, SUMS_ONLY, NO_FACTORS, precision=each, activation="gelu") for each in (IEEE, "tf32x3")),
    linear(ALONE, SUMS_ONLY, NO_FACTORS, activation="gelu_tanh"),
    *(linear(NONE, precision=each) for each in (IEEE, "tf32x3")),
    *(
        linear(ALONE, SUMS_ONLY, NO_FACTORS, UNBIASED, {"norm_bias": None}, precision=each, activation="gate")
        for each in (IEEE, "tf32x3")
    ),
    *(
        linear(ALONE, SUMS_ONLY, UNBIASED, precision=each, activation=turn, head_dim=64)
        for each, turn in ((IEEE, "halves"), ("tf32x3", "halves"), ("tf32x3", "pairs"))
    ),
    (
        depthwise_kernel,
        types_of(depthwise_kernel),
        FILTERS | NO_FACTORS | {"activations": None, "first": None, "is_transposed": False, "rate": 1},
        4,
    ),
    (
        depthwise_kernel,
        types_of(depthwise_kernel),
        FILTERS | {"activation": "snake", "is_transposed": True, "sums": None},
        4,
    ),
    (
        depthwise_kernel,
        types_of(depthwise_kernel),
        FILTERS
        | NO_STATE
        | UNBIASED
        | {"activation": "snake", "is_transposed": False, "weight": None, "sums": None, "rate": 1},
        4,
    ),
    (attention_kernel, types_of(attention_kernel), {"head_dim": 64, "queries": 16, "keys": 32}, 4),
    (rotation_kernel, types_of(rotation_kernel), {"block": 1024}, 4),
    (codebooks_kernel, types_of(codebooks_kernel), {"block": 128}, 1),
]
