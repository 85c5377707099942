from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.decoder import chunks_of, random_codes, stream
from lab.releases.random_codecs import MODELS, codec_of, write_checkpoint
from lab.releases.random_espnet import CODEBOOKS, publish, published_tensors
from lab.releases.random_glm4_voice import write_glm4_voice
from lab.releases.random_qwen3_codec import write_code2wav, write_qwen3_codec
from plugins.chatterbox.lab import random_chatterbox
from plugins.cosyvoice3.lab.random_cosyvoice3 import write_codec as write_cosyvoice3
from plugins.fish_s2.tests.fish_s2_codec_release import convert_codec as convert_fish_s2
from plugins.moss.lab.random_moss import write_codec
from plugins.pocket.lab.random_pocket import NUM_WORDS
from plugins.pocket.tests.pocket_release import convert_release
from plugins.vibevoice.tests.vibevoice_release import NUM_NUMBERS
from plugins.vibevoice.tests.vibevoice_release import convert_release as convert_vibevoice
from plugins.voxcpm2.tests.voxcpm2_release import convert_release as convert_voxcpm2
from stretto.codecs.base import codec_marks, codec_module, codecs_in_transformers, load_codec
from stretto.codecs.onnx_runtime import load as load_exported
from stretto.entry_points import CODECS, OWN, installed
from stretto.errors import CheckpointError
from tests.codecs.conftest import make_codec
from tests.codecs.test_mimi import make_model as make_mimi
from tests.codecs.test_onnx_runtime import SPEC, save
from tests.codecs.tiny.test_codec import save_checkpoint

LATENTS = ("pocket", "audiovae", "vibevoice")  # codecs without codebooks
NAMES = [each.name for each in installed(CODECS) if each.distribution == OWN]


def test_unknown_codec_error_lists_the_known_codecs(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"unknown codec 'flac'; installed: audiovae, cosyvoice3, dac, .*, tiny"):
        load_codec("flac", tmp_path)
    with pytest.raises(KeyError, match="unknown codec 'flac'"):
        load_exported("flac", tmp_path)


def test_error_names_invalid_codec_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brook-1.dist-info").mkdir()
    points = "[stretto.codecs]\nbrook = stretto.errors\npond = pond_that_is_not_there\n"
    (tmp_path / "brook-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"codec brook: expected a module with `load`, got stretto.errors"):
        codec_module("brook")
    with pytest.raises(CheckpointError, match="pond: cannot import pond_that_is_not_there"):
        codec_module("pond")
    assert "mimi" in codecs_in_transformers()  # the others are still found
    assert "a codec" in "".join(codec_marks().values())


def test_onnx_file_of_another_codec_is_refused(tmp_path: Path) -> None:
    save(tmp_path, SPEC)
    with pytest.raises(CheckpointError, match="expected an exported dac, got an exported small"):
        load_exported("dac", tmp_path)


def write(name: str, folder: Path) -> Path:
    """Write a checkpoint of the codec called `name`, with random weights."""
    if name == "tiny":
        save_checkpoint(make_codec(), folder)
    elif name == "espnet_dac":
        publish(folder, published_tensors())
    elif name == "fish_s2":
        return convert_fish_s2(folder)
    elif name == "glm4_voice":
        write_glm4_voice(folder)
    elif name == "moss":
        write_codec(folder)
    elif name == "qwen3_12hz":
        write_qwen3_codec(folder)
    elif name == "qwen3_omni":
        write_code2wav(folder)
    elif name == "cosyvoice3":
        write_cosyvoice3(folder)
    elif name == "s3gen":
        return random_chatterbox.convert(folder)
    elif name == "mimi":
        make_mimi().save_pretrained(folder)
    else:
        write_checkpoint(next(model for model in MODELS if codec_of(model) == name), folder)
    return folder


def test_latent_codecs_reject_a_partial_latent_width(tmp_path: Path) -> None:
    folders = {"pocket": convert_release(tmp_path, "english"), "audiovae": convert_voxcpm2(tmp_path / "voxcpm2")}
    folders["vibevoice"] = convert_vibevoice(tmp_path / "vibevoice")
    for name, number in (("pocket", NUM_WORDS), ("audiovae", 32), ("vibevoice", 1 + NUM_NUMBERS)):
        folder = folders[name]
        assert load_codec(name, folder, num_codebooks=number).spec == load_codec(name, folder).spec
        with pytest.raises(CheckpointError, match=f"expected {number} numbers in latents of {name}, got 2"):
            load_codec(name, folder, num_codebooks=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LATENTS])
def test_codecs_load_with_the_number_of_codebooks_of_the_model(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path)
    there = load_codec(name, folder).spec
    spoken = min(2, there.num_codebooks)
    assert there.num_codebooks >= CODEBOOKS or spoken == 1
    fewer = load_codec(name, folder, num_codebooks=spoken)
    assert fewer.spec == replace(there, num_codebooks=spoken)
    codes = random_codes(fewer, 1, 12)
    assert codes.shape[1] == spoken
    pcm = stream(fewer, codes, chunks_of(5, 12))
    assert pcm.shape == (1, there.num_samples(12, 0))
    assert (pcm - stream(fewer, codes, [12])).abs().max() <= 4e-4
    for wrong in (there.num_codebooks + 1, 0):
        with pytest.raises(
            CheckpointError, match=f"expected 1 to {there.num_codebooks} codebooks of {name}, got {wrong}"
        ):
            load_codec(name, folder, num_codebooks=wrong)
