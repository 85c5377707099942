"""Configuration set by the operator, as frozen dataclasses created once at start-up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

MAX_SLOTS = 64  # maximum number of slots for LoRA adapters
MAX_RANK = 512  # maximum rank of an adapter in vLLM
# vLLM's engine arguments for memory
MEMORY_ARGUMENTS = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configuration of the vLLM engine.

    Attributes:
        engine_args: vLLM's engine arguments, passed unchanged (`max_num_seqs`, `gpu_memory_utilization`, ...). The
            model, the scheduler and the tokenizer are set by the plugin.
        kv_share: Maximum share of the KV cache, in (0, 1], for requests with text replies (`understanding`) and for
            requests that generate audio (`generation`). A kind of request that is not listed has no limit.
        max_waiting: Maximum number of sequences that wait to enter the batch of `max_num_seqs`; further requests are
            rejected as `full`. A guided reply has two sequences. None for no limit.
        first_frame_target_s: Target for the time to the first frame. While it is missed, fewer replies are admitted
            (`FlightLimit`). None for no target.
        batch_invariant: True if logits must not depend on the other requests in the batch. Only needed on GPUs, where
            it reduces throughput. None means True on a GPU if the family's frames are latents, and False otherwise.
        live_reserve: True if live sessions keep the KV blocks of their attention window. False if they may be
            preempted, and then delayed while all their rows are recomputed.
        adapters: LoRA adapter folders in PEFT format, relative to `checkpoint`, keyed by the name used in requests.
        adapters_folder: Folder, relative to `checkpoint`, of adapters that are loaded and unloaded while the engine
            runs.
        adapter_slots: Maximum number of such adapters, whose memory is reserved at the start.
        adapter_rank: Maximum rank of such an adapter.
        reserved_mb: Memory of the GPU that is left to other processes, in MiB. Unless `gpu_memory_utilization` is
            given, it is set to the remaining share at start-up. None for vLLM's default.
        latent_steps: Solver step counts for which CUDA graphs are captured, in addition to the family's default.
            Latents with other step counts are computed without graphs.
        memory_mb: Memory of the GPU that this engine may use, in MiB. None to use all memory except `reserved_mb`.
        speaker: Fields of this class and engine arguments for the speaker's engine, if the family has a speaker.
            Engine arguments that are missing are those of this configuration.
        int8: True to quantize the weights and the inputs of the language model's linear layers to int8, on CPUs with
            VNNI instructions. Embeddings, norms, heads and narrow layers are not quantized.
        submit_early_ms: Time before the expected end of a step at which a GPU's next step is submitted. Requests that
            arrive before its submission join it. The time must cover the host's work for a step with one reply; the
            time for more replies is added. None to submit each step while the previous one runs.
        first_chunk: Key of `DecoderConfig.CONVOLUTIONS`, the same as the decoder's. The engine's process then has a
            copy of the codec, and decodes the first frames of replies with convolutions in this mode. None if the
            decoder decodes all frames.
    """

    checkpoint: Path
    engine_args: dict[str, Any] = field(default_factory=dict)
    kv_share: Mapping[str, float] = field(default_factory=dict)
    batch_invariant: bool | None = None
    max_waiting: int | None = None
    first_frame_target_s: float | None = None
    adapters: Mapping[str, str | Path] = field(default_factory=dict)
    adapters_folder: str | None = None
    adapter_slots: int = 4
    adapter_rank: int = 16
    live_reserve: bool = True
    latent_steps: Sequence[int] = ()
    reserved_mb: int | None = None
    memory_mb: int | None = None
    speaker: Mapping[str, Any] = field(default_factory=dict)
    int8: bool = False
    submit_early_ms: float | None = None
    first_chunk: str | None = None

    RESERVED = ("model", "scheduler_cls", "skip_tokenizer_init")
    SHARED_BY = ("understanding", "generation")

    def __post_init__(self) -> None:
        reserved = sorted(set(self.engine_args) & set(self.RESERVED))
        if reserved:
            raise ValueError(f"engine arguments {reserved} are set by the plugin and cannot be changed")
        if not isinstance(self.kv_share, Mapping):
            raise ValueError(f"kv_share: expected an object that maps names to shares, got {self.kv_share!r}")
        for name, share in self.kv_share.items():
            if name not in self.SHARED_BY:
                raise ValueError(f"kv_share: expected {' or '.join(self.SHARED_BY)}, got {name!r}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"kv_share.{name} must be in (0, 1], got {share!r}")
        if self.batch_invariant is not None and not isinstance(self.batch_invariant, bool):
            raise ValueError(f"batch_invariant must be true, false or null, got {self.batch_invariant!r}")
        for name in ("live_reserve", "int8"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        waiting = self.max_waiting
        if waiting is not None and (isinstance(waiting, bool) or not isinstance(waiting, int) or waiting < 0):
            raise ValueError(f"max_waiting must be >= 0, or null for no bound, got {waiting!r}")
        for name in ("first_frame_target_s", "submit_early_ms"):
            duration = getattr(self, name)
            if duration is not None and (type(duration) not in (int, float) or not 0 < duration < float("inf")):
                raise ValueError(f"{name} must be > 0, or null for none, got {duration!r}")
        if self.first_chunk is not None and self.first_chunk not in DecoderConfig.CONVOLUTIONS:
            modes = ", ".join(DecoderConfig.CONVOLUTIONS)
            raise ValueError(f"first_chunk must be one of {modes}, or null for none, got {self.first_chunk!r}")
        if not isinstance(self.adapters, Mapping):
            raise ValueError(f"adapters: expected an object that maps names to folders, got {self.adapters!r}")
        for name, folder in self.adapters.items():
            if not isinstance(folder, str | Path) or not str(folder) or not name:
                raise ValueError(f"adapters: expected a name and its folder, got {name!r} and {folder!r}")
        if self.adapters_folder is not None and (not isinstance(self.adapters_folder, str) or not self.adapters_folder):
            raise ValueError(f"adapters_folder: expected a folder, or null for none, got {self.adapters_folder!r}")
        for name, most in (("adapter_slots", MAX_SLOTS), ("adapter_rank", MAX_RANK)):
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= most:
                raise ValueError(f"{name} must be an integer in [1, {most}], got {number!r}")
        for name, least in (("reserved_mb", 0), ("memory_mb", 1)):
            size_mb = getattr(self, name)
            if size_mb is not None and (type(size_mb) is not int or size_mb < least):
                raise ValueError(f"{name} must be an integer >= {least}, or null for vLLM's default, got {size_mb!r}")
        if not isinstance(self.speaker, Mapping) or {"speaker", "checkpoint"} & set(self.speaker):
            expected = "an object with the options of an engine, without speaker and checkpoint"
            raise ValueError(f"speaker: expected {expected}, got {self.speaker!r}")
        if not isinstance(self.latent_steps, list | tuple) or any(
            type(latent_step) is not int for latent_step in self.latent_steps
        ):
            raise ValueError(f"latent_steps: expected a list of integers, got {self.latent_steps!r}")

    @property
    def adapter_folders(self) -> dict[str, Path]:
        return {name: self.checkpoint / folder for name, folder in self.adapters.items()}

    @property
    def loadable_folder(self) -> Path | None:
        """Folder of the adapters that may be loaded while the engine runs."""
        return None if self.adapters_folder is None else self.checkpoint / self.adapters_folder

    @classmethod
    def from_file(cls, engine_json: Path, checkpoint: Path) -> "EngineConfig":
        """Read the configuration from `language_model/1/engine.json`; raise ValueError if a value is out of range.

        Keys that are not fields of this class are vLLM's engine arguments.
        """
        return cls._from_record(json.loads(engine_json.read_text(encoding="utf-8")), checkpoint)

    @classmethod
    def _from_record(cls, record: dict[str, Any], checkpoint: Path) -> "EngineConfig":
        names = {declared.name for declared in fields(cls)} - {"checkpoint", "engine_args"}
        ours = {name: record.pop(name) for name in names & set(record)}
        return cls(checkpoint, record, **ours)

    def speaker_config(self, checkpoint: Path) -> "EngineConfig":
        """Return the configuration of the speaker's engine; raise ValueError if a value is out of range.

        The first engine's arguments for memory do not apply, because each engine has memory of its own.
        """
        shared = {name: value for name, value in self.engine_args.items() if name not in MEMORY_ARGUMENTS}
        return self._from_record({**shared, **self.speaker}, checkpoint)


MAX_ALIGN_S = 30.0  # less than the time after which the language model considers the decoder dead


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Configuration of the acoustic decoder.

    Attributes:
        codec: Name of an installed codec (`stretto.codecs.base`); by default the codec of the checkpoint's family.
        num_codebooks: Number of codebooks to decode, counted from the first; None for all.
        device: Device on which the codec runs (`cpu`, `cuda`, `cuda:1`, …).
        threads: Number of torch threads on the CPU.
        runtime: `torch`, or `onnx` for the file written by `scripts/export_onnx.py`.
        right_frames: Right context in frames; None for the codec's. With less, audio is available earlier but inexact.
        convolutions: Mode of convolutions: torch's `float32`, `exact` (three TF32 products of operands in two parts),
            or the inexact `tf32` or `bfloat16`. Only GPUs are faster with the others.
        graphs: True to capture CUDA graphs of the usual shapes at start-up.
        max_batch: Maximum number of windows decoded at once. About 16 suits a CPU, because of its caches, and 64 a GPU.
        first_frames: Usual number of audible frames in an utterance's first chunk; by default the family's.
        steady_frames: Usual maximum number of frames in a chunk; by default the family's. Windows of the usual sizes
            are captured and warmed up at start-up; clients may request other sizes.
        idle_timeout_s: Time without a chunk after which an utterance is dropped.
        stop_timeout_s: Maximum time for which a stopping decoder continues to decode open utterances.
        warm_up_s: Duration of the warm-up at start-up.
        reference_mb: Maximum size, in MiB, of the cache that stores the codec's state after each voice reference.
        memory_mb: Maximum memory of all tensors and workspaces on a GPU, in MiB; 0 for no limit.
        aligner: Folder of the CTC model for word times; empty for none.
        align_s: Maximum time from the last samples of an utterance to its word times.
        align_mb: Maximum size of the samples stored for word times, in MiB; further utterances get no times.
        marker: Name of the marker of generated speech (`marking.marker`); empty for none.
    """

    codec: str = ""
    num_codebooks: int | None = None
    runtime: str = "torch"
    right_frames: int | None = None
    device: str = "cpu"
    threads: int = 1
    convolutions: str = "float32"
    graphs: bool = True
    max_batch: int = 16
    first_frames: int = 4
    steady_frames: int = 25
    max_utterances: int = 256
    idle_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0
    warm_up_s: float = 0.0
    reference_mb: int = 256
    memory_mb: int = 0
    aligner: str = ""
    aligner_device: str = "cpu"
    align_s: float = 5.0
    align_mb: int = 256
    marker: str = ""

    RUNTIMES = ("torch", "onnx")
    # Triton's name for the precision of products, by mode; None for torch's convolutions.
    CONVOLUTIONS: ClassVar = {"float32": None, "exact": "tf32x3", "tf32": "tf32", "bfloat16": "bf16"}

    def __post_init__(self) -> None:
        if self.runtime not in self.RUNTIMES:
            raise ValueError(f"runtime must be one of {self.RUNTIMES}, got {self.runtime!r}")
        if self.convolutions not in self.CONVOLUTIONS:
            raise ValueError(f"convolutions must be one of {(*self.CONVOLUTIONS,)}, got {self.convolutions!r}")
        if self.runtime == "onnx" and self.convolutions != "float32":
            raise ValueError(f"convolutions must be float32 if runtime is onnx, got {self.convolutions}")
        if self.num_codebooks is not None and self.num_codebooks < 1:
            raise ValueError(f"num_codebooks must be >= 1, got {self.num_codebooks}")
        if self.right_frames is not None and self.right_frames < 0:
            raise ValueError(f"right_frames must be >= 0, got {self.right_frames}")
        for name in ("threads", "max_batch", "first_frames", "max_utterances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.steady_frames < self.first_frames:
            raise ValueError(f"steady_frames must be >= first_frames ({self.first_frames}), got {self.steady_frames}")
        for name in ("reference_mb", "memory_mb", "align_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 < self.align_s <= MAX_ALIGN_S:
            raise ValueError(f"align_s must be in (0, {MAX_ALIGN_S:g}], got {self.align_s}")
        if not 0 < self.idle_timeout_s < float("inf"):
            raise ValueError(f"idle_timeout_s must be > 0, got {self.idle_timeout_s}")
        if not 0 <= self.stop_timeout_s < float("inf"):
            raise ValueError(f"stop_timeout_s must be >= 0, got {self.stop_timeout_s}")
        if not 0 <= self.warm_up_s < float("inf"):
            raise ValueError(f"warm_up_s must be >= 0, got {self.warm_up_s}")

    def limited(self, max_batch: int | None) -> "DecoderConfig":
        """Return this configuration with batches of at most `max_batch` windows; None leaves them unchanged."""
        return self if max_batch is None else replace(self, max_batch=min(self.max_batch, max_batch))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "DecoderConfig":
        """Read the configuration from a Triton model's known parameters; raise ValueError if one is invalid."""
        kinds = {declared.name: declared.type for declared in fields(cls) if declared.name in parameters}
        values: dict[str, Any] = {
            name: parse_parameter(name, value_type, parameters[name]) for name, value_type in kinds.items()
        }
        return cls(**values)


def parse_parameter(name: str, value_type: Any, text: str) -> Any:
    """Convert the text of a Triton model parameter to a value; raise ValueError with its `name` if that fails.

    Args:
        value_type: int, float, str, bool, or a union of one of these with None.
    """
    if value_type is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text == "true"
    value_type = next(iter(get_args(value_type)), value_type)  # `int | None` means int; None is expressed by omission
    try:
        return value_type(text)
    except ValueError:
        raise ValueError(f"{name} must be {value_type.__name__}, got {text!r}") from None
