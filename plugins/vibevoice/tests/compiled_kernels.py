"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto_vibevoice.vibevoice.mechanism.kernel import mask_after_end_kernel, stretch_inputs_kernel
from tests.engine.kernels.gpu.kernel_cases import PLAIN_RULES, Case

AFTER_END = {"logits_stride": 4, "tokens_stride": 8193, "num_rows": 64, "num_columns": 4, "end": 151_653, "block": 4}
STRETCHES = {"rules": PLAIN_RULES, "tokens_stride": 8193, "begin": 151_652}

CASES: list[Case] = [
    (mask_after_end_kernel, {}, AFTER_END, 1),
    (stretch_inputs_kernel, {}, STRETCHES, 1),
]
