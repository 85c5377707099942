"""Fish Audio S2's codec: codes and samples equal those of a slow reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from plugins.fish_s2.lab.codecs import convert_codec
from plugins.fish_s2.lab.random_fish_s2_codec import KINDS, PUBLISHED, tensors
from plugins.fish_s2.tests.codec_reference import Reference
from stretto.testing.codec_suite import CodecCase, CodecSuite, PublishedCodec
from stretto.testing.releases import edited
from stretto_fish_s2.codec import FishS2Codec, FishS2Config

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = "expected an integer in [1, 65536]"


@dataclass(frozen=True)
class Sizes:
    """A kind of codec, with other attention windows, which no tensor depends on."""

    kind: str
    window_size: int
    encoder_window_size: int

    @property
    def windows(self) -> dict[str, int]:
        return {"window_size": self.window_size, "encoder_window_size": self.encoder_window_size}

    def write(self, folder: Path) -> Path:
        checkpoint = convert_codec(folder, self.kind)
        with edited(checkpoint / "codec" / "config.json") as record:
            record |= self.windows
        return checkpoint

    def reference(self) -> Reference:
        return Reference(KINDS[self.kind] | self.windows, tensors(self.kind))

    def decoded(self, codec: FishS2Codec, codes: Tensor) -> Tensor:
        """Decode codes of which many exceed the last one, as those of the language model may."""
        return torch.stack([self.reference().decode(row) for row in codes])

    def encoded(self, codec: FishS2Codec, pcm: np.ndarray) -> np.ndarray:
        padded = np.pad(pcm, (0, -len(pcm) % codec.spec.samples_per_frame))
        return self.reference().encode(torch.from_numpy(padded)).numpy()[: codec.spec.num_codebooks]


def published_codec() -> FishS2Codec:
    return FishS2Codec(FishS2Config.from_record(PUBLISHED))


# keys and values of eight layers, and inputs of convolutions
STATE_SIZE = 8 * 2 * 127 * 1024 + 3 * 6 * 1024 + 1536 + 79 * (768 + 384 + 192) + 78 * 96 + 6 * 96


def case_of(name: str, sizes: Sizes, num_frames: int, positions: tuple[int, ...]) -> CodecCase:
    return CodecCase(
        name=name,
        write=sizes.write,
        spec={"codebook_size": KINDS[sizes.kind]["semantic_codebook_size"], "left_frames": 0, "right_frames": 0},
        decoded=sizes.decoded,
        encoded=sizes.encoded,
        num_frames=num_frames,
        positions=positions,
        tolerance=1e-8,
        float32_tolerance=2e-5,
        weights="codec/model.safetensors",
        config="codec/config.json",
        published=PublishedCodec(published_codec, STATE_SIZE, 391_398_385),
        refused_configs=(
            ({"model_type": "dac"}, "model_type: expected 'fish_s2', got 'dac'"),
            ({"n_layer": None}, f"n_layer: {SIZE}, got None"),
            ({"encoder_dim": 1 << 40}, f"encoder_dim: {SIZE}, got 1099511627776"),
            ({"codebook_size": True}, f"codebook_size: {SIZE}, got True"),
            ({"window_size": 5000}, "window_size: expected an integer in [1, 4096], got 5000"),
            ({"decoder_rates": []}, "decoder_rates: expected 1 to 8 integers in [1, 65536], got []"),
            ({"decoder_rates": "8842"}, "decoder_rates: expected 1 to 8 integers in [1, 65536], got '8842'"),
            ({"decoder_rates": [8, 8]}, "expected rates with the product of encoder_rates, "),
            ({"decoder_dim": 21}, "decoder_dim: expected a multiple of "),
            ({"encoder_dim": 5}, "encoder_dim: expected a multiple of 64 channels, got "),
            ({"n_layer": 5}, "missing: encoder.pre_transformer.layers.3."),
            ({"codebook_dim": 9}, "wrong shape: residual.quantizers.0.codebook.weight"),
        ),
    )


class TestFishS2(CodecSuite):
    """Its windows are shorter than the published ones."""

    case = case_of("fish_s2", Sizes("other", 24, 48), num_frames=40, positions=(0, 5, 35))


@pytest.mark.nightly
class TestFishS2WithPublishedWindows(CodecSuite):
    case = case_of("fish_s2", Sizes("small", 128, 512), num_frames=140, positions=(0, 5, 135))
