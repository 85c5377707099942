"""NanoCodec: samples equal those of a slow reference, and only archives that fit are converted."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins.magpie.lab.codecs import convert_codec
from plugins.magpie.lab.nemo_archive import write_nemo
from plugins.magpie.lab.random_nanocodec import KINDS, decoder_shapes, tensors, write_codec
from plugins.magpie.tests.codec_reference import Reference
from stretto.codecs.streaming import prepare
from stretto.errors import CheckpointError
from stretto.testing.codec_suite import CodecCase, CodecSuite, OnGpu, PublishedCodec
from stretto.testing.releases import Edit, set_fields
from stretto.weights.loading import check
from stretto_magpie.archive import NemoArchive
from stretto_magpie.codec import NanoCodec, NanoCodecConfig, codec_shapes
from stretto_magpie.convert_codec import codec_network, plan, read_config

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Sizes:
    """A kind of codec, and how many frames are stacked."""

    kind: str
    stacked: int

    def write(self, folder: Path) -> Path:
        return convert_codec(folder, self.kind, self.stacked)

    def decoded(self, codec: NanoCodec, codes: Tensor) -> Tensor:
        """Decode each frame of a stack in its turn; absent codebooks are those of the last frames."""
        reference = Reference(KINDS[self.kind], tensors(self.kind))
        num_groups = KINDS[self.kind]["vector_quantizer"]["num_groups"]
        if self.stacked > 1 and codes.shape[1] == self.stacked * num_groups:
            codes = torch.stack(codes.split(num_groups, 1), 3).flatten(2)
        return torch.stack([reference.decode(row) for row in codes])


def one_stage() -> NanoCodec:
    """Return a codec with as few layers as possible, for Triton's interpreter."""
    torch.manual_seed(0)
    codec = NanoCodec(NanoCodecConfig(22050, 2, (3, 2), 4, (2,), 2)).eval().requires_grad_(False)
    prepare(codec)
    return codec


def published_codec() -> NanoCodec:
    return NanoCodec(read_config(KINDS["published"], 1))


# the inputs of convolutions, and one input of each upsampling layer
STATE_SIZE = 6 * 32 + (864 + 432 + 216 + 108 + 54) + 12 * (2 + 6 + 10) * (432 + 216 + 108 + 54 + 27) + 2 * 27
NUM_PARAMETERS = 31_564_085


class TestNanoCodec(CodecSuite):
    case = CodecCase(
        name="nanocodec",
        write=Sizes("small", 1).write,
        spec={
            "sample_rate": 22050,
            "samples_per_frame": 1024,
            "num_codebooks": 8,
            "codebook_size": 72,
            "left_frames": 0,
            "right_frames": 0,
        },
        decoded=Sizes("small", 1).decoded,
        can_encode=False,
        num_frames=12,
        positions=(0, 3, 7),
        tolerance=1e-10,
        float32_tolerance=2e-5,
        weights="codec/model.safetensors",
        config="codec/config.json",
        published=PublishedCodec(published_codec, STATE_SIZE, NUM_PARAMETERS),
        refused_configs=(
            ({"model_type": "dac"}, "model_type: expected 'nanocodec', got 'dac'"),
            ({"num_groups": None}, "num_groups: expected an integer in [1, 64], got None"),
            ({"base_channels": True}, "base_channels: expected an integer in [1, 65536], got True"),
            ({"base_channels": 36}, "base_channels: expected a multiple of 32 channels, got 36"),
            ({"up_sample_rates": "88422"}, "up_sample_rates: expected 1 to 8 integers in [1, 65536], got '88422'"),
            ({"num_levels_per_group": [8, 1]}, "num_levels_per_group: expected 1 to 8 integers in [2, 65536]"),
            ({"num_levels_per_group": [300] * 4}, "expected at most 65536 codes, got 8100000000"),
            ({"up_sample_rates": [8, 8, 4, 2]}, "unknown: activations.4.alpha"),
            ({"num_groups": 4}, "wrong shape: pre_conv.conv.weight"),
        ),
    )


class TestStackedFrames(CodecSuite):
    """Three frames at once, with a rate and numbers of levels that are odd."""

    case = CodecCase(
        name="nanocodec",
        write=Sizes("other", 3).write,
        spec={"samples_per_frame": 45, "num_codebooks": 9, "codebook_size": 40},
        decoded=Sizes("other", 3).decoded,
        can_encode=False,
        num_frames=12,
        positions=(0, 3, 7),
        tolerance=1e-10,
        float32_tolerance=2e-5,
        weights="codec/model.safetensors",
        config="codec/config.json",
    )

    def test_fewer_codebooks_are_the_first_ones(self) -> None:
        """The codebooks of one frame are needed together."""


@pytest.mark.nightly
class TestKernels(TestStackedFrames):
    """Convolutions and activations are launches of our kernels; upsampling layers are four operations of torch."""

    case = replace(TestStackedFrames.case, on_gpu=OnGpu(one_stage, {"product": 20, "depthwise": 20}, 41))


