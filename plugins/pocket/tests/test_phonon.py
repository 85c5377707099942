"""Phonon equals transformers' class: latents within a nudge's effect; and the authors' runtime: lengths and samples."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
import torch

from plugins.pocket.lab.phonon_replies import FRAME, NUM_SPOKEN_FRAMES, PREPARED, SEEDS, STRIDE, TEXTS, VOICE
from plugins.pocket.lab.random_phonon import (
    CONDITIONERS,
    KINDS,
    THRESHOLDS,
    VOICES,
    config,
    tensors,
    voice_latents,
    write_release,
)
from plugins.pocket.tests.phonon_release import stored
from plugins.pocket.tests.pocket_layouts import differing_files, write_phonon
from plugins.pocket.tests.pocket_release import growing
from stretto.codecs.base import Window
from stretto.codecs.rotary_attention import GELU_FORMS
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_pocket.codec import load
from stretto_pocket.phonon import PLUGIN
from stretto_pocket.phonon.convert import DROPPED
from stretto_pocket.phonon.family import PhononVocabulary
from tests.engine.nudges import assert_latents_near
from tests.family_suite import FamilySuite
from tests.tiers import by_night

TIGHT = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 5, "max_model_len": 128}
TAIL_ROWS = 2
# The runtime and this engine compute in float32, and differ by up to 5e-6 (5e-7 in `odd`). The two forms of GELU in the
# codec of `odd` differ by 2e-5.
PCM_TOLERANCES = {"small": 1e-4, "steps": 1e-4, "odd": 1e-5}
MIA = "mia.safetensors"


def write(folder: Path, size: str) -> list[str]:
    return ["phonon", "--model", str(write_release(folder / "release", size))]


def vocabulary_of(release: SmallRelease) -> PhononVocabulary:
    return PhononVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])


def prompt_of(release: SmallRelease, text: str, seed: int, **audio: Any) -> Prompt:
    prompt = release.preprocessor.prepare(RawRequest(**asked(text, voice=VOICE, piece=0)))
    sampling = replace(prompt.sampling, seed=seed)
    return replace(prompt, sampling=replace(sampling, audio=replace(sampling.audio, **audio)))


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """By seed, a reply that ends by itself, and one that goes on."""
    frame, last = release.family.layout.audio[0]

    def check_own(seed: int, rows: np.ndarray) -> None:
        latents, logits, nudged = (
            stored()[f"{release.size}.{seed}.{name}"] for name in ("latents", "end_logits", "nudged")
        )
        ended = int(np.flatnonzero(logits > THRESHOLDS[release.size])[0])
        assert len(rows) - 1 == ended + TAIL_ROWS
        assert rows[-1, 0] == release.family.end_of_reply
        assert {*rows[:-1, 0].tolist()} == {frame, last}
        generated = latents_of(rows[:-1, 1:].astype(np.int32))
        assert_latents_near(generated, latents[: len(generated)], nudged[: len(generated)])

    def check_long(seed: int, rows: np.ndarray) -> None:
        latents, nudged = (stored()[f"{release.size}.{seed}.{name}"] for name in ("latents", "nudged"))
        assert_latents_near(latents_of(rows[: len(latents), 1:].astype(np.int32)), latents, nudged)

    def check_end(rows: np.ndarray) -> None:
        assert rows[-1, 0] == release.family.end_of_reply

    ending = {seed: prompt_of(release, PREPARED, seed) for seed in SEEDS}
    assert ending[7].rows[13:-1, 0].tolist() == stored()["ids"].tolist()
    long = {seed: prompt_of(release, PREPARED, seed, min_rows=24, max_rows=24) for seed in SEEDS}
    return {
        **{
            f"growing{seed}": ExpectedReply(growing(lambda text, seed=seed: prompt_of(release, text, seed)), check_end)
            for seed in range(2)
        },
        **{f"own{seed}": ExpectedReply(prompt, partial(check_own, seed)) for seed, prompt in ending.items()},
        **{f"long{seed}": ExpectedReply(prompt, partial(check_long, seed)) for seed, prompt in long.items()},
    }


def edit_voice(**tensors: torch.Tensor) -> Any:
    """Return an edit that replaces the tensors of a voice."""

    def edit(content: dict[str, torch.Tensor]) -> None:
        content.clear()
        content |= tensors

    return edit


def copy_voice(folder: Path) -> None:
    copyfile(folder / MIA, folder / "MIA.safetensors")


class TestPhonon(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=KINDS,
        other_sizes=("odd",),
        unneeded_tensors=[name for name in tensors() if name.startswith(DROPPED)],
        same_configs=[{"architectures": ["GradiumPhononTTSForConditionalGeneration"]}],
        refused_configs=[
            ({"flow_lm": None}, "config.json: expected the sections flow_lm and mimi"),
            ({"lsd_decode_steps": 0}, "lsd_decode_steps: expected an integer in [1, 32], got 0"),
            ({"prefix_sinks": {"a": 1}}, "prefix_sinks: expected {}, got"),
            ({"voices": [{"name": "a"}]}, "voices: expected [], got"),
            (
                {"conditioners": [{"name": "mood", "type": "lut"}]},
                "conditioners: expected num_speakers (lut) and",
            ),
            ({"eos_threshold": None}, "config.json: eos_threshold: expected a number, got None"),
            ({"flow_lm.gelu": "tanh"}, "flow_lm.gelu: expected 'erf', got 'tanh'"),
            ({"mimi.gelu": "relu"}, "gelu: expected one of ['erf', 'tanh'], got 'relu'"),
        ],
        refused_edits=[
            (f"release/voices/{MIA}", edit_voice(), f"{MIA}: expected tensors by name"),
            (f"release/voices/{MIA}", edit_voice(speaker_wavs=torch.zeros(5, 9)), "got speaker_wavs [5, 9]"),
            (f"release/voices/{MIA}", edit_voice(emb=torch.zeros(401, 64)), "got emb [401, 64]"),
            (f"release/voices/{MIA}", edit_voice(audio_prompt=torch.zeros(1, 9, 63)), "got audio_prompt [1, 9, 63]"),
            (
                f"release/voices/{MIA}",
                edit_voice(emb=torch.full((3, 64), torch.inf)),
                "expected floating-point numbers of magnitude at most",
            ),
            (
                f"release/voices/{MIA}",
                edit_voice(emb=torch.zeros(3, 64, dtype=torch.int32)),
                "expected floating-point numbers",
            ),
            ("release/voices", copy_voice, "expected names that differ in lower case, got 'MIA, mia, "),
        ],
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
        conformance={},
        conforming_size="small",
        conforms_by_night=True,
    )

    def test_voices_and_conditions_are_written(self, release: SmallRelease) -> None:
        vocabulary = vocabulary_of(release)
        published = tensors()
        written = release.weights
        table = written["model.embed_tokens.weight"]
        projection = published[f"{CONDITIONERS}speaker_wavs.output_proj.weight"]
        assert dict(vocabulary.voices) == {name.lower(): number for name, (number, _) in VOICES.items()}
        for name in VOICES:
            expected = (projection @ voice_latents(name)).T
            torch.testing.assert_close(table[list(vocabulary.voice(name.lower()))], expected, rtol=0, atol=1e-5)
        one = published[f"{CONDITIONERS}num_speakers.embed.weight"][1]
        cosines = published[f"{CONDITIONERS}duration_delta.output_proj.weight"][:, :64].sum(1)
        constant = published[f"{CONDITIONERS}num_speakers.output_proj.weight"] @ one + cosines
        torch.testing.assert_close(written["connector.bias"], constant, rtol=0, atol=1e-4)
        begin = published["flow_lm.input_linear.weight"] @ published["flow_lm.bos_emb"] + constant
        torch.testing.assert_close(table[vocabulary.bos], begin, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("kind", "named", "form"), [("small", None, "tanh"), ("odd", None, "erf"), ("odd", "tanh", "tanh")]
    )
    def test_codec_has_the_form_of_gelu_of_the_authors_runtime(
        self, tmp_path: Path, kind: str, named: str | None, form: str
    ) -> None:
        release = SmallRelease.written(tmp_path / kind, kind, write)
        with edited(release.folder / self.case.config) as record:
            record["mimi"]["gelu"] = named
        codec = load(release.checkpoint)
        assert codec.decoder_transformer.transformer.layers[0].approximation == GELU_FORMS[form]

    def test_voices_may_be_elsewhere(self, copied: SmallRelease, tmp_path: Path) -> None:
        """A file in the folder itself is the first voice, called `default`; a release without voices is refused."""
        folder = copied.folder / "release"
        (folder / "voices" / MIA).rename(folder / "default-voice.safetensors")
        voices = (folder / "voices").rename(folder / "embeddings")
        assert dict(vocabulary_of(copied.copied(tmp_path / "elsewhere")).voices) == {"default": 9, "toby": 13}
        (folder / "default-voice.safetensors").unlink()
        (voices / "Toby.safetensors").rename(voices / "a b.safetensors")
        copied.assert_refused("a b.safetensors: expected a name of letters")
        (voices / "a b.safetensors").unlink()
        copied.assert_refused("expected at least one voice")

    def test_lengths_match_the_authors_runtime(self, release: SmallRelease) -> None:
        """The runtime's lengths are those of all pieces, if speech ends in their first frame, or never."""
        for at, text in enumerate(TEXTS):
            number = release.preprocessor.prepare(RawRequest(**asked(text, voice=VOICE, piece=0))).num_pieces
            requests = [RawRequest(**asked(text, voice=VOICE, piece=piece)) for piece in range(number)]
            samplings = [release.preprocessor.prepare(request).sampling for request in requests]
            tails = [sampling.latents.tail_rows for sampling in samplings if sampling.latents]
            assert sum(tails) * FRAME == stored()["small.all_numbers"][at]
            assert sum(sampling.audio.max_rows for sampling in samplings) * FRAME == stored()["small.first_numbers"][at]

    @pytest.mark.engine
    @pytest.mark.parametrize("kind", ["odd", *by_night("small", "steps")])
    def test_samples_without_noise_match_the_authors_runtime(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """From the text to the samples, for texts that the runtime changes.

        The fade-in is this codec's own. In a release without an id, as in Pocket TTS's, the runtime has GELU's tanh
        form, which transformers does not have.
        """
        from stretto_pocket.phonon.model import StrettoPhononForCausalLM
        from stretto_pocket.pocket_tts.model import gelu_tanh

        if config(kind)["model_id"] is None:
            monkeypatch.setattr(StrettoPhononForCausalLM, "activate", staticmethod(gelu_tanh))
        release = SmallRelease.written(tmp_path / kind, kind, write)
        length = {"temperature": 0.0, "min_rows": NUM_SPOKEN_FRAMES, "max_rows": NUM_SPOKEN_FRAMES}
        prompts = {str(at): prompt_of(release, text, 0, **length) for at, text in enumerate(TEXTS)}
        engine = self.start_engine(release.checkpoint, max_model_len=512)
        answers = engine.run(prompts)
        engine.shutdown()
        rows = np.stack([np.array(answers[str(at)].rows)[:NUM_SPOKEN_FRAMES, 1:] for at in range(len(TEXTS))])
        codec = load(release.checkpoint)
        latents = torch.from_numpy(rows.transpose(0, 2, 1))
        window = Window(latents, 0, 0, torch.zeros(len(rows)).long(), codec.initial_state(len(rows)))
        pcm = codec.decode(window)[0].numpy()[:, ::STRIDE]
        faded = FRAME // STRIDE
        expected = stored()[f"{kind}.pcm"][:, faded:]
        np.testing.assert_allclose(pcm[:, faded:], expected, rtol=0, atol=PCM_TOLERANCES[kind])


def write_both_layouts(folder: Path, size: str) -> list[str]:
    """Write a release whose tensors have transformers' names (`steps`) or Gradium's."""
    _, model, codec = write_phonon(folder / "release", size, is_native=size == "steps")
    return ["phonon", "--model", str(model), "--codec", str(codec)]


class TestTransformersLayout(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write_both_layouts,
        sizes=("steps", "small"),
        config="release/transformers/config.json",
        weights="release/transformers/model.safetensors",
        tokenizer="release/transformers/tokenizer.json",
        unneeded_tensors=("loss_weighting.proj.bias",),
        refused_configs=[
            ({"num_speakers": 2}, "config.json: num_speakers: expected 1, got 2"),
            ({"duration_delta": 0.5}, "config.json: duration_delta: expected 0.0, got 0.5"),
            ({"num_key_value_heads": 1}, "config.json: num_key_value_heads: expected 3, got 1"),
        ],
    )

    def test_authors_layout_gives_the_same_checkpoint(self, releases: dict[str, SmallRelease], tmp_path: Path) -> None:
        for size, release in releases.items():
            copy = release.copied(tmp_path / size)
            authors = replace(copy, arguments=["phonon", "--model", str(copy.folder / "release" / "authors")])
            assert differing_files(authors.checkpoint, release.checkpoint) == []

    def test_codec_in_another_folder_is_asked_for(self, copied: SmallRelease) -> None:
        release = replace(copied, arguments=[*copied.arguments[:3]])
        release.assert_refused("--codec: expected the folder of a pocket_tts_audio_tokenizer", "got none")
