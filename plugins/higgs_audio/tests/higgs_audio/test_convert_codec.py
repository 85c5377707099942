"""The Higgs Audio codec in Boson's layout is converted to transformers' layout; anything else is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.higgs_audio.lab.random_higgs_audio import HiggsAudioRelease, make_model, write_release
from stretto.codecs.base import load_codec
from stretto.testing.releases import edited
from stretto_higgs_audio.higgs_audio.convert import read_codec_config
from tests.refused_conversion import Refuses

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]
RESIDUAL = ("snake1", "conv1", "snake2", "conv2")
# As bosonai/higgs-audio-v2-tokenizer had it at first.
BOSONS_NUMBERS = {
    "n_filters": 32,
    "D": 256,
    "target_bandwidths": [0.5, 1, 1.5, 2, 4],
    "ratios": [8, 5, 4, 2, 3],
    "sample_rate": 24000,
    "bins": 1024,
    "n_q": 8,
    "codebook_dim": 64,
    "semantic_techer": "hubert_base_general",
}


def acoustic_name(side: str, rest: str) -> str:
    """Return a tensor's name in DAC's code; residual units come first in encoder blocks, last in decoder blocks."""
    top, first, alone = ("encoder.block", 0, {"snake1": 3, "conv1": 4})
    if side == "decoder":
        top, first, alone = ("decoder_2.model", 2, {"snake1": 0, "conv_t1": 1})
    if found := re.fullmatch(r"block\.(\d)\.res_unit(\d)\.(\w+)\.(\w+)", rest):
        block, unit, layer, last = found.groups()
        return f"{top}.{int(block) + 1}.block.{first + int(unit) - 1}.block.{RESIDUAL.index(layer)}.{last}"
    if found := re.fullmatch(r"block\.(\d)\.(\w+)\.(\w+)", rest):
        return f"{top}.{int(found[1]) + 1}.block.{alone[found[2]]}.{found[3]}"
    module, last = rest.split(".")
    return f"{top}.{ {'conv1': 0, 'snake1': 6, 'conv2': 7}[module] }.{last}"


def bosons(state: Tensors) -> Tensors:
    """Return tensors with Boson's names, with weight norms and a layer that Boson's class never calls."""
    found = {"fc1.weight": torch.ones(3, 3), "fc1.bias": torch.ones(3)}
    for name, tensor in state.items():
        if parts := re.fullmatch(r"acoustic_(encoder|decoder)\.(.+)", name):
            new = acoustic_name(*parts.groups())
            if new.endswith(".weight"):
                found[f"{new}_g"] = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
                found[f"{new}_v"] = 3 * tensor
                continue
        elif name.startswith(("encoder_semantic.", "decoder_semantic.")):
            wrapped = r"\.(conv|conv1)\.(weight|bias)$"  # the other ones are torch's own class
            new = re.sub(wrapped, r".\1.conv.\2", name)
        else:
            new = name.replace("quantizer.quantizers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
            for old, other in (("fc.", "fc_prior."), ("fc1.", "fc_post1."), ("fc2.", "fc_post2.")):
                new = other + name.removeprefix(old) if name.startswith(old) else new
        found[new] = tensor
    return found


@pytest.fixture
def release(tmp_path: Path) -> HiggsAudioRelease:
    """Write the talker's folder, and a codec folder whose model.safetensors has a copy of the talker."""
    release = write_release(tmp_path / "release", make_model())
    codec = tmp_path / "tokenizer"
    (tmp_path / "transformers").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "transformers" / name).write_bytes((codec / name).read_bytes())
    torch.save(bosons(load_file(codec / "model.safetensors")), codec / "model.pth")
    (codec / "model.safetensors").write_bytes((release.folder / "model.safetensors").read_bytes())
    return release


def words(release: HiggsAudioRelease) -> list[str]:
    return [*release.command, "--out", str(release.folder.parent / "out")]


