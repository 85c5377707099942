"""Conversion of Phonon is strict, and reads both kinds of voice files."""

import json
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.pocket.lab.random_phonon import CONDITIONERS, VOICES, config, tensors, voice_latents, write_release
from plugins.pocket.tests.phonon_release import convert_release
from plugins.pocket.tests.pocket_layouts import differing_files, write_phonon
from stretto.codecs.rotary_attention import GELU_FORMS
from stretto.convert.command import main as convert
from stretto.family.plugin import VOCABULARY, config_at
from stretto.testing.releases import Edit, edited
from stretto_pocket.codec import load
from stretto_pocket.phonon.family import PhononVocabulary
from tests.refused_conversion import Refuses


def words(release: Path) -> list[str]:
    return ["phonon", "--model", str(release), "--out", str(release.parent / "out")]


def test_voices_and_conditions_are_written(tmp_path: Path) -> None:
    checkpoint, published = convert_release(tmp_path), tensors()
    known = PhononVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    (shard,) = checkpoint.glob("model-*.safetensors")
    written = load_file(shard)
    table, projection = (
        written["model.embed_tokens.weight"],
        published[f"{CONDITIONERS}speaker_wavs.output_proj.weight"],
    )
    assert dict(known.voices) == {name.lower(): number for name, (number, _) in VOICES.items()}
    for name in VOICES:
        expected = (projection @ voice_latents(name)).T
        torch.testing.assert_close(table[list(known.voice(name.lower()))], expected, rtol=0, atol=1e-5)
    one = published[f"{CONDITIONERS}num_speakers.embed.weight"][1]
    cosines = published[f"{CONDITIONERS}duration_delta.output_proj.weight"][:, :64].sum(1)
    constant = published[f"{CONDITIONERS}num_speakers.output_proj.weight"] @ one + cosines
    torch.testing.assert_close(written["connector.bias"], constant, rtol=0, atol=1e-4)
    begin = published["flow_lm.input_linear.weight"] @ published["flow_lm.bos_emb"] + constant
    torch.testing.assert_close(table[known.bos], begin, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("flow_lm.out_norm.bias"), "missing: flow_lm.out_norm.bias"),
        (lambda t: t.update({"flow_lm.more": torch.zeros(2)}), "unknown: flow_lm.more"),
        (lambda t: t.pop("flow_lm.bos_emb"), "missing: flow_lm.bos_emb"),
        (lambda t: t.pop(f"{CONDITIONERS}speaker_wavs.output_proj.weight"), "missing: flow_lm.condition_provider"),
        (lambda t: t.pop("mimi.decoder.model.0.conv.weight"), "missing: mimi.decoder.model.0.conv.weight"),
        (
            lambda t: t.update({f"{CONDITIONERS}num_speakers.embed.weight": torch.zeros(3, 16)}),
            "num_speakers.embed.weight [3, 16] instead of [32, 16]",
        ),
    ],
)
def test_error_names_the_tensor(tmp_path: Path, refuses: Refuses, edit: Edit, message: str) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / "model.safetensors") as found:
        edit(found)
    refuses(words(release), message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flow_lm": None}, "config.json: expected the sections flow_lm and mimi"),
        ({"lsd_decode_steps": 0}, "lsd_decode_steps: expected an integer in [1, 32], got 0"),
        ({"prefix_sinks": {"a": 1}}, "prefix_sinks: expected {}, got"),
        ({"voices": [{"name": "a"}]}, "voices: expected [], got"),
        ({"conditioners": [{"name": "mood", "type": "lut"}]}, "conditioners: expected num_speakers (lut) and"),
        ({"eos_threshold": None}, "config.json: eos_threshold: expected a number, got None"),
        ({"flow_lm": config()["flow_lm"] | {"gelu": "tanh"}}, "flow_lm.gelu: expected 'erf', got 'tanh'"),
        ({"mimi": config()["mimi"] | {"gelu": "relu"}}, "gelu: expected one of ['erf', 'tanh'], got 'relu'"),
    ],
)
def test_error_names_the_config_value(
    tmp_path: Path, refuses: Refuses, changed: dict[str, object], message: str
) -> None:
    release = write_release(tmp_path / "release")
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    refuses(words(release), message)


