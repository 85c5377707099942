"""Stand-in for faster-qwen3-tts: silence in chunks of the asked length."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


class FasterQwen3TTS:
    @classmethod
    def from_pretrained(cls, folder: str, *, device: str) -> "FasterQwen3TTS":
        assert Path(folder, "model.safetensors").exists()
        return cls()

    def generate_custom_voice_streaming(
        self, text: str, speaker: str, language: str, max_new_tokens: int, min_new_tokens: int, chunk_size: int
    ) -> Iterator[tuple[np.ndarray, int, dict[str, float]]]:
        assert min_new_tokens == max_new_tokens
        for _ in range(max_new_tokens // chunk_size):
            yield np.zeros(1920 * chunk_size, np.float32), 24_000, {}
