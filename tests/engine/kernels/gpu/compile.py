"""Compile the kernels for CUDA devices that need not be present, and print what each binary uses.

One line per kernel: capability, name, size in bytes, registers per thread, bytes of stack.
"""

import inspect
import itertools
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stretto.codecs.kernels.attention import OPTIONS, attention_kernel
from stretto.codecs.kernels.product import product_kernel
from stretto.codecs.kernels.sizes import IEEE
from stretto.engine.kernels.gpu.depth import depth_attention_kernel
from stretto.engine.kernels.gpu.linear import few_rows_kernel, many_rows_kernel
from stretto.engine.kernels.gpu.row_products import BLOCK_INNER, num_stages, row_product_kernel
from tests.engine.kernels.gpu.codec_cases import ALIGNED, CODEC_CASES
from tests.engine.kernels.gpu.kernel_cases import CASES, LINEAR_SIZES, ROWS, TYPES, Case

ROOT = Path(__file__).parents[4]
LINEAR_KERNELS = few_rows_kernel, many_rows_kernel
MAX_SHARED = 99 << 10  # bytes of shared memory that a program can have on an L4 or L40S, the smallest such limit
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}  # instructions by capability
MAX_REGISTERS = 180  # of the 255 that a thread can have; with more, fewer programs run at once
REGISTERS = {
    (80, "product_kernel"): 255,
    (90, "product_kernel"): 200,
}  # a multiprocessor has registers for one program with either number
REGISTERS[80, "draw_streams_kernel"] = 200  # a multiprocessor has registers for one program with 180, too
REGISTERS |= {(each, "row_product_kernel"): 255 for each in (80, 90, 100)}  # the same, for the widest, with Triton 3.6
# Bytes of stack by capability and kernel, with Triton 3.6 to 3.9; no other kernel has any. The assembler keeps these
# at 64 registers, so that four programs of 256 threads fit the 65,536 registers of a multiprocessor, and spills up to
# three; with Triton 3.9 it keeps the kernels of linear layers at 80, for three programs. On sm_80 Triton 3.6 keeps the
# greedy draw at 32. Those of `latent_inputs_kernel` and `rotation_kernel` are no spills but variables of CUDA's cosine:
# an array of 40 bytes in float64, and of 32 in float32, for very large arguments (ours are below 2π, or a position),
# and, up to Triton 3.7, the quadrant: 4 bytes, padded to 48.
STACK = {(90, "_draw_kernel"): 16, (100, "_draw_kernel"): 16, (100, "draw_streams_kernel"): 8}
STACK[90, "draw_streams_kernel"] = 32  # Chatterbox's, with Triton 3.6; 16 with 3.7
STACK |= {
    (80, "product_kernel"): 16,  # in float32, as on the others
    (90, "product_kernel"): 24,
    (100, "product_kernel"): 24,
    (80, "draw_streams_kernel"): 8,
    (100, "few_rows_kernel"): 8,
    (100, "many_rows_kernel"): 8,
}
STACK[100, "row_product_kernel"] = 8  # in float32, which the assembler keeps at 64 registers
STACK |= {(capability, "latent_inputs_kernel"): 48 for capability in (80, 90, 100)}
STACK |= {(capability, "rotation_kernel"): 32 for capability in (80, 90, 100)}


def all_cases() -> list[Case]:
    """Return the cases of the engine's kernels, and those in `compiled_kernels.py` of each plug-in's tests."""
    found = CASES[:]
    for path in sorted(ROOT.glob("plugins/*/tests/compiled_kernels.py")):
        found += import_module(f"plugins.{path.parts[-3]}.tests.compiled_kernels").CASES
    return found


