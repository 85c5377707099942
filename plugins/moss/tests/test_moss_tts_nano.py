"""MOSS-TTS-Nano equals OpenMOSS's own code: prompts, the rows of replies, and the codec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.moss.lab.moss_tts_nano_replies import (
    MAX_ROWS,
    REPLIES,
    STRIDE,
    TEXTS,
    decoded_codes,
    heard_codes,
    recording,
    stored,
)
from plugins.moss.lab.random_moss_nano import (
    IDS,
    WEIGHTS,
    codec_config,
    command,
    config,
    model_shapes,
    model_tensors,
    write_codec,
    write_release,
)
from plugins.moss.tests.small_families import SMALL_MOSS_TTS_NANO
from plugins.moss.tests.test_moss_tts_local import absolute, expected_replies, write_with_long_replies
from stretto.family.plugin import decoder_size
from stretto.preprocessing.request import RawRequest
from stretto.testing.codec_streams import stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_moss.codec import MossCodec, MossConfig
from stretto_moss.moss_tts_local.convert import COPIES, TEXT_HEAD
from stretto_moss.moss_tts_nano import PLUGIN
from stretto_moss.moss_tts_nano.convert import Config, plan, vocabulary
from tests.family_suite import FamilySuite


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published() -> PublishedSizes:
    """The sizes of the published config.json."""
    release = Config.read(config("published", 32768))
    known = vocabulary(release)
    assert (known.slot, known.audio_end, known.depth.head_dim, known.max_model_len) == (9, 7, 64, 4096)
    return PublishedSizes(
        shapes=model_shapes(config("published")),
        plan=plan(release, known),
        written={
            "model.embed_tokens.weight": (32_768, 768),
            "depth.heads": (16, 1024, 768),
            "depth.embed": (1 + 15 * 1024, 768),
            "depth.first_head": (2, 768),
        },
        num_written=13 * 16 + 2 * 2 + 4,
        unused=[TEXT_HEAD, *(f"{COPIES}{number}.weight" for number in range(16))],
    )


def prompt_rows(release: SmallRelease, number: int) -> np.ndarray:
    return absolute(stored()[f"{release.size}.prompt{number}"], release.family)


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    voice = {"codes": heard_codes(release.size).tolist()}
    return {
        "text": (asked(TEXTS[0]), prompt_rows(release, 0)),
        "voice": (asked(TEXTS[1], voice), prompt_rows(release, 1)),
    }


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    slot = IDS["audio_assistant_slot_token_id"]
    rows = {
        name: np.pad(value, ((0, 0), (1, 0)), constant_values=slot) if name.endswith(("greedy", "sampled")) else value
        for name, value in stored().items()
    }
    return expected_replies(release, rows, REPLIES, MAX_ROWS)


class TestMossTtsNano(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        other_sizes=("odd",),
        weights=f"release/{WEIGHTS}",
        may_be_sharded=False,
        unneeded_tensors=[name for name in model_tensors() if "lm_head" in name],
        refused_configs=[
            ({"model_type": "moss_tts_local"}, "model_type: expected 'moss_tts_nano', got 'moss_tts_local'"),
            ({"model_architecture": "delay"}, "model_architecture: expected 'global_local_transformer', got 'delay'"),
            ({"n_vq": 5}, "audio_codebook_sizes: expected 5 times 16"),
            ({"n_vq": 5, "audio_codebook_sizes": None}, "missing: audio_embeddings.4.weight"),
            ({"audio_end_token_id": 128}, "audio_end_token_id: expected an id in [0, 128), got 128"),
            ({"audio_end_token_id": IDS["audio_start_token_id"]}, "7 different ids of text tokens"),
            ({"local_transformer_layers": 2}, "missing: local_transformer.h.1"),
            ({"gpt2_config.n_head": 3}, "gpt2_config.n_head: expected heads of an even size, got 64 / 3"),
            ({"gpt2_config.position_embedding_type": "absolute"}, "position_embedding_type: expected 'rope'"),
        ],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(" \n"), "text: expected text of at least one character"),
            (asked("a <|im_end|> b"), "text: expected none of the model's markers, got <|im_end|>"),
            (asked("a", pcm=np.full(1919, 0.1, np.float32)), "pcm_in: expected at least 0.08 s"),
            (asked("a", {"codes": [[0] * 5] * 3}), "messages[0].codes: expected 4 lists of at most 750 codes"),
            (asked("a", language="english"), "options.language: expected no value"),
            (asked("a", instruct="slowly"), "options.instruct: expected no value"),
        ],
        replies=replies,
        engine={"max_model_len": 320},
        tight={"num_gpu_blocks_override": 17},
        conformance={
            "vocabulary": SMALL_MOSS_TTS_NANO.to_record(),
            "write": write_with_long_replies,
            "num_prompts": 20,
            "seed": 1,
        },
        conforms_by_night=True,
    )

    def test_tables_and_heads_are_joined(self, release: SmallRelease) -> None:
        tensors = {name: torch.from_numpy(tensor) for name, tensor in model_tensors().items()}
        text = tensors["transformer.wte.weight"]
        tables = [tensors[f"audio_embeddings.{number}.weight"] for number in range(4)]
        written = release.weights
        table = written["model.embed_tokens.weight"]
        assert table.equal(torch.cat([text, *tables]))
        assert written["depth.heads"].equal(torch.stack(tables))
        assert written["depth.embed"].equal(torch.cat([text[9:10], *tables[:3]]))
        assert written["depth.first_head"].equal(text[[9, 7]])
        value = tensors["transformer.h.1.attn.c_attn.weight"][128:]
        assert written["model.layers.1.self_attn.v_proj.weight"].equal(value)
        assert release.family.layout.vocab_size == len(table)

    def test_head_that_is_no_copy_is_refused(self, copied: SmallRelease) -> None:
        with edited(copied.folder / self.case.weights) as tensors:
            tensors[TEXT_HEAD] = tensors[TEXT_HEAD] + 1
        copied.assert_refused("text_lm_head.weight: expected a copy of transformer.wte.weight")

    def test_recording_is_encoded_as_it_is(self, release: SmallRelease) -> None:
        pcm = recording()[: 3840 * 5 + 700] * 0.05
        rows = release.preprocessor.prepare(RawRequest(**asked("a", pcm=pcm, sample_rate=48_000))).rows
        first_codes = [ids.start for ids in release.family.layout.audio[1:]]
        codes = rows[rows[:, 0] == IDS["audio_user_slot_token_id"], 1:] - first_codes
        assert (release.preprocessor.codec.encode(pcm) == codes.T).all()


class TestMossNanoCodec(CodecSuite):
    """MOSS-Audio-Tokenizer-Nano, whose tensors have the names of the authors' newer class."""

    case = CodecCase(
        name="moss_nano",
        write=write_codec,
        spec={"sample_rate": 48_000, "samples_per_frame": 3840},
        pads_recordings=False,
        positions=(3, 25),
        name_if_missing=lambda name: name.split(".")[0],
        refused_configs=(
            ({"decoder_kwargs.0.patch_size": 8}, "downsample_rate: expected the product"),
            ({"encoder_kwargs.8.patch_size": "4"}, "patch_size: expected an integer in [1, 65536], got '4'"),
            ({"encoder_kwargs.7.output_dimension": 12}, "parts that fit together"),
        ),
    )

    def test_mean_of_the_channels_matches_the_authors(self, codec: MossCodec) -> None:
        pcm = stream(codec, torch.from_numpy(decoded_codes()), [decoded_codes().shape[2]])[0, ::STRIDE].numpy()
        expected = stored()["pcm"].mean(0)
        assert 0.01 < np.abs(expected).mean() < np.abs(stored()["pcm"]).max() < 1, "nothing is clipped"
        assert np.abs(pcm - expected).max() < 1e-4

    def test_codes_match_the_authors(self, codec: MossCodec) -> None:
        expected = stored()["codes"][:, : len(recording()) // 3840]
        assert (codec.encode(recording()) == expected).mean() > 0.99  # two entries may be equally near


def test_state_of_the_published_codec_is_stated() -> None:
    with torch.device("meta"):
        codec = MossCodec(MossConfig.from_record(codec_config("published")))
    assert decoder_size("moss_nano").state_bytes == 4 * codec.state_size
    assert sum(tensor.numel() for tensor in codec.parameters()) == pytest.approx(22e6, rel=0.01)
