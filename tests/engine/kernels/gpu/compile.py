"""Compiles the kernels for a CUDA device that need not be there, and prints the size of each binary."""

import sys

import triton
from stretto.engine.kernels.gpu.draw import _draw_kernel
from stretto.engine.kernels.gpu.embed import _embed_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DRAW = {
    "drawn": "*i64",
    "logits": "*fp32",
    "token_ids": "*i64",
    "keys": "*i32",
    "temperatures": "*fp32",
    "top_ks": "*i64",
    "top_ps": "*fp32",
    "num_columns": "i32",
    "block": "constexpr",
}
EMBED = {
    "embedded": "*bf16",
    "table": "*bf16",
    "ids": "*i32",
    "id_row_stride": "i32",
    "id_stream_stride": "i32",
    "table_stride": "i32",
    "pad_id": "i32",
    "width": "i32",
    "num_streams": "constexpr",
    "pad_is_silent": "constexpr",
    "block": "constexpr",
}

if __name__ == "__main__":
    for kernel, signature, constants in (
        (_draw_kernel, DRAW, {"block": 2048}),
        (_embed_kernel, EMBED, {"num_streams": 8, "pad_is_silent": True, "block": 1024}),
    ):
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
        print(kernel.__name__, len(compiled.asm["cubin"]))
