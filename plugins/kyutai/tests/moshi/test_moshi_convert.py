"""Conversion of Moshi, and inputs that it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plugins.kyutai.lab.random_moshi import CONFIG, lm_shapes, write_release
from plugins.kyutai.tests.moshi_release import REFUSED_CONFIGS, REFUSED_NAMES, name_if_missing, replies
from plugins.kyutai.tests.small_families import SMALL_MOSHI
from plugins.kyutai.tests.transformers_releases import assert_equal_checkpoints, moshi_model, write_moshi
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import plain_tokenizer
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import FamilyCase
from stretto_kyutai.kyutai_stt.family import PAD
from stretto_kyutai.moshi import PLUGIN
from stretto_kyutai.moshi.convert import FIRST, vocabulary
from stretto_kyutai.moshi.family import DEPTH, MoshiVocabulary
from stretto_kyutai.moshi.reader import open_text_codec
from tests.family_suite import FamilySuite

PCM = (np.sin(np.arange(20_001) ** 1.3 / 300) / 2).astype(np.float32)
NUM_LAYERS = {"shallow": 1, "two layers": 2}


def write(folder: Path, size: str) -> list[str]:
    number = NUM_LAYERS[size]
    return ["moshi", "--model", str(write_release(folder / "release", num_layers=number, depformer_num_layers=number))]


def write_saved(folder: Path, size: str) -> list[str]:
    number = NUM_LAYERS[size]
    return ["moshi", "--model", str(write_moshi(folder / "release", num_layers=number, depformer_num_layers=number))]


def heard(pcm: np.ndarray, sample_rate: int = 24_000, **options: object) -> dict[str, Any]:
    """Return the inputs of a request with a recording of the user."""
    return {"pcm_in": pcm, "sample_rate": sample_rate, "options": json.dumps(options)}


class TestMoshi(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("shallow",),
        may_be_sharded=False,
        name_if_missing=name_if_missing,
        refused_configs=[
            *REFUSED_CONFIGS,
            *REFUSED_NAMES,
            ({"model_type": "hibiki"}, "config.json: model_type: expected 'moshi', got 'hibiki'"),
            ({"n_q": 8}, "config.json: n_q: expected 16, those of the model and as many of the user, got 8"),
            ({"lora_name": "lora.safetensors"}, "config.json: lora_name: expected no value, got 'lora.safetensors'"),
            ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
            ({"depformer_multi_linear": False}, "config.json: depformer_multi_linear: expected True, got False"),
            ({"depformer_low_rank_embeddings": 8}, "depformer_low_rank_embeddings: expected no value, got 8"),
            ({"delays": [0] * 9 + [0, *[1] * 7]}, "config.json: delays: expected 0, then twice 8 delays from 0 to 16"),
            ({"delays": [0, *[1] * 16]}, "config.json: delays: expected 0, then twice 8 delays from 0 to 16"),
            ({"depformer_num_heads": 5}, "config.json: depformer_dim: expected heads of an even width, got 32 for 5"),
            ({"depformer_weights_per_step_schedule": [0, 2] * 4}, "schedule: expected 8 numbers of sets, from 0 on"),
            ({"dim": "wide"}, "config.json: dim: expected an integer in [1, 1048575], got 'wide'"),
            ({"card": 63}, "expected 8 codebooks of 63 codes, got 32 of 64"),
            ({"mimi_name": "/etc/passwd"}, "expected a file name without a folder, got '/etc/passwd'"),
        ],
        refused_inputs=[
            (asked("o"), "audio: expected audio for task 'duplex', got text"),
            (heard(PCM[:100]), "pcm_in: expected at least 0.08 s"),
            (heard(np.full(9000, np.nan, np.float32)), "pcm_in: expected"),
            (heard(np.zeros(301 * 8000, np.float32), 8_000), "pcm_in: expected at most 300"),
            (talk({"role": "user", "codes": [[1] * 3] * 7}), "messages[0].codes: expected codes [8, n]"),
            (talk({"role": "user", "codes": [[64] * 3] * 8}), "messages[0].codes: expected codes [8, n] in [0, 64)"),
            (heard(PCM, voice="alba"), "options.voice: expected"),
            (heard(PCM, live=True), "pcm_in: expected no value with"),
        ],
        conformance={"vocabulary": SMALL_MOSHI.to_record(), "backbone": "llama"},
        conforms_by_night=True,
    )

    def test_converted_config_matches_the_release(self, release: SmallRelease) -> None:
        record = config_at(release.checkpoint)
        assert record["sliding_window"] == 24
        assert record["layer_types"] == ["sliding_attention"]
        assert (record["intermediate_size"], record["rms_norm_eps"], record["rope_theta"]) == (176, 1e-8, 10000.0)
        converted = MoshiVocabulary.from_record(record[VOCABULARY])
        assert (converted.num_text_ids, converted.num_codebooks, converted.codebook_size) == (96, 8, 64)
        depth = converted.depth
        assert (depth.hidden, depth.intermediate, depth.schedule) == (32, 88, tuple(range(8)))
        assert (release.checkpoint / "tokenizer.model").exists()


class TestMoshiOfTransformers(FamilySuite):
    """Releases that transformers' class has written."""

    case = FamilyCase(
        PLUGIN,
        write_saved,
        sizes=("shallow", "two layers"),
        refused_configs=[
            ({"num_codebooks": 4}, "depth_decoder_config.num_codebooks: expected 4, got 8"),
            ({"audio_vocab_size": 63}, "audio_encoder_config: expected 8 codebooks of 63 codes, got 32 of 64"),
            ({"vocab_size": 95}, "expected a tokenizer of 95 tokens, got 96"),
            (
                {"depth_decoder_config.num_key_value_heads": 2},
                "depth_decoder_config.num_key_value_heads: expected 4, got 2",
            ),
            (
                {"depth_decoder_config.num_attention_heads": 5},
                "depth_decoder_config.hidden_size: expected heads of an even width, got 32",
            ),
            (
                {"depth_decoder_config.sliding_window": 7},
                "depth_decoder_config.sliding_window: expected at least the 8 steps of a frame",
            ),
        ],
    )

    def test_checkpoint_equals_that_of_the_authors_format(
        self, releases: dict[str, SmallRelease], tmp_path: Path
    ) -> None:
        saved = releases["two layers"]
        assert_equal_checkpoints(SmallRelease.written(tmp_path / "a", "two layers", write).checkpoint, saved.checkpoint)
        reader = open_text_codec(saved.family, saved.checkpoint).reader("duplex")
        pieces = plain_tokenizer(saved.checkpoint).encode("the door")
        assert "".join(map(reader.push, [PAD, *pieces, PAD])) + reader.end() == "the door"


