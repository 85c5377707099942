"""Conversion of Kyutai TTS, and texts that it refuses."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.kyutai.lab.kyutai_tts_replies import REDUCED
from plugins.kyutai.lab.random_kyutai_tts import CONFIG, write_release
from plugins.kyutai.tests.moshi_release import REFUSED_CONFIGS, REFUSED_NAMES, name_if_missing
from plugins.kyutai.tests.small_families import SMALL_TTS
from stretto.family.plugin import VOCABULARY, config_at
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import FamilyCase
from stretto_kyutai.kyutai_tts import PLUGIN
from stretto_kyutai.kyutai_tts.family import TtsVocabulary
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from tests.family_suite import FamilySuite

PCM = (np.sin(np.arange(24_001) ** 1.3 / 300) / 2).astype(np.float32)
SIZES = {"shallow": CONFIG, "reduced": REDUCED}


def write(folder: Path, size: str) -> list[str]:
    release = write_release(folder / "release", base=SIZES[size], num_layers=1, depformer_num_layers=1)
    return ["kyutai-tts", "--model", str(release)]


def write_wav(path: Path, seconds: float = 1.5, rate: int = 24_000, channels: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(int(seconds * rate) * channels, "<i2").tobytes())


class TestKyutaiTts(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("shallow",),
        may_be_sharded=False,
        name_if_missing=name_if_missing,
        weights=f"release/{CONFIG['moshi_name']}",
        refused_configs=[
            *REFUSED_CONFIGS,
            *REFUSED_NAMES,
            ({"model_type": "moshi"}, "config.json: model_type: expected 'tts', got 'moshi'"),
            ({"dep_q": 9}, "config.json: dep_q: expected at most 8, as n_q, got 9"),
            ({"n_q": 9}, "config.json: delays: expected 0, then 9 delays from 0 to 64"),
            ({"dep_q": 1}, "after the first 1 (dep_q) only delays that these have, got [0, 0, 2"),
            ({"lora_name": "lora.safetensors"}, "config.json: lora_name: expected no value, got 'lora.safetensors'"),
            ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
            ({"cross_attention": True}, "config.json: cross_attention: expected False, got True"),
            ({"demux_second_stream": 1.5}, "config.json: demux_second_stream: expected True or False, got 1.5"),
            ({"conditioners": {"cfg": {"type": "lut"}}}, "expected none, or cfg, control, speaker_wavs, got {'cfg': "),
            ({"fuser": {"sum": ["cfg"], "cross": []}}, "config.json: fuser: expected {}"),
            ({"depformer_low_rank_embeddings": 8}, "tensors do not match: missing: depformer_emb.0.low_rank.weight"),
            (
                {"depformer_low_rank_embeddings": -8},
                "depformer_low_rank_embeddings: expected an integer in [1, 1048575]",
            ),
            ({"text_card_out": 5}, "wrong shape: text_linear.weight [96, 64] instead of [5, 64]"),
            ({"text_card_out": 3}, "config.json: text_card_out: expected an integer in [4, 96], got 3"),
            ({"text_card_out": "5"}, "config.json: text_card_out: expected an integer in [1, 1048575], got '5'"),
            ({"delays": [0] * 8}, "config.json: delays: expected 0, then 8 delays from 0 to 64, the first of them 0"),
            ({"delays": [1, 0, *[2] * 7]}, "config.json: delays: expected 0, then 8 delays from 0 to 64"),
            ({"tts_config": {"audio_delay": -1}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got -1"),
            ({"tts_config": {"audio_delay": "1"}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got '1'"),
            (
                {"tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}},
                "tts_config.second_stream_ahead: expected 0 without demux_second_stream, got 2",
            ),
            (
                {"tts_config": {"audio_delay": 1, "multistream": True}},
                "tts_config.multistream: expected False, got True",
            ),
            ({"card": 63}, "expected 8 codebooks of 63 codes, got 32 of 64"),
        ],
        has_usual_requests=False,  # no voices
        refused_inputs=[
            (asked(text, pcm=PCM), f"messages[1].text: expected {expected}")
            for text, expected in (
                (" ", "text with a word that can be spoken, got ' '"),
                ('<break time="1s"/>', "text with a word that can be spoken"),
                ('one <break time="61s"/>', "breaks of at most 60 s, got '61' s"),
                ("door" * 100, "words of at most 64 tokens, got"),
                ("\u200b", "text with a word that can be spoken"),
                ("a" * 5001, "at most 5000 characters, got 5001 characters"),
            )
        ],
        conformance={"vocabulary": SMALL_TTS.to_record(), "backbone": "llama"},
        conforms_by_night=True,
    )

    def test_checkpoint_keeps_release_parameters_and_voices(self, copied: SmallRelease) -> None:
        write_wav(copied.folder / "release" / "voices" / "Alba.wav")
        record = config_at(copied.checkpoint)
        assert record["sliding_window"] == 40
        assert record["layer_types"] == ["sliding_attention"]
        vocabulary = TtsVocabulary.from_record(record[VOCABULARY])
        assert (vocabulary.num_text_ids, vocabulary.num_codebooks, vocabulary.codebook_size) == (96, 8, 64)
        assert vocabulary.delay_rows == 5
        assert vocabulary.delays == (0, *[2] * 7)
        assert copied.family.voices == ("alba",)
        assert (copied.checkpoint / "voices" / "alba.wav").exists()

    def test_wish_token_embedding_equals_pad_embedding(self, release: SmallRelease) -> None:
        vocabulary = TtsVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])
        for name in ("model.embed_tokens.weight", "depth.embed"):
            assert release.weights[name][vocabulary.wish_id].equal(release.weights[name][3])
        assert not release.weights["model.embed_tokens.weight"][vocabulary.nothing].any()

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ({"rate": 16_000}, "expected 1 channel of 16 bits at 24000 Hz, got (1, 16, 16000)"),
            ({"channels": 2}, "expected 1 channel of 16 bits at 24000 Hz, got (2, 16, 24000)"),
            ({"seconds": 0.5}, "alba.wav: expected 1 to 30 s, got 0.50 s"),
            ({"seconds": 31}, "alba.wav: expected 1 to 30 s, got 31.00 s"),
        ],
    )
    def test_unusable_voice_wav_is_refused(self, copied: SmallRelease, shape: dict[str, Any], message: str) -> None:
        voice = copied.folder / "release" / "voices" / "alba.wav"
        write_wav(voice, **shape)
        copied.assert_refused(message)
        voice.write_bytes(b"RIFF")
        copied.assert_refused("alba.wav: expected a WAV file")

    def test_text_head_of_few_ids_and_low_rank_tables_are_converted(self, tmp_path: Path) -> None:
        """Other ids have zeros in the head, and are never sampled; tables of low rank are multiplied out."""
        release = SmallRelease.written(tmp_path / "reduced", "reduced", write)
        published = load_file(release.folder / self.case.weights)
        head = release.weights["depth.first_head"]
        vocabulary = TtsVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])
        assert head[:5].equal(published["text_linear.weight"])
        assert not head[5:].any()
        assert len(head) == vocabulary.text_end
        script = release.family.drawing
        assert isinstance(script, WordScript)
        assert script.num_sampled == 5
        names = ["depformer_text_emb", *(f"depformer_emb.{k}" for k in range(7))]
        tables = [published[f"{name}.weight"] @ published[f"{name}.low_rank.weight"].T for name in names]
        expected = torch.cat([tables[0][:96], tables[0][3:4], *(table[:64] for table in tables[1:])])
        torch.testing.assert_close(release.weights["depth.embed"], expected)