def test_boson_model_pth_converts_to_the_transformers_codec(release: HiggsAudioRelease, tmp_path: Path) -> None:
    codecs = [load_codec("higgs", folder) for folder in (release.convert(tmp_path / "out"), tmp_path / "transformers")]
    codes = torch.randint(1024, (1, 8, 12), generator=torch.Generator().manual_seed(0))
    waveforms = [codec.model.decode(codes, return_dict=False) for codec in codecs]
    assert torch.allclose(*waveforms, atol=1e-4)
    assert waveforms[0].std() > 0.01
    assert sorted(path.name for path in (tmp_path / "out" / "codec").iterdir()) == ["config.json", "model.safetensors"]


def test_a_codec_in_transformers_layout_is_copied(release: HiggsAudioRelease, tmp_path: Path) -> None:
    """Boson's file in the same folder duplicates it and is not copied."""
    codec = tmp_path / "tokenizer"
    (codec / "model.safetensors").write_bytes((tmp_path / "transformers" / "model.safetensors").read_bytes())
    torch.save({"other": torch.ones(1)}, codec / "model.pth")
    out = release.convert(tmp_path / "out") / "codec"
    assert (out / "model.safetensors").read_bytes() == (codec / "model.safetensors").read_bytes()


def test_language_model_weights_in_codec_folder_are_reported(
    release: HiggsAudioRelease, tmp_path: Path, refuses: Refuses
) -> None:
    (tmp_path / "tokenizer" / "model.pth").unlink()
    missing = "missing: acoustic_decoder.block.0.conv_t1.bias"
    refuses(words(release), missing, "model.safetensors seems to contain a language model")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("decoder_2.model.0.bias", None, "missing: acoustic_decoder.conv1.bias"),
        ("decoder_2.model.9.bias", torch.ones(1), "unknown: decoder_2.model.9.bias"),
        ("fc_post2.weight", torch.ones(2, 2), "wrong shape: fc2.weight [2, 2] instead of [16, 32]"),
    ],
)
def test_error_names_mismatched_model_pth_tensors(
    name: str, tensor: torch.Tensor | None, message: str, release: HiggsAudioRelease, tmp_path: Path, refuses: Refuses
) -> None:
    with edited(tmp_path / "tokenizer" / "model.pth") as tensors:
        tensors.pop(name, None)
        tensors.update({} if tensor is None else {name: tensor})
    refuses(words(release), f"model.pth: tensors do not match: {message}")


def test_boson_config_gives_the_same_codec_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BOSONS_NUMBERS))
    config = read_codec_config(tmp_path)
    assert (config.num_quantizers, config.codebook_size, config.codebook_dim) == (8, 1024, 64)
    assert (config.sample_rate, config.hop_length, config.semantic_downsample_factor) == (24000, 960, 2)
    acoustic = config.acoustic_model_config
    assert (acoustic.hidden_size, acoustic.upsampling_ratios) == (256, [8, 5, 4, 2, 3])


@pytest.mark.parametrize("edit", [{"n_q": "eight"}, {"ratios": 3}, {"bins": 0}, {"sample_rate": None}])
def test_error_names_the_file_of_invalid_codec_parameters(
    edit: dict[str, object], release: HiggsAudioRelease, tmp_path: Path, refuses: Refuses
) -> None:
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps(BOSONS_NUMBERS | edit))
    refuses(words(release), "tokenizer/config.json: invalid parameters for Higgs Audio's codec")


def test_stale_shards_in_the_model_folder_are_ignored(release: HiggsAudioRelease, tmp_path: Path) -> None:
    """They have other names, as reported for one repository; transformers reads the single file."""
    (tmp_path / "tokenizer" / "model.safetensors").unlink()
    before = (release.convert(tmp_path / "before") / "model-00001-of-00001.safetensors").read_bytes()
    index = {}
    for number in (1, 2, 3):
        file, name = f"model-0000{number}-of-00003.safetensors", f"layers.{number}.weight"
        save_file({name: torch.ones(2)}, release.folder / file)
        index[name] = file
    (release.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    after = (release.convert(tmp_path / "after") / "model-00001-of-00001.safetensors").read_bytes()
    assert before == after
