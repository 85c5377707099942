"""Compile the kernels for CUDA devices that need not be present, and print what each binary uses.

One line per kernel: capability, name, size in bytes, registers per thread, bytes of stack.
"""

import inspect
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stretto.codecs.kernels.attention import OPTIONS, attention_kernel
from stretto.codecs.kernels.product import product_kernel
from stretto.codecs.kernels.sizes import IEEE
from stretto.engine.kernels.gpu.advance import ROW_FUNCTIONS, _gather_kernel, advance_kernel, keep_kernel
from stretto.engine.kernels.gpu.depth import depth_attention_kernel
from stretto.engine.kernels.gpu.draw import _draw_kernel
from stretto.engine.kernels.gpu.linear import FEW_INNER, MANY_INNER, few_rows_kernel, many_rows_kernel
from stretto.engine.kernels.gpu.products import _embed_kernel
from stretto.engine.kernels.gpu.row_products import BLOCK_INNER, MAX_TILES, num_stages, row_product_kernel
from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS, StepRules, draw_streams_kernel
from stretto.engine.kernels.gpu.step_latents import latent_inputs_kernel
from stretto.engine.kernels.gpu.step_text import draw_text_kernel, text_maxima_kernel
from stretto.engine.rules import ReplyConstants
from stretto.families.opuslm.family import PADDED_TAIL
from stretto.families.tiny.family import POINTER, TINY
from stretto.families.tiny.mechanism.draw import ScriptProgram
from stretto.families.tiny.mechanism.kernel import draw_script_kernel
from stretto.streams.layout import SAMPLED_TAIL
from stretto_chatterbox.mechanism.draw import LateProgram
from stretto_cosyvoice3.family import build as cosyvoice3
from stretto_cosyvoice3.mechanism.draw import CodeProgram
from stretto_cosyvoice3.mechanism.kernel import GroupRules, groups_kernel
from stretto_fish_s2.mechanism.kernel import LateTemperatureProgram, Redraw
from stretto_higgs_audio.higgs_audio.mechanism.kernel import StairRules, stairs_kernel
from stretto_kyutai.kyutai_tts.mechanism.cross_attention import cross_attention_kernel
from stretto_kyutai.kyutai_tts.mechanism.kernel import WordRules, words_kernel
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from stretto_moss.moss_tts.mechanism.kernel import SlotRules, slots_kernel
from stretto_moss.moss_tts_realtime.mechanism.draw import KernelConstants, RecentProgram
from stretto_vibevoice.vibevoice.mechanism.kernel import mask_after_end_kernel, stretch_inputs_kernel
from stretto_voxcpm2.mechanism.attention import local_attention_kernel
from stretto_voxcpm2.mechanism.draw import previous_latents_kernel
from tests.engine.kernels.gpu.codec_cases import ALIGNED, CODEC_CASES

