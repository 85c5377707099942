"""Division of a GPU's memory between the language model and the other processes of a server.

The decoder, the preprocessor and the server need the same memory on every GPU (`Needs.reserved`). The language model
gets the rest when it starts (`EngineConfig.reserved_mb`), whatever the order in which the processes start.

The module imports no torch, because `stretto run` estimates in this way whether a release fits before it is installed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.machine.gpus import MIB, gpus
from stretto.machine.sizing import LIBRARY_BYTES

if TYPE_CHECKING:
    from stretto.codecs.base import CodecSpec

GIB = 1 << 30
SERVER_BYTES = 1 << 30  # context of the server process, clients' rings, and memory lost to fragmentation
ENGINE_BYTES = 2 << 30  # context, activations and CUDA graphs of the language model
NVIDIA_SMI_S = 30.0


def check_first_chunk(mode: str, decoder_mode: str, family: Family, spec: "CodecSpec") -> None:
    """Raise CheckpointError unless the engine can decode first frames, with the decoder's samples.

    Args:
        mode: `EngineConfig.first_chunk`.
        decoder_mode: How the decoder computes convolutions.
        family: Family of the checkpoint.
        spec: Constants of its codec.
    """
    if mode != decoder_mode:
        raise CheckpointError(f"first_chunk: expected {decoder_mode}, the decoder's convolutions, got {mode}")
    family.check_plain_frames(mode)
    spec.check_decodes_first(mode)


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory that the processes of a server need on the language model's GPU, in bytes.

    Attributes:
        decoder: The decoder; 0 if it is on another device.
        preprocessor: Weights of the preprocessor; None if it is on another device.
        weights: Weights of the language model.
        tables: Tables of the language model's batch slots, besides the KV cache.
        cache: KV cache of a reply of the greatest length, with both requests of a CFG pair.
        tensors: Tensors of the decoder, on any device (`DecoderConfig.memory_mb`); 0 if unknown.
        speaker: The speaker's engine; 0 without a speaker.
    """

    decoder: int
    preprocessor: int | None
    weights: int
    tables: int
    cache: int
    tensors: int = 0
    speaker: int = 0

    @property
    def reserved(self) -> int:
        """Memory of all processes except the language model's; that of a speaker is reserved as well."""
        preprocessor = 0 if self.preprocessor is None else self.preprocessor + 2 * LIBRARY_BYTES
        return self.decoder + preprocessor + self.speaker + SERVER_BYTES

    @property
    def reserved_mb(self) -> int:
        """`reserved`, in MiB (`EngineConfig.reserved_mb`)."""
        return -(-self.reserved // MIB)

    @property
    def engine(self) -> int:
        """Least memory of the language model."""
        return engine_bytes(self.weights, self.tables + self.cache)

    @property
    def total(self) -> int:
        """Memory of the smallest GPU that is large enough."""
        return self.reserved + self.engine

    def cache_on(self, gpu_bytes: int) -> int:
        """Return the memory of the KV cache on a GPU with this much memory; negative if the weights do not fit."""
        return gpu_bytes - self.reserved - (self.engine - self.cache)

    def check(self, gpu_bytes: int) -> None:
        """Raise CheckpointError if a GPU with this much memory is too small."""
        if self.cache_on(gpu_bytes) < self.cache:
            raise CheckpointError(
                f"expected a GPU with at least {self.total / GIB:.1f} GiB: the language model needs"
                f" {self.engine / GIB:.1f} (weights {self.weights / GIB:.1f}, one reply {self.cache / GIB:.1f}) and the"
                f" other processes {self.reserved / GIB:.1f}, got {gpu_bytes / GIB:.1f} GiB;"
                " --codec-device puts the codec on another GPU"
            )


def engine_bytes(weights: int, cache: int) -> int:
    """Return the memory of an engine with these weights and this cache."""
    return weights + cache + ENGINE_BYTES


def latent_bytes(family: Family, num_slots: int, num_rows: int) -> int:
    """Return the size of the tables of latents that are fed back; 0 for other families.

    Args:
        family: The family.
        num_slots: Number of batch slots.
        num_rows: Number of rows of the longest request.
    """
    latents = family.layout.latents
    return 0 if latents is None else 4 * num_slots * (num_rows + 1) * latents.num_words  # float32


def file_bytes(files: Iterable[Path]) -> int:
    """Return the total size of files."""
    return sum(file.stat().st_size for file in files)


def bytes_of_gpu(number: int) -> int | None:
    """Return the memory of a GPU of this machine; None if nvidia-smi does not know it."""
    return next((gpu.total_bytes for gpu in gpus(NVIDIA_SMI_S) if gpu.number == number), None)
