from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.decoder import chunks_of, random_codes, stream
from lab.releases.every_codec import codec_cases
from stretto.codecs.base import codec_marks, codec_module, codecs_in_transformers, load_codec
from stretto.codecs.onnx_runtime import load as load_exported
from stretto.entry_points import CODECS, OWN, installed
from stretto.errors import CheckpointError
from tests.codecs.test_onnx_runtime import SPEC, save

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


def check_codebooks(name: str, folder: Path) -> None:
    """Check that a codec with codebooks can have fewer of them, but not more and not none."""
    whole = load_codec(name, folder).spec
    spoken = min(2, whole.num_codebooks)
    fewer = load_codec(name, folder, num_codebooks=spoken)
    assert fewer.spec == replace(whole, num_codebooks=spoken)
    codes = random_codes(fewer, 1, 12)
    assert codes.shape[1] == spoken
    pcm = stream(fewer, codes, chunks_of(5, 12))
    assert pcm.shape == (1, whole.num_samples(12, 0))
    assert (pcm - stream(fewer, codes, [12])).abs().max() <= 4e-4
    for wrong in (whole.num_codebooks + 1, 0):
        expected = f"expected 1 to {whole.num_codebooks} codebooks of {name}, got {wrong}"
        with pytest.raises(CheckpointError, match=expected):
            load_codec(name, folder, num_codebooks=wrong)


def check_latents(name: str, folder: Path) -> None:
    """Check that a codec for latents needs all their numbers."""
    spec = load_codec(name, folder).spec
    assert load_codec(name, folder, num_codebooks=spec.num_codebooks).spec == spec
    with pytest.raises(CheckpointError, match=f"expected {spec.num_codebooks} numbers in latents of {name}, got 2"):
        load_codec(name, folder, num_codebooks=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_codecs_load_with_the_number_of_codebooks_of_the_model(name: str, tmp_path: Path) -> None:
    folder = codec_cases()[name].write(tmp_path)
    if load_codec(name, folder).spec.are_latents:
        check_latents(name, folder)
    else:
        check_codebooks(name, folder)
