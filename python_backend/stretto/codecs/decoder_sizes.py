"""Estimates of the decoder's memory and operations with each published codec, for use before a codec is installed.

`benchmarks.decoder_memory` computes the memory on a GPU, and `benchmarks.codec_operations` counts the operations. The
module imports no torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderSize:
    """Memory and operations of the decoder with a codec of published size.

    Attributes:
        gpu_gb: Memory on a GPU, in GB.
        gflop_per_s: Operations to decode a second of audio, in 10⁹; 0 if unknown. Counted for a reply of 4 s and, if
            the codec reads the voice, a voice of 3 s.
        state_bytes: Size of an utterance's state, if it limits the number of batch slots, else 0.
        voices_bytes: Maximum size of the codec's cache of voices on a CPU.
        is_whole: True for a codec that decodes a reply only after its last code.
    """

    gpu_gb: float
    gflop_per_s: float
    state_bytes: int = 0
    voices_bytes: int = 0
    is_whole: bool = False

    @property
    def gpu_bytes(self) -> int:
        return round(1e9 * self.gpu_gb)


UNKNOWN = DecoderSize(gpu_gb=9.0, gflop_per_s=0.0)  # assumed for a codec if no package states its size
BUILT_IN = {
    "dac": DecoderSize(8.29, 144.6),
    "espnet_dac": DecoderSize(7.07, 6.2),
    "glm4_voice": DecoderSize(8.62, 308.5),
    "mimi": DecoderSize(11.55, 5.5),
    "qwen3_12hz": DecoderSize(11.13, 62.1),
    "soundless": DecoderSize(6.95, 0.0),  # no more than with the smallest codec
    "tiny": DecoderSize(6.95, 0.5),
    "xcodec": DecoderSize(7.44, 41.6),
}
