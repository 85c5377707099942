"""Qwen3-TTS: conversion of releases with named voices and of those that clone, and refusals of requests."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lab.releases.random_qwen3_tts import small_config, write_release
from stretto.encoders.x_vector import load_speaker_encoder
from stretto.families.qwen3_tts import PLUGIN
from stretto.family.plugin import VOCABULARY, config_at
from stretto.testing.limits import asked
from stretto.testing.releases import REMOVED, SmallRelease, edited, set_fields
from stretto.testing.suite import FamilyCase
from tests.fakes import FrameCounter
from tests.family_suite import FamilySuite
from tests.published_qwen3_tts import command

CODEC = FrameCounter(1920, 4, 32, 24_000)
TALKER = "talker_config."
DEPTH = f"{TALKER}code_predictor_config."
BASE = {"tts_model_type": "base"}


def write(folder: Path, size: str) -> list[str]:
    config = small_config("custom_voice", codes=2048) if size == "many codes" else small_config(size)
    return command(write_release(folder / "release", config), folder)[:-2]


class TestNamedVoices(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("custom_voice",),
        other_sizes=("voice_design",),
        same_configs=[
            {
                f"{TALKER}hidden_act": REMOVED,
                f"{TALKER}attention_bias": REMOVED,
                f"{DEPTH}hidden_act": REMOVED,
                f"{DEPTH}attention_bias": REMOVED,
            }
        ],
        refused_configs=[
            ({"tts_pad_token_id": 330}, "tts_pad_token_id: expected an id in [0, 330), got 330"),
            ({f"{TALKER}spk_id": {"ryan": 9999}}, "spk_id.ryan: expected an id in [0, 1056)"),
            ({f"{TALKER}vocab_size": 2000}, "vocab_size: expected 32 codes and 1024 markers"),
            ({f"{TALKER}num_code_groups": 5}, "num_code_groups: expected 4, got 5"),
            (
                {f"{TALKER}num_key_value_heads": 3},
                "talker_config.num_attention_heads: expected a multiple of 3 (num_key_value_heads), got 4",
            ),
            (
                {f"{TALKER}spk_is_dialect": {"ryan": "klingon"}},
                "talker_config.spk_is_dialect.ryan: expected a language, got 'klingon'",
            ),
            (
                {f"{TALKER}rope_scaling": {"mrope_section": [8, 8, 8]}},
                "rope_scaling.mrope_section: expected integers with sum 16, half the head_dim, got [8, 8, 8]",
            ),
            (BASE, "speaker_encoder_config: expected a speaker encoder's parameters"),
            (
                BASE | {"speaker_encoder_config": {"enc_dim": 8}},
                "speaker_encoder_config.enc_dim: expected 64, the talker's width, got 8",
            ),
            (
                BASE | {"speaker_encoder_config": {"enc_dim": 64, "depth": 3}},
                "speaker_encoder_config: expected a speaker encoder's parameters",
            ),
            (BASE | {"speaker_encoder_config": {"enc_dim": 64}}, "missing: speaker_encoder.asp.conv.bias"),
        ],
        refused_edits=[
            (
                "release/tokenizer_config.json",
                lambda record: record["added_tokens_decoder"].pop("312"),
                "added token '<tts_pad>': expected the next id",
            )
        ],
        codec=CODEC,
        refused_inputs=[
            (asked("\n \n"), "text: expected text"),
            (asked("a", language="sichuan_dialect"), "options.language: expected one of auto, chinese, english"),
            (
                asked("a", pcm=np.ones(24_000, np.float32)),
                "messages[0].role: expected 'user' for task 'tts', which takes no",
            ),
        ],
        text_options=["instruct"],
    )

    @pytest.mark.parametrize("dialects", [REMOVED, None])
    def test_speakers_need_no_dialect(self, copied: SmallRelease, dialects: object) -> None:
        with edited(copied.folder / self.case.config) as record:
            set_fields(record, {f"{TALKER}spk_is_dialect": dialects})
        assert config_at(copied.checkpoint)[VOCABULARY]["dialects"] == {}

    @pytest.mark.parametrize(("size", "follows"), [("0b6", False), ("b6", True)])
    def test_only_the_small_model_ignores_instructions(self, copied: SmallRelease, size: str, follows: bool) -> None:
        with edited(copied.folder / self.case.config) as record:
            record["tts_model_size"] = size
        assert config_at(copied.checkpoint)[VOCABULARY]["takes_instructions"] is follows
        assert copied.family.voices == ("ryan", "eric")
        assert "instruct" in copied.family.options

    @pytest.mark.parametrize(("speakers", "silent_frames"), [({"Ryan": 3061, "eric": 2875}, 1), ({"ryan": 3060}, 0)])
    def test_replies_of_the_published_speakers_begin_with_silence(
        self, tmp_path: Path, speakers: dict[str, int], silent_frames: int
    ) -> None:
        release = SmallRelease.written(tmp_path / "release", "many codes", write)
        with edited(release.folder / self.case.config) as record:
            set_fields(record, {f"{TALKER}spk_id": speakers, f"{TALKER}spk_is_dialect": {}})
        assert config_at(release.checkpoint)[VOCABULARY]["silent_frames"] == silent_frames


class TestClonedVoices(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("base",),
        refused_configs=[({"tts_model_type": "voice_design"}, "unknown: speaker_encoder.asp.conv.bias")],
        codec=CODEC,
        has_usual_requests=False,
        refused_inputs=[
            (asked("a"), "messages: expected a system turn with audio (this model clones the voice of a"),
            (asked("a", {"text": "b"}), "messages: expected a sy"),
            (
                asked("a", {"codes": [[1]] * 4}),
                "messages[0].codes: expected a voice recording as a file or samples, got codes",
            ),
            (asked("a", pcm=np.zeros(1000, np.float32)), "pcm_in: expected at least 0.08 s, got 0.0417 s"),
            (
                asked("a", pcm=np.zeros(48_000, np.float32)),
                "messages[0].audio: expected a recording of a voice, got",
            ),
            (
                asked("a", {"audio": "pcm_in", "text": "x" * 4001}, np.resize([0.5, -0.5], 24_000).astype(np.float32)),
                "messages[0].text: expected at most 4000",
            ),
            (asked("a", voice="ryan"), "options.voice: expected no value"),
            (asked("a", instruct="low"), "options.instruct: expected no value"),
            (asked("a") | {"pcm_in": np.zeros(9600, np.float32), "sample_rate": 24_000}, "pcm_in: expected only text"),
        ],
    )

    def test_speaker_encoder_is_written_to_its_folder(self, release: SmallRelease) -> None:
        assert (release.family.tasks[0].system, release.family.options, release.family.voices) == (
            ("text", "audio"),
            (),
            (),
        )
        speaker = load_speaker_encoder(release.checkpoint)
        published = load_file(release.folder / self.case.weights)
        assert speaker is not None
        for name, tensor in speaker.network.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), published[f"speaker_encoder.{name}"])
