"""Arguments of the engine's kernels, to compile them for a GPU. Those of a plug-in's kernels are in its tests."""

from types import SimpleNamespace
from typing import Any

import torch

from stretto.engine.kernels.gpu.advance import (
    ROW_FUNCTIONS,
    _gather_kernel,
    advance_kernel,
    attempt_keys_kernel,
    keep_kernel,
)
from stretto.engine.kernels.gpu.depth import depth_attention_kernel
from stretto.engine.kernels.gpu.draw import _draw_kernel
from stretto.engine.kernels.gpu.linear import FEW_INNER, MANY_INNER, few_rows_kernel, many_rows_kernel
from stretto.engine.kernels.gpu.products import _embed_kernel
from stretto.engine.kernels.gpu.row_products import BLOCK_INNER, MAX_TILES, row_product_kernel
from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS, StepRules, draw_streams_kernel
from stretto.engine.kernels.gpu.step_latents import latent_inputs_kernel
from stretto.engine.kernels.gpu.step_text import draw_text_kernel, text_maxima_kernel
from stretto.engine.rules import ReplyConstants
from stretto.families.opuslm.family import PADDED_TAIL
from stretto.families.tiny.family import POINTER, TINY
from stretto.families.tiny.mechanism.draw import ScriptProgram
from stretto.families.tiny.mechanism.kernel import draw_script_kernel
from stretto.streams.layout import SAMPLED_TAIL
from tests.engine.kernels.gpu.codec_cases import CODEC_CASES

# A kernel, the types of its arguments ({} for a step's kernels, whose types are in TYPES), its constants, its warps.
Case = tuple[Any, dict[str, str], dict[str, Any], int]
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
WIDEST = {"num_outputs": 9728, "num_inner": 2560}
PROJECTED = {**ROW_TILE, "num_outputs": 1024, "num_inner": 2048, "norm": None, "residual": None}
ROW_PRODUCTS = [OPENED, {**ADDED, "num_inner": 2048}, GATED, {**ADDED, "num_inner": 3072}, PROJECTED, GATED | WIDEST]
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
POINTER_IDS = POINTER.ids(SimpleNamespace(family=TINY))
TEXT = {**SIZES, "num_columns": 152_192, "num_groups": 1189, "block": 2048}
TAILS = SAMPLED_TAIL, PADDED_TAIL
FAMILY = ReplyConstants(**dict.fromkeys(ReplyConstants._fields, 3))
SCRIPT = {**SIZES, "script": POINTER_IDS, "family": FAMILY, "num_columns": 83, "block": 128}
RULES = StepRules(**dict.fromkeys(StepRules._fields, 3))._replace(family=FAMILY)
PLAIN_RULES = RULES._replace(
    family=FAMILY._replace(last_frame=-1), num_seen_columns=0, num_end_frame=0,
    track_stop=3,
)  # fmt: skip
ADVANCE = {"constants": 0, **ROW_FUNCTIONS._asdict(), "block": 8}
FOLLOWED = {"constants": POINTER_IDS, **ScriptProgram.row_functions._asdict()}
# Stream 0 and the inputs of latents.
GREEDY = {**AUDIO, "seen": None, "num_columns": 4, "num_ends": 1, "first_stream": 0, "block": 128, "is_greedy": True}
GREEDY |= {"offset": None}
INPUTS = {"num_rows": 64, "size": 64, "block": 64}
CASES: list[Case] = [
    (_draw_kernel, DRAW, {"block": 2048, "top_p_of_all": False}, 8),
    (_embed_kernel, EMBED, {"num_streams": 8, "pad_is_silent": True, "block": 1024}, 8),
    (_gather_kernel, GATHER, GATHERED, 1),
    (_gather_kernel, GATHER, WITH_TEXTS, 1),
    *((depth_attention_kernel, DEPTH, QWEN3_TTS | {"num_new": new}, 4) for new in (1, 2)),
    *((depth_attention_kernel, DEPTH, CSM | {"num_new": new}, 8) for new in (1, 2)),
    (draw_streams_kernel, {}, STREAMS, 8),
    (draw_streams_kernel, {}, {**STREAMS, "offset": None, "num_ends": 2, "num_columns": 5002, "block": 8192}, 16),
    (draw_streams_kernel, {}, {**STREAMS, "shares": True}, 8),
    (draw_streams_kernel, {}, PENALIZED, 8),
    (draw_streams_kernel, {}, SEVEN_ROWS, 8),
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
    *((few_rows_kernel, LINEAR, {**FEW, "block_columns": width}, width // 4) for width in (16, 32)),
    *((row_product_kernel, ROWS, each, 8) for each in ROW_PRODUCTS),
    *(
        (row_product_kernel, FLOAT_ROWS, each | {"block_inner": BLOCK_INNER[torch.float32]}, 8)
        for each in ROW_PRODUCTS[:3]
    ),
    (many_rows_kernel, LINEAR, {"block_rows": 64, "block_columns": 64, "block_inner": MANY_INNER}, 8),
    *CODEC_CASES,
    *(
        (
            attempt_keys_kernel,
            {},
            {"num_redraws": 4, "rules": RULES._replace(family=FAMILY._replace(interleaves=each))},
            1,
        )
        for each in (False, True)
    ),
    (keep_kernel, {}, {**SIZES, "tokens_stride": 8193}, 1),
    (advance_kernel, {}, {**ADVANCE, "rules": PLAIN_RULES}, 1),
    (advance_kernel, {}, {**ADVANCE, "rules": PLAIN_RULES, **FOLLOWED}, 1),
]
