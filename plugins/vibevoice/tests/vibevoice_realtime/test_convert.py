"""Conversion of VibeVoice Realtime is strict, and reads both kinds of voice files without executing code from them."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.vibevoice.lab.random_vibevoice_realtime import (
    PICKLED,
    VOICES,
    save_voice,
    shapes,
    tensors,
    voice,
    write_release,
)
from plugins.vibevoice.tests.vibevoice_realtime_release import convert_release
from stretto.family.plugin import VOCABULARY, config_at
from stretto.testing.releases import Edit, edited
from stretto_vibevoice.vibevoice_realtime.family import VibeVoiceRealtimeVocabulary
from tests.refused_conversion import Refuses

NUM_PUBLISHED = 1_018_000_000  # parameters, from the size of the published file


def words(release: Path) -> list[str]:
    return ["vibevoice-realtime", "--model", str(release), "--out", str(release.parent / "out")]


def test_both_kinds_of_voices_are_written(tmp_path: Path) -> None:
    checkpoint = convert_release(tmp_path)
    known = VibeVoiceRealtimeVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    (shard,) = checkpoint.glob("model-*.safetensors")
    written = load_file(shard)
    first = text = 0
    for index, (name, (num_text_rows, num_rows)) in enumerate(VOICES.items()):
        own, of_voice = known.voices[index], voice(name)
        assert (own.name, own.num_text_rows, own.num_rows) == (name.lower(), num_text_rows, num_rows)
        for layer, table in enumerate(written["voice_rows"]):
            for part, rows in (("tts_lm", slice(first, first + num_rows)), ("neg_tts_lm", [first + num_rows])):
                for at, kind in enumerate(("key", "value")):
                    expected = of_voice[f"{part}_{kind}_{layer}"][0].transpose(0, 1).flatten(1)
                    assert table[rows, at].equal(expected)
        keys = of_voice["lm_key_0"][0].transpose(0, 1)
        assert written["text.voices"][0, text : text + num_text_rows, 0].equal(keys)
        assert written["first_states"][index].equal(of_voice["neg_tts_lm_hidden"][0, 0])
        first, text = first + num_rows + 1, text + num_text_rows


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.tts_input_types.weight"), "missing: model.tts_input_types.weight"),
        (lambda t: t.update({"model.more": torch.zeros(2)}), "unknown: model.more"),
        (lambda t: t.pop("tts_eos_classifier.fc2.bias"), "missing: tts_eos_classifier.fc2.bias"),
        (
            lambda t: t.update({"model.speech_scaling_factor": torch.tensor(float("nan"))}),
            "model.speech_scaling_factor: expected a finite number",
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
        ({"model_type": "vibevoice"}, "model_type: expected 'vibevoice_streaming', got 'vibevoice'"),
        ({"tts_backbone_num_hidden_layers": 3}, "tts_backbone_num_hidden_layers: expected an integer in [1, 2], got 3"),
        ({"decoder_config": {"use_sliding_window": True}}, "decoder_config: expected full attention and silu"),
        ({"acoustic_tokenizer_config": {"encoder_ratios": [2, 5]}}, "acoustic_tokenizer_config"),
        ({"diffusion_head_config": {"prediction_type": "epsilon"}}, "prediction_type: expected 'v_prediction'"),
        ({"diffusion_head_config": {"head_layers": 0}}, "expected head_ffn_ratio, rms_norm_eps, head_layers"),
    ],
)
def test_error_names_the_config_value(tmp_path: Path, refuses: Refuses, changed: dict[str, Any], message: str) -> None:
    release = write_release(tmp_path / "release")
    path = release / "config.json"
    record = json.loads(path.read_text())
    for name, value in changed.items():
        record[name] = record[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(record))
    refuses(words(release), message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("tts_lm_value_1"), "tts_lm_value_1: expected [1, 2, 15, 32], got none"),
        (lambda t: t.update(lm_key_0=torch.zeros(1, 2, 0, 32)), "lm_key_0: expected [1, 2, n, 32] with n in"),
        (lambda t: t.update(lm_key_1=torch.zeros(1, 2, 7, 32)), "lm: expected 1 layers, got more"),
        (lambda t: t["lm_key_0"].fill_(torch.nan), "lm_key_0: expected floating-point numbers"),
        (lambda t: t.update(neg_tts_lm_key_0=torch.zeros(1, 2, 2, 32)), "neg_tts_lm"),
    ],
)
@pytest.mark.parametrize("is_pickled", [True, False], ids=["pt", "safetensors"])
def test_error_names_the_voice(tmp_path: Path, refuses: Refuses, edit: Any, message: str, is_pickled: bool) -> None:
    release = write_release(tmp_path / "release")
    (release / "voices" / f"{PICKLED}.pt").unlink()
    found = voice(PICKLED)
    edit(found)
    path = release / "voices" / f"{PICKLED}{'.pt' if is_pickled else '.safetensors'}"
    if is_pickled:
        save_voice(path, found)
    else:
        save_file(found, path)
    refuses(words(release), f"{path.name}: ", message)


class Attack:
    """Runs a command if it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.mark.filterwarnings("error:Detected pickle protocol")
def test_voices_cannot_execute_code(tmp_path: Path, refuses: Refuses) -> None:
    """Neither a plain pickle nor a file of torch with other classes is unpickled."""
    release, place = write_release(tmp_path / "release"), tmp_path / "touched"
    path = release / "voices" / f"{PICKLED}.pt"
    torch.save({"lm": Attack(place)}, path)
    refuses(words(release), f"{PICKLED}.pt: expected a voice of VibeVoice Realtime")
    path.write_bytes(pickle.dumps({"lm": Attack(place)}, protocol=2))  # as torch writes
    refuses(words(release), f"{PICKLED}.pt: expected a voice of VibeVoice Realtime")
    assert not place.exists()


def test_a_release_needs_voices(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    (release / "voices").rename(release / "elsewhere")
    refuses(words(release), "voices: expected 1 to 64 voices, NAME.pt or NAME.safetensors, got 0")


def test_published_sizes() -> None:
    """The numbers of parameters are those of the published files: 2,036 MB of weights, and 2 heads of 64."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes("published").items()}
    assert sizes["model.language_model.embed_tokens.weight"] == 151936 * 896
    assert abs(sum(sizes.values()) - NUM_PUBLISHED) < 0.01 * NUM_PUBLISHED
    assert len(tensors()) == len(shapes())
