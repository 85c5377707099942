"""Engine arguments of a checkpoint, and serving profiles: named sets of a batch size, chunk sizes and a playout time.

A profile changes the values that Stretto computes for a model, in proportion. Options that the user names take
precedence (`--engine-args`), and so do the options of a request (`chunking`). The module imports no torch, because
`stretto run` has the options, too.
"""

import argparse
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stretto.errors import CheckpointError, shown
from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family
from stretto.family.plugin import all_layers_slide, config_at, decoder_size, family_at
from stretto.machine.gpus import MIB
from stretto.machine.sizing import (
    CPU_BATCHED_ROWS,
    CPU_BLOCK_SIZE,
    GPU_BATCHED_ROWS,
    cpu_cache_bytes,
    cpu_slots,
    engine_bytes,
    kv_numbers,
    num_slots,
)

if TYPE_CHECKING:
    from stretto.codecs.base import CodecSpec

# Engine arguments for each value of --quantize. Weights have one scale per output, and activations one per row.
QUANTIZATIONS: dict[str, dict[str, Any]] = {"fp8": {"quantization": "fp8_per_channel"}, "int8": {"int8": True}}
# formats of weights
GPU_FORMATS = ("fp8",)
CPU_FORMATS = ("int8",)
# They halve the weights of a checkpoint in 16 bits.
ONLINE = [QUANTIZATIONS[gpu_format]["quantization"] for gpu_format in GPU_FORMATS]
HALF = ("bfloat16", "float16")
NUM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIVEN = "--engine-args"
MAX_COUNT = 1 << 24  # far above the number of layers, the width and the length of any model
MEMORY = {"reserved_mb", "gpu_memory_utilization", "kv_cache_memory_bytes"}  # engine arguments for memory


@dataclass(frozen=True)
class ServingProfile:
    """Values of a profile. The defaults leave all computed values unchanged.

    Attributes:
        slots: Share of the batch slots that the server uses. A step takes longer the more rows it has, and every
            stream waits for it.
        waiting: Number of requests that may wait for a slot, as a share of the slots in use.
        step_rows: Share of the rows per step. A long prompt is computed in several steps, in which active streams
            also get rows.
        first_frames: Factor of the family's minimum first chunk; 0 for a minimum of one frame. The chunk has more
            frames if the decoder needs them to stay ahead of the player.
        steady_frames: Factor of the family's longest chunk. Longer chunks need fewer decoder calls and messages.
        playout_s: Time in seconds for which players are expected to buffer, so that later chunks may be longer.
        begins_early: True to use, on a GPU, all options that reduce the time to the first audio (`with_first_audio`).
            They have not been measured, so no other profile sets them.
    """

    slots: float = 1.0
    waiting: float = 0.25
    step_rows: float = 1.0
    first_frames: int = 1
    steady_frames: int = 1
    playout_s: float = 0.0
    begins_early: bool = False

    def num_slots(self, num_slots: int) -> int:
        """Return the number of batch slots that the profile uses of `num_slots`; at least two, for a guided reply."""
        return min(num_slots, max(2, int(self.slots * num_slots)))

    def num_waiting(self, num_slots: int) -> int:
        """Return the number of requests that may wait if `num_slots` slots are in use; at least one."""
        return max(1, int(self.waiting * num_slots))

    def num_step_rows(self, is_on_gpu: bool) -> int:
        """Return the maximum number of rows in a step."""
        rows = int(self.step_rows * (GPU_BATCHED_ROWS if is_on_gpu else CPU_BATCHED_ROWS))
        return rows // CPU_BLOCK_SIZE * CPU_BLOCK_SIZE

    def with_chunks(self, family: Family) -> Family:
        """Return the family with the chunk sizes of this profile."""
        steady = self.steady_frames * family.steady_chunk_frames
        first = min(max(1, self.first_frames * family.first_chunk_frames), steady)
        return replace(family, first_chunk_frames=first, steady_chunk_frames=steady)

    def chunking(self, family: Family) -> dict[str, Any]:
        """Return the default `chunking` of requests; empty if the family's values apply."""
        sizes = self.with_chunks(family)
        of_profile = {
            "first_frames": sizes.first_chunk_frames,
            "steady_frames": sizes.steady_chunk_frames,
            "playout_s": self.playout_s,
        }
        of_family = {
            "first_frames": family.first_chunk_frames,
            "steady_frames": family.steady_chunk_frames,
            "playout_s": 0.0,
        }
        return {} if of_profile == of_family else of_profile

    def with_first_audio(
        self, arguments: dict[str, Any], config: dict[str, Any], family: Family, spec: "CodecSpec", mode: str | None
    ) -> dict[str, Any]:
        """Add the engine arguments that reduce the time to the first audio on a GPU, if the model supports them.

        Args:
            arguments: Other engine arguments, which take precedence.
            mode: How the decoder computes convolutions on a GPU; None on a CPU, in float32.

        Raises:
            CheckpointError: If the engine cannot decode first chunks as `arguments` say.
        """
        if mode is not None and self.begins_early:
            chosen: dict[str, Any] = {"submit_early_ms": SUBMIT_EARLY_MS}
            if family.has_plain_frames and AudioFormat.from_config(config) is None:
                chosen["compilation_config"] = {"cudagraph_mode": "FULL"}
            with suppress(CheckpointError):
                check_first_chunk(mode, mode, family, spec)
                chosen["first_chunk"] = mode
            arguments = chosen | arguments
        if (first := arguments.get("first_chunk")) is not None:
            check_first_chunk(first, mode or "float32", family, spec)
        return arguments


