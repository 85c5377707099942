"""Tiles of vLLM's attention as with a small second-level cache, so that short prompts consist of several tiles.

vLLM's kernels choose the number of keys in a tile from half of the cache's size, which they store in a C++ variable.
"""

import ctypes
from pathlib import Path

import torch
from vllm import _custom_ops as ops

# With this size, a prompt of 40 rows has other bits than the same rows one by one, if a head has 32 numbers.
SMALL = 48 << 10
HALF_OF_THE_CACHE = "_ZZN9cpu_utils21get_available_l2_sizeEvE4size"


def set_cache_size(num_bytes: int) -> int:
    """Set the size of the second-level cache that vLLM's attention assumes in this process; return the size before."""
    one = torch.ones(1, dtype=torch.int32)
    starts = torch.arange(2, dtype=torch.int32)
    ops.cpu_attn_get_scheduler_metadata(1, 1, 1, 32, one, torch.float32, starts, True, -1, "vec", False)  # measures it
    mapped = Path("/proc/self/maps").read_text().splitlines()
    (library,) = {line.split()[-1] for line in mapped if "/vllm/_C" in line and ".so" in line}
    variable = ctypes.c_int64.in_dll(ctypes.CDLL(library), HALF_OF_THE_CACHE)
    before = 2 * variable.value
    variable.value = num_bytes // 2
    return before