DRAW = {
    "drawn": "*i64",
    "logits": "*fp32",
    "token_ids": "*i64",
    "keys": "*i32",
    "temperatures": "*fp32",
    "top_ks": "*i64",
    "top_ps": "*fp32",
    "num_columns": "i32",
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
}
GATHER = {"rows": "*i32", "ids": "*i32", "slots": "*i64", "positions": "*i64", "codes": "*i32", "num_rows": "i32"}
GATHERED = {"codes_stride": 8193 * 8, "texts": None, "texts_stride": 0, "pad_id": 0, "num_streams": 9, "block": 16}
WITH_TEXTS = {name: value for name, value in (GATHERED | {"texts_stride": 4096}).items() if name != "texts"}
DEPTH = {
    **dict.fromkeys(("out", "qkv", "keys", "values", "query_weight", "key_weight", "cos_sin"), "*bf16"),
    "first": "i32",
}
# Qwen3-TTS, then CSM, whose layers have no head norms.
QWEN3_TTS = {
    "eps": 1e-6,
    "num_new": 1,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "num_positions": 16,
    "block_positions": 16,
    "block_dims": 128,
    "is_dependent": False,
}
CSM = QWEN3_TTS | {"num_heads": 8, "num_kv_heads": 2, "num_positions": 32, "block_positions": 32}
CSM |= {"query_weight": None, "key_weight": None}
CROSS = {**dict.fromkeys(("attended", "query", "keys", "values"), "*bf16"), "query_stride": "i32", "absent": "i32"}
# Kyutai's 1.6B, with a second text stream.
SPEAKERS = {"num_heads": 16, "num_vectors": 625, "head_dim": 128, "block_vectors": 32, "block_dims": 128}
# VoxCPM2's diffusion head: two tokens before four latents of the previous patch, four of the patch.
LOCAL = {**dict.fromkeys(("out", "query", "key", "value"), "*fp32"), "value_stride": "i32", "scale": "fp32"}
VOXCPM2 = {"length": 11, "num_heads": 16, "num_kv_heads": 2, "head_dim": 128, "block_tokens": 16, "block_dims": 128}
LINEAR = {**dict.fromkeys(("out", "x", "weight", "bias"), "*fp32"), "num_rows": "i32"}
LINEAR_SIZES = ("x_stride", "num_columns", "num_inner", "chunk")  # multiples of 16 in all published models
LINEAR |= dict.fromkeys(LINEAR_SIZES, "i32")
FEW = {"block_rows": 16, "block_inner": FEW_INNER}
ROWS = {**dict.fromkeys(("out", "x", "weight", "norm", "bias", "residual"), "*bf16"), "num_rows": "i32"}
ROW_TILE = {"eps": 1e-6, "gated": False, "block_outputs": 16, "block_rows": 16, "max_tiles": MAX_TILES}
ROW_TILE["block_inner"] = BLOCK_INNER[torch.bfloat16]
# Products of depth transformers: queries, keys and values; output; gate and up; down; then the projection and a head.
OPENED = {**ROW_TILE, "num_outputs": 4096, "num_inner": 1024, "bias": None, "residual": None}
ADDED = {**ROW_TILE, "num_outputs": 1024, "norm": None, "bias": None}
GATED = {**OPENED, "num_outputs": 3072, "gated": True}
FISH = {"num_outputs": 9728, "num_inner": 2560}
PROJECTED = {**ROW_TILE, "num_outputs": 1024, "num_inner": 2048, "norm": None, "residual": None}
ROW_PRODUCTS = [OPENED, {**ADDED, "num_inner": 2048}, GATED, {**ADDED, "num_inner": 3072}, PROJECTED, GATED | FISH]
FLOAT_ROWS = {name: kind.replace("bf16", "fp32") for name, kind in ROWS.items()}
# Arguments of a step's kernels; those not named are 32-bit integers.
WIDE = ("token_ids", "codebooks", "is_guided", "state", "tasks", "ends", "ends_of_audio", "end_frame")
TYPES = {
    **dict.fromkeys((*WIDE, "begins", "streams", "transition", "sent"), "*i64"),
    **dict.fromkeys(("logits", "offset", "maxima", "noise", "before", "guidance"), "*fp32"),
    "numbers": "*i64",
    "steps": "*i64",
    "ids": "*i64",
    "flags": "*i1",
    "denied": "*i1",
    "seen": "*u8",
    "places": "*u8",
    "first_lane": "i32",
}
SIZES = {"logits_stride": 8200, "codebooks_stride": 9, "plan_stride": 64, "state_stride": 5, "entries_stride": 256}
AUDIO = {
    **SIZES,
    "num_streams": 8,
    "shares": False,
    "history_slot_stride": 8 * 8193,
    "history_row_stride": 8,
    "num_seen_columns": 3073,
    "places": None,
    "num_places": 1,
    **SAMPLING_FUNCTIONS._asdict(),
    "constants": 0,
    "is_greedy": False,
}
STREAMS = {**AUDIO, "seen": None, "num_columns": 1025, "num_ends": 0, "first_stream": 1, "block": 2048}
PENALIZED = {**AUDIO, "num_columns": 3072, "num_ends": 1, "first_stream": 0, "block": 4096}
SEVEN_ROWS = {name: value for name, value in (STREAMS | {"num_places": 7}).items() if name != "places"}
COSYVOICE3: Any = cosyvoice3(None).drawing
# CosyVoice 3's 6561 codes and 200 ends.
GROUPS = {**PENALIZED, "seen": None, "num_columns": 6761, "num_ends": 200, "block": 8192}
GROUPS |= CodeProgram.sampling_functions._asdict() | {"constants": COSYVOICE3.groups}
# Fish Audio S2: 4096 codes and an end on stream 0, as many codes on the others.
FISH_S2 = {**AUDIO, "offset": None, "seen": None, "constants": Redraw(0.9)}
FISH_S2_FIRST = {**FISH_S2, "num_columns": 4097, "num_ends": 1, "first_stream": 0, "block": 8192}
FISH_S2_FIRST |= LateTemperatureProgram.sampling_functions._asdict()
FISH_S2_OTHERS = {**FISH_S2, "num_columns": 4096, "num_ends": 0, "first_stream": 1, "block": 4096, "shares": True}
FISH_S2_OTHERS |= LateTemperatureProgram.other_functions._asdict()
POINTER_IDS = POINTER.ids(SimpleNamespace(family=TINY))
TEXT = {**SIZES, "num_columns": 152_192, "num_groups": 1189, "block": 2048}
TAILS = SAMPLED_TAIL, PADDED_TAIL
FAMILY = ReplyConstants(**dict.fromkeys(ReplyConstants._fields, 3))
SCRIPT = {**SIZES, "script": POINTER_IDS, "family": FAMILY, "num_columns": 83, "block": 128}
GROUP_RULES = GroupRules(COSYVOICE3.groups, FAMILY, 64, 0, 10, 64, 1)
RULES = StepRules(**dict.fromkeys(StepRules._fields, 3))._replace(family=FAMILY)
PLAIN_RULES = RULES._replace(
    family=FAMILY._replace(last_frame=-1), num_seen_columns=0, num_end_frame=0,
    track_stop=3,
)  # fmt: skip
ADVANCE = {"constants": 0, **ROW_FUNCTIONS._asdict(), "block": 8}
FOLLOWED = {"constants": POINTER_IDS, **ScriptProgram.row_functions._asdict()}
# Stream 0 and the inputs of latents: VibeVoice, whose rows have marks, then VoxCPM2, which reads the previous latent.
GREEDY = {**AUDIO, "seen": None, "num_columns": 4, "num_ends": 1, "first_stream": 0, "block": 128, "is_greedy": True}
GREEDY |= {"offset": None}
INPUTS = {"num_rows": 64, "size": 64, "block": 64}
AFTER_END = {"logits_stride": 4, "tokens_stride": 8193, "num_rows": 64, "num_columns": 4, "end": 151_653, "block": 4}
STRETCHES = {"rules": PLAIN_RULES, "tokens_stride": 8193, "begin": 151_652}
LINEAR_KERNELS = few_rows_kernel, many_rows_kernel
MAX_SHARED = 99 << 10  # bytes of shared memory that a program can have on an L4 or L40S, the smallest such limit
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}  # instructions by capability
MAX_REGISTERS = 180  # of the 255 that a thread can have; with more, fewer programs run at once
REGISTERS = {
    (80, "product_kernel"): 255,
    (90, "product_kernel"): 200,
}  # a multiprocessor has registers for one program with either number
REGISTERS |= {(each, "row_product_kernel"): 200 for each in (80, 90, 100)}  # the same, for Fish Audio S2's sizes
# Bytes of stack by capability and kernel, with Triton 3.6 to 3.9; no other kernel has any. The assembler keeps these
# at 64 registers, so that four programs of 256 threads fit the 65,536 registers of a multiprocessor, and spills up to
# three; with Triton 3.9 it keeps the kernels of linear layers at 80, for three programs. On sm_80 Triton 3.6 keeps the
# greedy draw at 32. Those of `latent_inputs_kernel` are no spills but variables of CUDA's cosine: an array of 40 bytes
# that it uses for arguments of 2^31 and more (ours are below 2π), and, up to Triton 3.7, the quadrant: 4 bytes, padded
# to 48.
STACK = {(90, "_draw_kernel"): 16, (100, "_draw_kernel"): 16, (100, "draw_streams_kernel"): 8}
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
WORDS = WordRules(**dict.fromkeys(WordRules._fields, 3))._replace(script=WordScript(ahead=3))
AHEAD, PLAIN_WORDS = {"rules": WORDS}, {"rules": WORDS._replace(script=WordScript()), "seconds": None}
CASES: list[tuple[Any, dict[str, str], dict[str, Any], int]] = [
    (_draw_kernel, DRAW, {"block": 2048, "top_p_of_all": False}, 8),
    (_embed_kernel, EMBED, {"num_streams": 8, "pad_is_silent": True, "block": 1024}, 8),
    (_gather_kernel, GATHER, GATHERED, 1),
    (_gather_kernel, GATHER, WITH_TEXTS, 1),
    *((depth_attention_kernel, DEPTH, QWEN3_TTS | {"num_new": new}, 4) for new in (1, 2)),
    *((depth_attention_kernel, DEPTH, CSM | {"num_new": new}, 8) for new in (1, 2)),
    (cross_attention_kernel, CROSS, SPEAKERS, 4),
    (local_attention_kernel, LOCAL, VOXCPM2, 4),
    *((words_kernel, {}, each, 1) for each in (AHEAD, PLAIN_WORDS)),
    (draw_streams_kernel, {}, STREAMS, 8),
    (draw_streams_kernel, {}, {**STREAMS, "offset": None, "num_ends": 2, "num_columns": 5002, "block": 8192}, 16),
    (draw_streams_kernel, {}, {**STREAMS, "shares": True}, 8),
    (
        draw_streams_kernel,
        {},
        STREAMS | RecentProgram.other_functions._asdict() | {"constants": KernelConstants(50)},
        8,
    ),
    (draw_streams_kernel, {}, PENALIZED, 8),
    (draw_streams_kernel, {}, PENALIZED | LateProgram.sampling_functions._asdict(), 8),
    (draw_streams_kernel, {}, SEVEN_ROWS, 8),
    (draw_streams_kernel, {}, {**GROUPS, "offset": None}, 16),
    (draw_streams_kernel, {}, FISH_S2_FIRST, 16),
    (draw_streams_kernel, {}, FISH_S2_OTHERS, 8),
    (draw_script_kernel, {}, {**SCRIPT, "offset": None}, 4),
    (text_maxima_kernel, {}, TEXT, 8),
    (text_maxima_kernel, {}, {**TEXT, "seen": None}, 8),
    (draw_text_kernel, {}, TEXT, 8),
    *(
        (advance_kernel, {}, {**ADVANCE, "rules": RULES._replace(family=FAMILY._replace(cut_rows=tail.cut_rows))}, 1)
        for tail in TAILS
    ),
    (draw_streams_kernel, {}, GREEDY, 4),
    (latent_inputs_kernel, {}, INPUTS, 1),
    (latent_inputs_kernel, {}, {**INPUTS, "size": 256, "block": 256}, 2),
    (previous_latents_kernel, {}, {"rules": PLAIN_RULES, "size": 256, "block": 256}, 1),
    (mask_after_end_kernel, {}, AFTER_END, 1),
    (groups_kernel, {}, {"rules": GROUP_RULES}, 1),
    (stairs_kernel, {}, {"rules": StairRules(64, 7, 10), "block": 8}, 1),
    (slots_kernel, {}, {"rules": SlotRules(64, 32, 10, 151_656, 151_662, 151_653), "block": 32}, 1),
    (stretch_inputs_kernel, {}, STRETCHES, 1),
    *((few_rows_kernel, LINEAR, {**FEW, "block_columns": width}, width // 4) for width in (16, 32)),
    *((row_product_kernel, ROWS, each, 8) for each in ROW_PRODUCTS),
    *(
        (row_product_kernel, FLOAT_ROWS, each | {"block_inner": BLOCK_INNER[torch.float32]}, 8)
        for each in ROW_PRODUCTS[:3]
    ),
    (many_rows_kernel, LINEAR, {"block_rows": 64, "block_columns": 64, "block_inner": MANY_INNER}, 8),
    *CODEC_CASES,
    (keep_kernel, {}, {**SIZES, "tokens_stride": 8193}, 1),
    (advance_kernel, {}, {**ADVANCE, "rules": PLAIN_RULES}, 1),
    (advance_kernel, {}, {**ADVANCE, "rules": PLAIN_RULES, **FOLLOWED}, 1),
]


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
    for capability, case in itertools.product(map(int, sys.argv[1:]), CASES):
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