SUBMIT_EARLY_MS = 3.0  # the host's part of a step of one row is 2.3 ms (`sizing`)
BALANCED = "balanced"
PROFILES = {
    # A quarter of the slots: on an H100, the host's part of a step is 4.8 ms at 64 rows and 12.3 ms at 256 (`sizing`).
    "latency": ServingProfile(slots=0.25, step_rows=0.25, first_frames=0, begins_early=True),
    BALANCED: ServingProfile(),
    # A queue as long as the batch keeps the batch full. Chunks are twice as long, and the first one four times.
    "throughput": ServingProfile(waiting=1.0, first_frames=4, steady_frames=2, playout_s=0.5),
}


def check_first_chunk(mode: str, decoder_mode: str, family: Family, spec: "CodecSpec") -> None:
    """Raise CheckpointError unless the engine can decode first frames, with the decoder's convolutions."""
    if mode != decoder_mode:
        raise CheckpointError(f"first_chunk: expected {decoder_mode}, the decoder's convolutions, got {mode}")
    family.check_plain_frames(mode)
    spec.check_decodes_first(mode)


def add_profile(output: argparse._ActionsContainer) -> None:
    """Add the option --profile to a parser or to a group of its options."""
    about = "batch, chunks and playout for short waits, for both, or for many streams; default: %(default)s"
    output.add_argument("--profile", choices=tuple(PROFILES), default=BALANCED, help=about)