def test_first_moshi_releases_match_the_published_numbers() -> None:
    assert vocabulary(FIRST) == MoshiVocabulary()
    assert vocabulary(FIRST).depth == DEPTH
    assert len(lm_shapes(FIRST)) == 355  # tensors in the published file


def test_transformers_class_gives_the_authors_reply(tmp_path: Path) -> None:
    """In one pass over the authors' greedy reply, whose rows it reads as its own."""
    found, window, size = replies(), CONFIG["context"], CONFIG["card"]
    user, frames = found["user"][0].astype(np.int64), found["frames"][0].astype(np.int64)
    model = moshi_model(write_release(tmp_path / "release"), CONFIG)

    def delayed(codes: np.ndarray) -> torch.Tensor:
        """Return codes [K, T] after the row of initial ids, the first codebook one row before the others."""
        initial = np.full((len(codes), 2), size)
        rows = np.concatenate([initial, codes], 1)
        return torch.from_numpy(np.concatenate([rows[:1, 1:-1], rows[1:, :-2]]))

    text = torch.from_numpy(np.concatenate([[CONFIG["text_card"]], frames[:-1, 0]]))
    codes = torch.cat([delayed(frames[:, 1:].T), delayed(user)])
    ages = torch.arange(len(text))[:, None] - torch.arange(len(text))
    mask = ((ages >= 0) & (ages < window))[None, None]
    with torch.inference_mode():
        embedded = model.decoder.model.embed_tokens(text)
        embedded += sum(table(each) for table, each in zip(model.embed_tokens, codes, strict=True))
        hidden = model.decoder.model(inputs_embeds=embedded[None], attention_mask=mask).last_hidden_state[0]
        assert model.decoder.lm_head(hidden).argmax(-1).tolist() == frames[:, 0].tolist()
        row = torch.from_numpy(np.concatenate([frames[:, :2], np.roll(frames[:, 2:], 1, 0)], 1))
        steps = model.depth_decoder(row[:, :-1], hidden[:, None]).logits.argmax(-1)
    assert (steps == row[:, 1:])[1:].all(), "the first row has codes of the frame before the first"
