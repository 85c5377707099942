"""Magpie TTS equals a slow reference that reads the published layout, and NVIDIA's own classes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.magpie.lab.magpie_replies import MAX_ROWS as STORED_ROWS
from plugins.magpie.lab.magpie_replies import REQUESTS, text_of
from plugins.magpie.lab.nemo_archive import edited_nemo
from plugins.magpie.lab.random_magpie import CODEC, MODEL, NAMES, VOICES, command, model_shapes, write_release
from plugins.magpie.lab.random_nanocodec import write_codec
from plugins.magpie.tests.magpie_reference import MagpieReference
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Condition, Prompt
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease, set_fields
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_magpie import PLUGIN
from stretto_magpie.family import MagpieVocabulary, magpie
from stretto_magpie.prompt import NO_VECTORS
from tests.family_suite import FamilySuite
from tests.tiers import by_night

ARCHIVE = f"release/{MODEL}"
MAX_ROWS = 40
ENGINE = {"max_model_len": 96}
# Tokens of the text, voice, guidance scale, temperature, top-k and seed.
SPOKEN = (
    (4, 0, 2.5, 0.6, 80, 1),
    (9, 1, 2.5, 0.6, 10, 2),
    (24, 2, 1.7, 1.0, 80, 3),
    (40, 1, 1.0, 0.6, 5, 4),
    (14, 0, 2.5, 0.0, 80, 5),
    (27, 2, 4.0, 0.6, 80, 7),
)
TEXT = "The garden door is open."


def write(folder: Path, kind: str) -> list[str]:
    return command(write_release(folder / "release", kind))


def prompt_of(release: SmallRelease, voice: int, ids: Sequence[int], sampling: Any) -> Prompt:
    """Return the prompt of the tokens of a text."""
    layout = release.family.layout
    first = layout.audio[0].stop + 2 + voice * VOICES[release.size][1]
    rows = np.full((VOICES[release.size][1] + 1, 1 + len(layout.codebook_streams)), layout.pad_id, np.int32)
    rows[:-1, 0] = range(first, first + len(rows) - 1)
    rows[-1] = layout.initial
    return Prompt("tts", rows, sampling, condition=Condition(tuple(ids), NO_VECTORS))


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    reference = MagpieReference(release.size)
    usual = release.family.tasks[0].sampling
    num_ids = len(reference.tensors["text_embedding.weight"])
    expected = dict[str, ExpectedReply]()
    spoken = []
    for number, (length, voice, scale, temperature, top_k, seed) in enumerate(SPOKEN):
        random = np.random.default_rng(number)
        ids = [*random.integers(0, num_ids - 2, length - 1).tolist(), num_ids - 1]
        audio = replace(usual.audio, temperature=temperature, top_k=top_k, max_rows=MAX_ROWS)
        sampling = replace(usual, audio=audio, guidance_scale=scale, seed=seed)
        reply = reference.reply(voice, ids, sampling, release.family)
        spoken.append(reply)
        rows = reference.rows(reply, release.family)
        expected[f"{length} tokens"] = ExpectedReply(prompt_of(release, voice, ids, sampling), rows)
    assert any(reply.ended_by for reply in spoken), [len(reply.codes) for reply in spoken]
    assert any(not reply.ended_by for reply in spoken), [len(reply.codes) for reply in spoken]
    assert any(len({*reply.attended}) > 2 for reply in spoken), "attention moves"
    return expected


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    usual = release.family.tasks[0].sampling
    names = release.family.voices
    return {
        "first voice": (asked(TEXT), prompt_of(release, 0, (), usual).rows),
        "named voice": (asked(TEXT, voice=names[1].upper()), prompt_of(release, 1, (), usual).rows),
    }


REFUSED_CONFIGS: list[tuple[dict[str, object], str]] = [
    ({"model_type": "decoder_context_tts"}, "model_type: expected 'decoder_ce', got 'decoder_context_tts'"),
    ({"decoder.kernel_size": 3}, "decoder.kernel_size: expected 1, got 3"),
    ({"decoder.d_model": 32}, "decoder.d_model: expected 128 (embedding_dim), got 32"),
    ({"decoder.sa_n_heads": 3}, "decoder.sa_n_heads: expected a divisor of 128 (d_model), got 3"),
    ({"encoder.use_moe": True}, "encoder.use_moe: expected False, got True"),
    ({"local_transformer_type": "maskgit"}, "local_transformer_type: expected 'autoregressive', got 'maskgit'"),
    ({"local_transformer_n_heads": 5}, "local_transformer_n_heads: expected a divisor of 32"),
    ({"frame_stacking_factor": 3}, "tensors do not match: missing: audio_embeddings.10.weight"),
    ({"inference_parameters.eos_detection_method": "argmax_any"}, "eos_detection_method: expected"),
    ({"inference_parameters.ignore_finished_sentence_tracking": False}, "sentence_tracking: expected True, got False"),
    ({"inference_parameters.attention_prior_epsilon": 0.0}, "attention_prior_epsilon: expected a number in (0, 1]"),
]


class TestMagpie(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "stacked"),
        weights=ARCHIVE,
        may_be_sharded=False,
        unneeded_tensors=[
            *(name for name in model_shapes("small") if name.endswith("causal_mask")),
            *("_baked_embedding_T", "_baked_embedding_D", "baked_context_embedding_len"),
        ],
        refused_configs=REFUSED_CONFIGS,
        prompts=prompts,
        refused_inputs=[
            (asked(" "), "text: expected text with a character that the model can speak, got ' '"),
            (asked("a", language="zh"), "options.language: expected one of auto, en, es, de, pt-br, hi, fr, it"),
            (asked("a", voice="nobody"), "options.voice: expected one of "),
        ],
        replies=replies,
        engine=ENGINE,
        tight={"max_num_batched_tokens": 48, "num_gpu_blocks_override": 7},
    )

    def test_other_configs_are_refused(
        self, copied: SmallRelease, refused_config: tuple[Mapping[str, object], str]
    ) -> None:
        changes, message = refused_config
        with edited_nemo(copied.folder / ARCHIVE) as (config, _, _):
            set_fields(config, changes)
        copied.assert_refused(message)

    @contextmanager
    def _tensors(self, release: SmallRelease) -> Iterator[dict[str, torch.Tensor]]:
        with edited_nemo(release.folder / ARCHIVE) as (_, tensors, _):
            yield tensors

    def test_voices_have_the_names_in_the_archive(self, releases: dict[str, SmallRelease]) -> None:
        assert releases["small"].family.voices == ("john", "sofia", "aria", "jason", "leo")
        assert releases["stacked"].family.voices == ("ann", "bob", "cid")
        assert sorted(NAMES, key=NAMES.__getitem__) == ["Ann", "Bob", "Cid"]

    def test_text_is_the_condition(self, release: SmallRelease) -> None:
        size = json.loads((release.checkpoint / "tokenizer.json").read_text())["size"]
        english = release.preprocessor.prepare(RawRequest(**asked("A cat", language="en"))).condition
        french = release.preprocessor.prepare(RawRequest(**asked("A cat", language="fr"))).condition
        assert english is not None
        assert french is not None
        assert english.ids[-1] == french.ids[-1] == size + 1
        assert english.ids != french.ids
        assert len(french.ids) == len("A cat") + 2

    def test_text_of_too_many_tokens_is_refused(self, release: SmallRelease) -> None:
        """The encoder of the small release has 256 positions."""
        with pytest.raises(ValueError, match="text: expected at most 255 tokens in fr, got 256") as refusal:
            release.preprocessor.prepare(RawRequest(**asked("é" * 127 + "a", language="fr")))
        assert "127" not in str(refusal.value)

    def test_codec_with_other_codebooks_is_refused(self, copied: SmallRelease) -> None:
        (copied.folder / "release" / CODEC).unlink()
        write_codec(copied.folder / "release" / CODEC, "other")
        copied.assert_refused("audio_embeddings.0.weight [80, 128] instead of [48, 128]")

    def test_release_without_its_codec_is_refused(self, copied: SmallRelease) -> None:
        release = replace(copied, arguments=copied.arguments[:-2])
        release.assert_refused("--codec: expected the .nemo archive of NanoCodec, got none")

    @pytest.mark.engine
    @pytest.mark.parametrize(
        ("kind", "has_prior"),
        [("small", True), *by_night(("small", False), ("stacked", True)), ("stacked", False)],
    )
    def test_replies_equal_those_of_the_authors_classes(
        self, releases: dict[str, SmallRelease], kind: str, has_prior: bool, tmp_path: Path
    ) -> None:
        stored = json.loads((Path(__file__).parent / "data" / "replies.json").read_text())[kind]
        release = releases[kind].copied(tmp_path / "published")
        with edited_nemo(release.folder / ARCHIVE) as (config, _, _):
            config["inference_parameters"]["apply_attention_prior"] = has_prior
        usual = release.family.tasks[0].sampling
        prompts = dict[int, Prompt]()
        for number, (_, voice, scale, uses_prior) in enumerate(REQUESTS):
            if uses_prior == has_prior:
                audio = replace(usual.audio, temperature=0.0, max_rows=STORED_ROWS)
                sampling = replace(usual, audio=audio, guidance_scale=scale, seed=0)
                prompts[number] = prompt_of(release, voice, text_of(kind, number), sampling)
        engine = self.start_engine(release.checkpoint, **ENGINE)
        try:
            answers = engine.run({str(number): prompt for number, prompt in prompts.items()})
        finally:
            engine.shutdown()
        starts = np.array([ids.start for ids in release.family.layout.audio[1:]])
        for number in prompts:
            codes = np.array(answers[str(number)].rows)[:-1, 1:] - starts
            assert codes.tolist() == stored[number], f"request {number}"

    @pytest.mark.engine
    @pytest.mark.nightly
    def test_rows_sampled_as_on_a_gpu_are_the_same(
        self, release: SmallRelease, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tests.engine.test_no_sync import as_on_a_gpu

        expected = replies(release)
        as_on_a_gpu(monkeypatch)
        engine = self.start_engine(release.checkpoint, **ENGINE)
        try:
            answers = engine.run({name: reply.prompt for name, reply in expected.items()})
            assert {name: answer.rows for name, answer in answers.items()} == {
                name: reply.rows for name, reply in expected.items()
            }
            assert engine.is_clean()
        finally:
            engine.shutdown()


def test_family_of_the_published_sizes() -> None:
    """Rows are 10.8 per second, and a reply of 500 frames fits the published positions."""
    family = magpie(MagpieVocabulary())
    assert family.num_codebooks == 16
    assert family.tasks[0].sampling.audio.max_rows == 250
    assert family.tasks[0].sampling.audio.min_rows == 2
    assert family.max_model_len >= 217 + 1 + 250
    assert round(family.frame_rate, 2) == 10.77