def compiled(kernel: Any, signature: dict[str, str], constants: dict[str, Any], num_warps: int, capability: int) -> Any:
    """Compile a kernel for a device of `capability`; for step kernels, whose signature is {}, the types are known."""
    names = list(inspect.signature(kernel.fn).parameters)
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: signature.get(name) or TYPES.get(name, "*i32") for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    is_linear = kernel in (*LINEAR_KERNELS, row_product_kernel)
    is_dependent = capability >= 90 and "is_dependent" in names
    if "is_dependent" in names:
        constants["is_dependent"] = is_dependent
    aligned = (*LINEAR_SIZES, "out", "x", "weight", "norm", "bias", "residual") if is_linear else ()
    aligned = ALIGNED if any(kernel is case[0] for case in CODEC_CASES) else aligned
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name in aligned and name not in constants
    }
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    options: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": is_linear, "launch_pdl": is_dependent}
    if constants.get("precision") == IEEE:
        options["enable_fp_fusion"] = True
    if kernel is attention_kernel:
        options |= OPTIONS
    if kernel is row_product_kernel:
        options["num_stages"] = num_stages(constants["block_inner"], constants["gated"])
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def check_sums(ptx: str, block_inner: int) -> None:
    """Check that the products of linear layers are added one after another, in the order of the inner dimension.

    The kernels for few and many rows agree only if this holds for both. A thread has 16 sums, to each of which an
    iteration adds `block_inner` products. Eight loads of four numbers serve 64 products; the limit below leaves room
    for loads that are split.
    """
    places, sums = dict[str, tuple[str, int]](), dict[str, list[str]]()
    chains, num_loads, num_products = list[list[str]](), 0, 0
    for line in ptx.splitlines():
        if load := re.search(r"ld\.shared\S*\s+\{?([^}\[]+?)\}?, \[(%\w+)(?:\+(\d+))?\];", line):
            num_loads += 1
            for index, register in enumerate(load[1].split(", ")):
                places[register] = load[2], int(load[3] or 0) + 4 * index
        elif product := re.search(r"fma\.rn\.f32\s+(\S+), (\S+), (\S+), (\S+);", line):
            num_products += 1
            written, _, weight, summand = product.groups()
            if summand not in sums:
                chains.append([])
            chain = sums.pop(summand, chains[-1])
            chain.append(weight)
            sums[written] = chain
    assert len(chains) == 16, len(chains)
    assert num_products == 16 * block_inner, num_products
    assert 3 * num_loads <= num_products, num_loads
    for chain in chains:
        bases, offsets = zip(*(places[register] for register in chain), strict=True)
        steps = {after - before for before, after in itertools.pairwise(offsets)}
        assert len(chain) == block_inner
        assert len(set(bases)) == len(steps) == 1, offsets
        assert steps.pop() > 0


def check_row_product(ptx: str, is_gated: bool) -> None:
    """Check that tensor cores add the products of each sum in one chain, block by block.

    A warp has its part of 16 × 16 sums in two accumulators, and in a block adds 16 of the inner dimension at a time.
    """
    chains, sums = list[int](), dict[str, int]()
    for written, summand in re.findall(r"mma\.sync\.aligned\.m16n8k16\S*\s*\{(.*?)\},.*?,\s*\{([^{}]*)\};", ptx, re.S):
        index = sums.pop(summand.strip(), len(chains))
        if index == len(chains):
            chains.append(0)
        chains[index] += 1
        sums[written.strip()] = index
    blocks = BLOCK_INNER[torch.bfloat16] // 16
    assert not any(length % blocks for length in chains), chains
    assert len(chains) in ((4, 8) if is_gated else (2, 4)), chains  # of the first block, and of the loop


def check_dependence(ptx: str, capability: int, num_loads: int) -> None:
    """Check that a kernel lets the next one begin and waits for the previous one, after `num_loads` loads of weights.

    Nothing is written, and nothing but weights is read, before that.
    """
    assert re.findall(r"griddepcontrol\.(\w+)", ptx) == ["launch_dependents", "wait"] * (capability >= 90)
    if capability >= 90:
        before, after = ptx.split("griddepcontrol.wait")
        assert "st.global" not in before
        assert "st.global" in after
        assert len(re.findall(r"ld\.global", before)) == num_loads, before


def usage(binary: bytes) -> list[int]:
    """Return registers per thread and bytes of stack of a kernel, where spilled registers and arrays are."""
    tool = Path(triton.backends.nvidia.__file__).parent / "bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(re.findall(rf"\b{name}:(\d+)", shown)[-1]) for name in ("REG", "STACK")]


if __name__ == "__main__":
    too_large = []
    for capability, case in itertools.product(map(int, sys.argv[1:]), all_cases()):
        made = compiled(*case, capability)
        binary = made.asm["cubin"]
        registers, stack = usage(binary)
        print(capability, case[0].__name__, len(binary), registers, stack, flush=True)
        if registers > REGISTERS.get((capability, case[0].__name__), MAX_REGISTERS) or stack > STACK.get(
            (capability, case[0].__name__), 0
        ):
            too_large.append(f"sm_{capability} {case[0].__name__}: {registers} registers, {stack} bytes of stack")
        is_rounded = case[0] is product_kernel and case[2]["precision"] != IEEE
        if is_rounded and TENSOR_CORES[capability] not in made.asm["ptx"]:
            too_large.append(f"sm_{capability} {case[0].__name__}: no {TENSOR_CORES[capability]}")
        if case[0] is row_product_kernel:
            is_half = case[1] is ROWS
            if is_half:
                check_row_product(made.asm["ptx"], case[2]["gated"])
            check_dependence(made.asm["ptx"], capability, (8 if is_half else 2) << case[2]["gated"])
        if case[0] is depth_attention_kernel:
            check_dependence(made.asm["ptx"], capability, 0)
        if case[0] in (*LINEAR_KERNELS, row_product_kernel) and made.metadata.shared > MAX_SHARED:
            too_large.append(f"sm_{capability} {case[0].__name__}: {made.metadata.shared} bytes of shared memory")
        if case[0] in LINEAR_KERNELS and capability < 100:  # there, pairs of sums share an instruction
            check_sums(made.asm["ptx"], case[2]["block_inner"])
    sys.exit("\n".join(too_large) or 0)
