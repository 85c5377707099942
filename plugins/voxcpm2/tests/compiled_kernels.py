"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto_voxcpm2.mechanism.attention import local_attention_kernel
from stretto_voxcpm2.mechanism.draw import previous_latents_kernel
from tests.engine.kernels.gpu.kernel_cases import PLAIN_RULES, Case

# The diffusion head: two tokens before four latents of the previous patch, four of the patch.
LOCAL = {**dict.fromkeys(("out", "query", "key", "value"), "*fp32"), "value_stride": "i32", "scale": "fp32"}
SIZES = {"length": 11, "num_heads": 16, "num_kv_heads": 2, "head_dim": 128, "block_tokens": 16, "block_dims": 128}

CASES: list[Case] = [
    (local_attention_kernel, LOCAL, SIZES, 4),
    (previous_latents_kernel, {}, {"rules": PLAIN_RULES, "size": 256, "block": 256}, 1),
]
