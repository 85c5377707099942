"""What an operator may set, as frozen dataclasses built once at the rim."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where the checkpoint lies and how vLLM runs it.

    engine_args: vLLM's engine arguments, verbatim (`max_num_seqs`, `gpu_memory_utilization`, ...); the model, the
    scheduler and the tokenizer belong to the plugin and may not be set.
    kv_share: the share of the KV cache up to which requests that listen (`understanding`) and requests that speak
    (`generation`) are admitted, so that neither kind keeps the other waiting; a kind that is not named has no limit.
    max_waiting: how many sequences may wait for a place in the batch, beyond the `max_num_seqs` that are in it, before
    further requests are refused as `full`; a guided reply has two. None for as many as come.
    first_frame_target_s: seconds within which first frames should come; as long as they do not, fewer replies are let
    in (`engine/frontend/flight_limit.py`). None: how many is bounded by `max_waiting` alone.
    batch_invariant: whether logits may not depend on what else is in the batch, on a GPU and at a cost.
    adapters: folders of LoRA adapters, as PEFT writes them, by the names that requests use; relative to `checkpoint`.
    """

    checkpoint: Path
    engine_args: dict[str, Any] = field(default_factory=dict)
    kv_share: dict[str, float] = field(default_factory=dict)
    batch_invariant: bool = False
    max_waiting: int | None = None
    first_frame_target_s: float | None = None
    adapters: Mapping[str, str | Path] = field(default_factory=dict)

    RESERVED = ("model", "scheduler_cls", "skip_tokenizer_init")
    SHARED_BY = ("understanding", "generation")

    def __post_init__(self) -> None:
        reserved = sorted(set(self.engine_args) & set(self.RESERVED))
        if reserved:
            raise ValueError(f"engine arguments {reserved} are set by the plugin and may not be given")
        for name, share in self.kv_share.items():
            if name not in self.SHARED_BY:
                raise ValueError(f"kv_share: expected {' or '.join(self.SHARED_BY)}, got {name!r}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"kv_share.{name} must be in (0, 1], got {share!r}")
        if not isinstance(self.batch_invariant, bool):
            raise ValueError(f"batch_invariant must be true or false, got {self.batch_invariant!r}")
        waiting = self.max_waiting
        if waiting is not None and (isinstance(waiting, bool) or not isinstance(waiting, int) or waiting < 0):
            raise ValueError(f"max_waiting must be >= 0, or null for no bound, got {waiting!r}")
        target = self.first_frame_target_s
        if target is not None and (
            isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < float("inf")
        ):
            raise ValueError(f"first_frame_target_s must be > 0, or null for none, got {target!r}")
        if not isinstance(self.adapters, Mapping):
            raise ValueError(f"adapters: expected names and folders, got {self.adapters!r}")
        for name, folder in self.adapters.items():
            if not isinstance(folder, str | Path) or not str(folder) or not name:
                raise ValueError(f"adapters: expected a name and its folder, got {name!r} and {folder!r}")

    @property
    def adapter_folders(self) -> dict[str, Path]:
        """The folders of the adapters, by name."""
        return {name: self.checkpoint / folder for name, folder in self.adapters.items()}

    @classmethod
    def from_file(cls, engine_json: Path, checkpoint: Path) -> "EngineConfig":
        """Engine arguments, and the above, from a JSON object on disk (`language_model/1/engine.json`)."""
        record = json.loads(engine_json.read_text())
        names = {each.name for each in fields(cls)} - {"checkpoint", "engine_args"}
        ours = {name: record.pop(name) for name in names & set(record)}
        return cls(checkpoint, record, **ours)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """How the acoustic decoder works.

    codec: name in `codec.registry`; num_codebooks: how many of its codebooks the codes have, the first ones; None for
    all. device: where it decodes (`cpu`, `cuda`, `cuda:1`, …); threads: of torch, on the CPU.
    runtime: `torch`, or `onnx` for the file that `scripts/export_onnx.py` writes. right_frames: frames that a window
    waits for, fewer than the codec's own for sound that comes earlier and is not exact; None for the codec's own.
    dtype: of matrix products and convolutions: `float32`, or `bfloat16` or `float16`, which are not exact.
    graphs: whether CUDA graphs are captured, at the start and of shapes that come often. max_batch: windows decoded at
    once: about 16 on a CPU, whose caches do not hold more; 64 on a GPU. max_utterances: open at once. idle_timeout_s:
    an utterance without a chunk for so long is forgotten. stop_timeout_s: how long a stopping decoder goes on.
    warm_up_s: how long a starting one decodes windows that nobody asked for, so that none is slow as the first of its
    shape. reference_mb: memory for what the references that voices are cloned from have left of the codec's state, so
    that each is not decoded for every utterance.
    """

    codec: str = "tiny"
    num_codebooks: int | None = None
    runtime: str = "torch"
    right_frames: int | None = None
    device: str = "cpu"
    threads: int = 1
    dtype: str = "float32"
    graphs: bool = True
    max_batch: int = 16
    max_utterances: int = 256
    idle_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0
    warm_up_s: float = 0.0
    reference_mb: int = 256

    RUNTIMES = ("torch", "onnx")
    DTYPES = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        if self.runtime not in self.RUNTIMES:
            raise ValueError(f"runtime must be one of {self.RUNTIMES}, got {self.runtime!r}")
        if self.dtype not in self.DTYPES:
            raise ValueError(f"dtype must be one of {self.DTYPES}, got {self.dtype!r}")
        if self.runtime == "onnx" and self.dtype != "float32":
            raise ValueError(f"dtype must be float32 where runtime is onnx, got {self.dtype}")
        if self.num_codebooks is not None and self.num_codebooks < 1:
            raise ValueError(f"num_codebooks must be >= 1, got {self.num_codebooks}")
        if self.right_frames is not None and self.right_frames < 0:
            raise ValueError(f"right_frames must be >= 0, got {self.right_frames}")
        for name in ("threads", "max_batch", "max_utterances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.reference_mb < 0:
            raise ValueError(f"reference_mb must be >= 0, got {self.reference_mb}")
        if not 0 < self.idle_timeout_s < float("inf"):
            raise ValueError(f"idle_timeout_s must be > 0, got {self.idle_timeout_s}")
        if not 0 <= self.stop_timeout_s < float("inf"):
            raise ValueError(f"stop_timeout_s must be >= 0, got {self.stop_timeout_s}")
        if not 0 <= self.warm_up_s < float("inf"):
            raise ValueError(f"warm_up_s must be >= 0, got {self.warm_up_s}")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "DecoderConfig":
        """From a model's parameters, whatever others there are; ValueError names what does not parse."""
        kinds = {each.name: each.type for each in fields(cls) if each.name in parameters}
        values: dict[str, Any] = {name: parse_parameter(name, kind, parameters[name]) for name, kind in kinds.items()}
        return cls(**values)


def parse_parameter(name: str, kind: Any, text: str) -> Any:
    """`text` as a value of `kind`: int, float, str, bool, or one of those or None; ValueError, by `name`, otherwise."""
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text == "true"
    kind = next(iter(get_args(kind)), kind)  # of `int | None`, int: what is None is not given
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {kind.__name__}, got {text!r}") from None