def engine_arguments(
    record: dict[str, Any],
    family: Family,
    is_on_gpu: bool,
    serving: ServingProfile = PROFILES[BALANCED],
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the vLLM engine arguments for a checkpoint; raise CheckpointError if a size is missing or invalid.

    On a GPU, vLLM uses the memory that other processes leave (`gpu_needs`). With 256 batch slots, vLLM's CUDA graphs
    also cover steps of up to 512 rows that include prompts. The number of waiting requests is limited; further requests
    are rejected and may be retried.

    Args:
        overrides: Engine arguments that replace computed ones. The KV cache on a CPU is computed for them.
    """
    longest = min(family.max_model_len, count(record, "max_position_embeddings"))
    chosen = {"dtype": precision(record, is_on_gpu), "max_model_len": longest, **overrides}
    dtype = chosen["dtype"]
    longest = count(chosen, "max_model_len", GIVEN)
    if dtype not in tuple(NUM_BYTES):
        raise CheckpointError(f"{GIVEN}: dtype: expected {', '.join(NUM_BYTES)}, got {shown(dtype)}")
    shape = longest, window(record), bytes_per_row(record, dtype)
    slot_bytes = condition_bytes(record, family, dtype) + decoder_size(family.codec).state_bytes
    slots = serving.num_slots(num_slots(slot_bytes, is_on_gpu))
    is_cache_computed = not is_on_gpu and "kv_cache_memory_bytes" not in overrides
    chosen.setdefault("max_num_seqs", cpu_slots(family, *shape, slots) if is_cache_computed else slots)
    slots = count(chosen, "max_num_seqs", GIVEN)
    chosen.setdefault("max_waiting", serving.num_waiting(slots))
    chosen.setdefault("max_num_batched_tokens", serving.num_step_rows(is_on_gpu))
    if is_on_gpu:
        # If attention splits a row's keys, the number of parts and the rounding of their sum depend on the batch.
        chosen.setdefault("attention_config", {"flash_attn_max_num_splits_for_cuda_graph": 1})
        return chosen
    chosen.setdefault("block_size", CPU_BLOCK_SIZE)
    chosen.setdefault("kv_cache_memory_bytes", -(-cpu_cache_bytes(family, *shape, slots) // MIB) * MIB)
    chosen.setdefault("enforce_eager", True)
    return chosen


def window(record: dict[str, Any]) -> int:
    """Return the number of rows in the attention window, if all layers have one; 0 otherwise."""
    return count(record, "sliding_window") if all_layers_slide(record.get("layer_types")) else 0


def speaker_arguments(
    folder: Path, is_on_gpu: bool, serving: ServingProfile, quantize: str | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return the configuration of a speaker's engine (`EngineConfig.speaker`).

    On a GPU it has a fixed share of the memory, with a KV cache for as many replies of usual length as on a CPU. If a
    size in config.json is missing or invalid, raise CheckpointError.
    """
    record = config_at(folder)
    family = family_at(folder)
    chosen = engine_arguments(record, family, is_on_gpu, serving, overrides)
    chosen |= quantization(record, quantize, chosen["dtype"])
    if is_on_gpu and not chosen.keys() & {*MEMORY, "memory_mb"}:
        shape = chosen["max_model_len"], window(record), bytes_per_row(record, chosen["dtype"])
        cache = cpu_cache_bytes(family, *shape, chosen["max_num_seqs"])
        weights = file_bytes(folder.glob("*.safetensors")) // (2 if chosen.get("quantization") in ONLINE else 1)
        chosen["memory_mb"] = -(-engine_bytes(weights, cache) // MIB)
    return chosen


def quantization(record: dict[str, Any], name: str | None, dtype: str) -> dict[str, Any]:
    """Return the engine arguments for quantizing weights at loading; raise CheckpointError if that is impossible."""
    if name is None:
        return {}
    stored = record.get("quantization_config")
    if stored:
        got = shown(stored.get("quant_method") if isinstance(stored, dict) else stored)
        raise CheckpointError(f"--quantize: expected a checkpoint without quantization_config, got {got}")
    if name in GPU_FORMATS and dtype not in HALF:
        raise CheckpointError(f"--quantize {name}: expected a model in {' or '.join(HALF)}, got {dtype}")
    return QUANTIZATIONS[name]


def precision(record: dict[str, Any], is_on_gpu: bool) -> str:
    """Return the dtype to serve in: the checkpoint's, except for float16 on a CPU; raise CheckpointError if unknown.

    The dtype is set explicitly, because vLLM would choose a 16-bit one for a float32 checkpoint. On a CPU, float16
    becomes float32: most CPUs compute float16 in float32, with a conversion around every product.
    """
    stored = record.get("dtype") or record.get("torch_dtype")  # key of transformers 5.0 and later, and of earlier ones
    if not isinstance(stored, str) or stored not in NUM_BYTES:
        raise CheckpointError(f"config.json: dtype: expected {', '.join(NUM_BYTES)}, got {shown(stored)}")
    return "float32" if stored == "float16" and not is_on_gpu else stored


def bytes_per_row(record: dict[str, Any], dtype: str) -> int:
    """Return the KV-cache memory per row in bytes: keys and values of every layer."""
    num_heads = count(record, "num_attention_heads")
    held = num_heads if record.get("num_key_value_heads") is None else count(record, "num_key_value_heads")
    head_dim = (
        count(record, "hidden_size") // num_heads if record.get("head_dim") is None else count(record, "head_dim")
    )
    return kv_numbers(count(record, "num_hidden_layers"), held * head_dim) * NUM_BYTES[dtype]


def condition_bytes(record: dict[str, Any], family: Family, dtype: str) -> int:
    """Return the size of a batch slot's table of conditions: keys and values of every layer; 0 without conditions."""
    conditions = family.mechanism.conditions
    if conditions is None:
        return 0
    numbers = kv_numbers(count(record, "num_hidden_layers"), count(record, "hidden_size"))
    return conditions.vector_rows * numbers * NUM_BYTES[dtype]


def count(record: dict[str, Any], name: str, source: str = "config.json") -> int:
    """Return a size in config.json or another source; raise CheckpointError unless it is in [1, MAX_COUNT]."""
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
        raise CheckpointError(f"{source}: {name}: expected an integer in [1, {MAX_COUNT}], got {shown(value)}")
    return value


def file_bytes(files: Iterable[Path]) -> int:
    """Return the total size of files."""
    return sum(file.stat().st_size for file in files)
