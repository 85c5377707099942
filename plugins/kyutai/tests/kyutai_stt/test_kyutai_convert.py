"""Conversion of Kyutai STT, and inputs that it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.lab.random_kyutai_stt import CONFIG, write_release
from plugins.kyutai.tests.moshi_release import REFUSED_CONFIGS, REFUSED_NAMES, name_if_missing
from plugins.kyutai.tests.small_families import SMALL_STT
from plugins.kyutai.tests.transformers_releases import assert_equal_checkpoints, write_stt
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import plain_tokenizer
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import FamilyCase, assert_same_checkpoints
from stretto_kyutai.kyutai_stt import PLUGIN
from stretto_kyutai.kyutai_stt.family import END_PAD, PAD, SttVocabulary
from stretto_kyutai.kyutai_stt.reader import open_text_codec
from stretto_kyutai.kyutai_stt.recognise import FEATURES, PROCESSOR
from tests.family_suite import FamilySuite

PCM = (np.sin(np.arange(20_001) ** 1.3 / 300) / 2).astype(np.float32)
DELAYS = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
MIMI = f"release/{CONFIG['mimi_name']}"
# of releases that both formats can express
SAME = {"num_layers": 2, "extra_heads_num_heads": 0, "stt_config": DELAYS}


def write(folder: Path, size: str) -> list[str]:
    release = write_release(folder / "release", **(SAME if size == "two layers" else {"num_layers": 1}))
    return ["kyutai-stt", "--model", str(release), "--config", str(release / "config.json")]


def write_saved(folder: Path, size: str) -> list[str]:
    return ["kyutai-stt", "--model", str(write_stt(folder / "release", num_layers=1))]


def heard(pcm: np.ndarray, sample_rate: int = 24_000, **options: object) -> dict[str, Any]:
    """Return the inputs of a request with a recording."""
    return {"pcm_in": pcm, "sample_rate": sample_rate, "options": json.dumps(options)}


class TestKyutaiStt(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("shallow",),
        may_be_sharded=False,
        name_if_missing=name_if_missing,
        unneeded_tensors=[f"extra_heads.{number}.weight" for number in range(4)],  # without all of them, no pauses
        refused_configs=[
            *REFUSED_CONFIGS,
            *REFUSED_NAMES,
            ({"model_type": "kyutai_speech_to_text"}, "config.json: model_type: expected 'stt', got 'kyutai_speech_to"),
            ({"dep_q": 8}, "config.json: dep_q: expected 0, got 8"),
            ({"conditioners": {"cfg": {}}}, "config.json: conditioners: expected {}, got {'cfg': {}}"),
            ({"delays": [0] * 32 + [1]}, "config.json: delays: expected 33 zeros"),
            ({"dim": "wide"}, "config.json: dim: expected an integer in [1, 1048575], got 'wide'"),
            ({"num_heads": 3}, "config.json: dim: expected heads of an even width, got 64 for 3 heads"),
            ({"stt_config": {"audio_delay_seconds": -1}}, "audio_delay_seconds: expected seconds in [0, 10], got -1"),
            ({"hidden_scale": 1e9}, "config.json: hidden_scale: expected a number in [1, 64]"),
            ({"extra_heads_num_heads": 5}, "config.json: extra_heads_num_heads: expected at most 4, got 5"),
            (
                {"extra_heads_dim": 5},
                "tensors do not match: wrong shape: extra_heads.0.weight [6, 64] instead of [5, 64]",
            ),
            ({"card": 63}, "expected 32 codebooks of 63 codes, got 32 of 64"),
            ({"mimi_name": "/etc/passwd"}, "expected a file name without a folder, got '/etc/passwd'"),
        ],
        refused_edits=[
            ("release/model.safetensors", lambda t: t.pop("extra_heads.2.weight"), "missing: extra_heads.2.weight"),
            (MIMI, lambda t: t.pop("downsample.conv.conv.conv.weight"), "missing: downsample.conv.weight"),
            (MIMI, lambda t: t.update(extra=t["downsample.conv.conv.conv.weight"].clone()), "unknown: extra"),
        ],
        refused_inputs=[
            (asked("o"), "audio: expected audio for task 'asr', got text"),
            (heard(PCM[:100]), "pcm_in: expected at least 0.08 s"),
            (heard(np.full(9000, np.nan, np.float32)), "pcm_in: expected"),
            (heard(PCM, 100), "sample_rate: expected"),
            (heard(np.zeros(301 * 8000, np.float32), 8_000), "pcm_in: expected at most 300"),
            (talk({"role": "user", "codes": [[1] * 3] * 32}), "messages[0].codes: expected audio samples"),
            (heard(PCM, voice="alba"), "options.voice: expected"),
            (heard(PCM, live=True), "pcm_in: expected no value with"),
            ({"task": "tts", "options": '{"live": true}'}, "task: expected one of asr, got 'tts'"),
            ({"options": '{"live": true, "voice": "alba"}'}, "options.voice: expected"),
            (heard(PCM, live=1), "options.live: expected true or false"),
        ],
        conformance={"vocabulary": SMALL_STT.to_record(), "backbone": "llama"},
        conforms_by_night=True,
    )

    def test_converted_config_matches_the_release(self, release: SmallRelease) -> None:
        record = config_at(release.checkpoint)
        assert record["sliding_window"] == 20
        assert record["layer_types"] == ["sliding_attention"]
        assert (record["intermediate_size"], record["rms_norm_eps"], record["rope_theta"]) == (176, 1e-8, 100000.0)
        expected = SttVocabulary(96, 32, 64, 6, 0.5, 0.0, num_pauses=4, num_pause_classes=6)
        assert SttVocabulary.from_record(record[VOCABULARY]) == expected
        assert release.family.pauses_s == (0.5, 1.0, 2.0, 3.0)
        assert (release.checkpoint / "tokenizer.model").exists()
        assert not list(release.checkpoint.glob("tokenizer_en*"))

    def test_release_without_pause_heads_converts(self, copied: SmallRelease) -> None:
        with edited(copied.folder / self.case.weights) as tensors:
            for name in self.case.unneeded_tensors:
                del tensors[name]
        assert copied.family.pauses_s == ()
        assert "pause_heads.weight" not in copied.weights

    def test_attention_weights_of_newer_releases_convert(self, release: SmallRelease, copied: SmallRelease) -> None:
        """They are in the first of several tensors."""
        newer = {".in_proj_weight": ".in_projs.0.weight", ".out_proj.weight": ".out_projs.0.weight"}
        with edited(copied.folder / self.case.weights) as tensors:
            for old, new in newer.items():
                (name,) = (name for name in tensors if old in name)
                tensors[name.replace(old, new)] = tensors.pop(name)
        assert_same_checkpoints(release, copied)


class TestKyutaiSttOfTransformers(FamilySuite):
    """Releases that transformers' class has written."""

    case = FamilyCase(
        PLUGIN,
        write_saved,
        sizes=("shallow",),
        refused_configs=[
            ({"num_key_value_heads": 1}, "config.json: num_key_value_heads: expected 2, got 1"),
            ({"head_dim": 16}, "config.json: head_dim: expected 32, got 16"),
            ({"num_attention_heads": 3}, "hidden_size: expected heads of an even width, got 64 for 3 heads"),
            ({"audio_bos_token_id": 63}, "config.json: audio_bos_token_id: expected 64, got 63"),
            ({"vocab_size": 96}, "expected a tokenizer of 95 tokens, got 96"),
            ({"num_codebooks": 31}, "wrong shape: model.embed_tokens.embed_tokens.weight [2178, 64] instead"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1}}, "rope_scaling: expected no value, got"),
            ({"rope_parameters": {}}, "config.json: rope_theta is missing"),
            ({"rope_parameters": None}, "config.json: rope_theta is missing"),
            ({"codec_config": {"model_type": "dac"}}, "config.json: codec_config: expected a config of mimi"),
            ({"codec_config": {"num_quantizers": 8}}, "codec_config: expected 32 codebooks of 64 codes, got 8"),
            ({"codec_config": {"frame_size": 1}}, "codec_config: invalid parameters for mimi: "),
        ],
        refused_edits=[
            (
                f"release/{PROCESSOR}",
                lambda record: record.update(feature_extractor={}),
                f"{PROCESSOR}: feature_extractor.audio_delay_seconds is missing",
            ),
            (
                f"release/{PROCESSOR}",
                lambda record: record.update(feature_extractor=DELAYS | {"audio_delay_seconds": 11}),
                "expected seconds in [0, 10], got 11",
            ),
        ],
    )

    def test_release_without_delays_is_refused(self, copied: SmallRelease) -> None:
        (copied.folder / "release" / PROCESSOR).unlink()
        copied.assert_refused(f"{FEATURES} is missing")


@pytest.mark.parametrize("version", [4, 5])
def test_release_in_transformers_format_gives_the_same_checkpoint(version: int, tmp_path: Path) -> None:
    """The release has no pause heads."""
    authors = SmallRelease.written(tmp_path / "authors", "two layers", write)
    (tmp_path / "saved").mkdir()
    folder = write_stt(tmp_path / "saved" / "release", version, **SAME)
    saved = SmallRelease(tmp_path / "saved", "two layers", ["kyutai-stt", "--model", str(folder)])
    assert_equal_checkpoints(authors.checkpoint, saved.checkpoint)
    reader = open_text_codec(saved.family, saved.checkpoint).reader("asr")
    for token_id in [PAD, *plain_tokenizer(saved.checkpoint).encode("garden"), 1, 2]:
        assert reader.push(token_id) == ""
    assert reader.push(END_PAD) == "garden"