@pytest.mark.parametrize("kind", KINDS)
def test_archive_names_the_tensors_of_the_codec(kind: str) -> None:
    """The published archive has 97 convolutions and 96 activations in its decoder."""
    config = read_config(KINDS[kind], 1)
    shapes = decoder_shapes(KINDS[kind])
    published: dict[str, Any] = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    parts = plan(config)
    check(parts, published, ())
    assert {part.name: part.written for part in parts.values()} == codec_shapes(config)
    if kind == "published":
        assert len(published) == 3 * 97 + 96


ALPHA = "audio_decoder.activations.0.activation.snake_act.alpha"
NORM = "audio_decoder.pre_conv.conv.parametrizations.weight.original0"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda stored: stored.pop(NORM), f"missing: {NORM}"),
        (lambda stored: stored.update({"audio_decoder.more": torch.zeros(2)}), "unknown: audio_decoder.more"),
        (lambda stored: stored.update({ALPHA: torch.ones(32)}), f"wrong shape: {ALPHA} [32] instead of [1, 32, 1]"),
        (lambda stored: stored.update({"more": "text"}), "expected tensors by name"),
    ],
)
def test_error_names_the_unexpected_tensor(tmp_path: Path, edit: Edit, message: str) -> None:
    stored = tensors()
    edit(stored)
    path = write_nemo(tmp_path / "codec.nemo", KINDS["small"], stored)
    with pytest.raises(CheckpointError) as refused:
        codec_network(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("audio_decoder.activation", "elu", "audio_decoder.activation: expected 'half_snake', got 'elu'"),
        ("audio_decoder.output_activation", None, "audio_decoder.output_activation: expected 'clamp', got None"),
        ("audio_decoder.resblock_kernel_sizes", [3], "resblock_kernel_sizes: expected [3, 7, 11], got [3]"),
        ("audio_decoder.n_groups_equal_to_out_channels", False, "expected True, got False"),
        ("audio_decoder.input_dim", 16, "audio_decoder.input_dim: expected 32, got 16"),
        ("samples_per_frame", 512, "samples_per_frame: expected 1024, got 512"),
        ("sample_rate", None, "sample_rate: expected an integer in [1, 65536], got None"),
        ("vector_quantizer", "text", "vector_quantizer._target_: expected "),
        ("vector_quantizer.num_groups", 1 << 20, "num_groups: expected an integer in [1, 64], got 1048576"),
    ],
)
def test_error_names_the_unsupported_value(tmp_path: Path, name: str, value: object, message: str) -> None:
    with NemoArchive(write_codec(tmp_path / "codec.nemo")) as archive:
        record = archive.config()
    set_fields(record, {name: value})
    path = write_nemo(tmp_path / "other.nemo", record, tensors())
    with pytest.raises(CheckpointError) as refused:
        codec_network(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


CONFIG = b"name: codec"


def sparse(path: Path) -> None:
    member = tarfile.TarInfo("./model_config.yaml")
    member.type = tarfile.REGTYPE
    member.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "1"}
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)


def compressed(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("./model_config.yaml"))


def linked(path: Path) -> None:
    member = tarfile.TarInfo("./model_config.yaml")
    member.type = tarfile.SYMTYPE
    member.linkname = "/etc/passwd"
    with tarfile.open(path, "w:") as archive:
        archive.addfile(member)


def cut(path: Path) -> None:
    content = write_codec(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def crowded(path: Path) -> None:
    with tarfile.open(path, "w:") as archive:
        for number in range(1025):
            archive.addfile(tarfile.TarInfo(f"{number}"))


def test_headers_that_extend_others_are_not_read(tmp_path: Path) -> None:
    """Their pairs of names and values would take memory for each file."""
    path = tmp_path / "codec.nemo"
    member = tarfile.TarInfo("./model_config.yaml")
    member.size = len(CONFIG)
    member.pax_headers = {"path": "other", "comment": "c" * 5000}
    shared = {f"key{number}": "value" for number in range(100)}
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT, pax_headers=shared) as archive:
        archive.addfile(member, BytesIO(CONFIG))
    with NemoArchive(path) as archive_read:
        assert archive_read.config() == {"name": "codec"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (compressed, "expected an uncompressed tar file, got TruncatedHeaderError"),
        (linked, "model_config.yaml is missing"),
        (sparse, "expected a mapping, got"),
        (cut, "expected "),
        (crowded, "expected at most 1024 files, got more"),
        (lambda path: path.write_bytes(b"{"), "expected an uncompressed tar file"),
        (lambda path: path.mkdir(), "expected a regular file, got a folder"),
        (lambda path: None, "expected an uncompressed tar file, got FileNotFoundError"),
        (lambda path: write_nemo(path, {}, {}, {"model_config.yaml": b"\xff"}), "expected UTF-8"),
        (lambda path: write_nemo(path, {}, {}, {"model_config.yaml": b"- 1"}), "expected a mapping, got list"),
        (lambda path: write_nemo(path, KINDS["small"], {}), "expected tensors by name"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "codec.nemo"
    write(path)
    with pytest.raises(CheckpointError) as refused:
        codec_network(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