@pytest.mark.parametrize(
    ("kind", "named", "form"), [("small", None, "tanh"), ("odd", None, "erf"), ("odd", "tanh", "tanh")]
)
def test_codec_has_the_form_of_gelu_of_the_authors_runtime(
    tmp_path: Path, kind: str, named: str | None, form: str
) -> None:
    release = write_release(tmp_path / "release", kind)
    with edited(release / "config.json") as record:
        record["mimi"]["gelu"] = named
    assert convert(words(release)) == 0
    assert load(tmp_path / "out").decoder_transformer.transformer.layers[0].approximation == GELU_FORMS[form]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "expected tensors by name"),
        ({"speaker_wavs": torch.zeros(5, 9)}, "got speaker_wavs [5, 9]"),
        ({"emb": torch.zeros(401, 64)}, "got emb [401, 64]"),
        ({"audio_prompt": torch.zeros(1, 9, 63)}, "got audio_prompt [1, 9, 63]"),
        ({"emb": torch.full((3, 64), torch.inf)}, "expected floating-point numbers of magnitude at most"),
        ({"emb": torch.zeros(3, 64, dtype=torch.int32)}, "expected floating-point numbers"),
    ],
)
def test_error_names_the_voice(tmp_path: Path, refuses: Refuses, found: dict[str, torch.Tensor], message: str) -> None:
    release = write_release(tmp_path / "release")
    save_file(found, release / "voices" / "mia.safetensors")
    refuses(words(release), "mia.safetensors", message)


def test_voices_equal_in_lower_case_are_refused(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    copyfile(release / "voices" / "mia.safetensors", release / "voices" / "MIA.safetensors")
    refuses(words(release), "expected names that differ in lower case, got 'MIA, mia, ")


def test_voices_may_be_elsewhere(tmp_path: Path, refuses: Refuses) -> None:
    """A file in the folder itself is the first voice, called `default`; a release without voices is refused."""
    release = write_release(tmp_path / "release")
    (release / "voices" / "mia.safetensors").rename(release / "default-voice.safetensors")
    (release / "voices").rename(release / "embeddings")
    assert convert(words(release)) == 0
    assert dict(PhononVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY]).voices) == {
        "default": 9,
        "toby": 13,
    }
    (release / "default-voice.safetensors").unlink()
    (release / "embeddings" / "Toby.safetensors").rename(release / "embeddings" / "a b.safetensors")
    refuses([*words(release)[:-1], str(tmp_path / "more")], "a b.safetensors: expected a name of letters")
    (release / "embeddings" / "a b.safetensors").unlink()
    refuses([*words(release)[:-1], str(tmp_path / "more")], "expected at least one voice")


@pytest.mark.parametrize(
    ("kind", "is_native"), [("steps", True), ("small", False)], ids=["transformers' names", "Gradium's names"]
)
def test_transformers_layout_gives_the_same_checkpoint(tmp_path: Path, kind: str, is_native: bool) -> None:
    authors, folder, codec = write_phonon(tmp_path, kind, is_native)
    command = ["phonon", "--model", str(folder), "--codec", str(codec), "--out", str(tmp_path / "other")]
    assert convert(["phonon", "--model", str(authors), "--out", str(tmp_path / "one")]) == 0
    assert convert(command) == 0
    assert differing_files(tmp_path / "one", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_speakers": 2}, "config.json: num_speakers: expected 1, got 2"),
        ({"duration_delta": 0.5}, "config.json: duration_delta: expected 0.0, got 0.5"),
        ({"num_key_value_heads": 1}, "config.json: num_key_value_heads: expected 2, got 1"),
    ],
)
def test_error_names_the_field_of_transformers_layout(
    tmp_path: Path, refuses: Refuses, changed: dict[str, object], message: str
) -> None:
    _, folder, codec = write_phonon(tmp_path)
    with edited(folder / "config.json") as record:
        record.update(changed)
    refuses([*words(folder), "--codec", str(codec)], message)


def test_codec_in_another_folder_is_asked_for(tmp_path: Path, refuses: Refuses) -> None:
    _, folder, _ = write_phonon(tmp_path)
    refuses(words(folder), "--codec: expected the folder of a pocket_tts_audio_tokenizer", "got none")


def test_gradiums_config_may_name_the_class(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / "config.json") as record:
        record["architectures"] = ["GradiumPhononTTSForConditionalGeneration"]
    assert convert(words(release)) == 0
