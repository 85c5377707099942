"""Pocket TTS equals the authors' code: prompts, and latents within a nudge's effect; voices are recovered."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.pocket.lab.pocket_tts_replies import CUT_TEXTS
from plugins.pocket.lab.random_pocket import VOICES, config, voice_rows, write_release
from plugins.pocket.tests.pocket_layouts import differing_files, write_pocket
from plugins.pocket.tests.pocket_release import KINDS, cloning, growing, reply, seeded
from stretto.errors import InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import stream0_rows
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_pocket.pocket_tts import PLUGIN
from stretto_pocket.pocket_tts.convert import CLONING, SPEAKER
from stretto_pocket.pocket_tts.family import PocketVocabulary, TextRules
from stretto_pocket.pocket_tts.prompt import ended_on_pause, finished, rewritten
from tests.engine.nudges import assert_latents_near
from tests.family_suite import FamilySuite
from tests.tiers import by_night

RULES = TextRules()
TIGHT = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 5, "max_model_len": 128}
MODEL = "release/model.safetensors"
VOICE = "release/embeddings/alba.safetensors"
CACHE = "transformer.layers.1.self_attn/cache"


def write(folder: Path, size: str) -> list[str]:
    return ["pocket-tts", "--model", str(write_release(folder / "release", size))]


def vocabulary_of(release: SmallRelease) -> PocketVocabulary:
    return PocketVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])


def table_of(release: SmallRelease) -> torch.Tensor:
    return release.weights["model.embed_tokens.weight"]


def centred(rows: torch.Tensor) -> torch.Tensor:
    """Return rows without their means, which a LayerNorm removes."""
    return rows - rows.mean(1, keepdim=True)


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """Distilled models have a SentencePiece tokenizer."""
    assert (release.checkpoint / "tokenizer.model").exists() == (release.size != "english")
    vocabulary = vocabulary_of(release)
    expected = reply(release.size)
    assert finished(rewritten(expected.text, vocabulary.text), vocabulary.text) == expected.prepared
    return {
        voice: (
            asked(expected.text, voice=voice),
            stream0_rows(release.family.layout, [*vocabulary.voice(voice), *expected.tokens, vocabulary.bos]),
        )
        for voice in VOICES
    }


def assert_near(rows: np.ndarray, latents: np.ndarray, nudged: np.ndarray) -> None:
    """Assert that latents in rows [T, 1 + D] match latents [T, D] within `nudged` [T], the effect of nudges."""
    assert_latents_near(latents_of(rows[:, 1:].astype(np.int32)), latents, nudged)


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Voices are given by name or as a recording."""
    expected = reply(release.size)
    frame, last = release.family.layout.audio[0]

    def prompt_of(inputs: RawRequest, seed: int) -> Prompt:
        return seeded(release.preprocessor.prepare(inputs), seed)

    def check_own(rows: np.ndarray) -> None:
        ids = [frame] * expected.ended + [last] + [frame] * (expected.tail - 1)
        assert rows[:, 0].tolist() == [*ids, release.family.end_of_reply]
        assert_near(rows[:-1], expected.latents, expected.nudged)

    def check_cloned(rows: np.ndarray) -> None:
        assert_near(rows[: len(expected.cloned)], expected.cloned, expected.cloned_nudged)

    def check_end(rows: np.ndarray) -> None:
        assert rows[-1, 0] == release.family.end_of_reply

    cloned = cloning(expected.text, options='{"audio": {"min_rows": 16}}')
    others = [prompt_of(RawRequest(text=text), seed) for seed, text in enumerate(("one more", "and a third"))]
    return {
        "own": ExpectedReply(prompt_of(RawRequest(text=expected.text), expected.seed), check_own),
        "cloned": ExpectedReply(prompt_of(cloned, expected.seed), check_cloned),
        "growing": ExpectedReply(growing(lambda text: prompt_of(RawRequest(text=text), 1)), check_end),
        **{f"other{seed}": ExpectedReply(prompt, check_end) for seed, prompt in enumerate(others)},
    }


def voiced(latents: np.ndarray) -> dict[str, Any]:
    """Return inputs with the voice of a recording that is given as latents [D, T]."""
    data = base64.b64encode(latents.astype("<f4").tobytes()).decode()
    return talk({"role": "system", "latents": data}, {"role": "user", "text": "Hello."})


def remove_voices(folder: Path) -> None:
    for path in (folder / "embeddings").iterdir():
        path.unlink()


def remove_voices_and_encoder(folder: Path) -> None:
    remove_voices(folder)
    write_release(folder.with_name("other"), clones=False)
    (folder / "model.safetensors").unlink()
    (folder.with_name("other") / "model.safetensors").rename(folder / "model.safetensors")


def link_voice(folder: Path) -> None:
    (folder / "embeddings" / "alba.safetensors").rename(folder.with_name("alba"))
    (folder / "embeddings" / "alba.safetensors").symlink_to(folder.with_name("alba"))


def rename_config(folder: Path) -> None:
    (folder / "config.yaml").rename(folder / "english.yml")


def write_other_config(folder: Path) -> None:
    rename_config(folder)
    (folder / "config.json").write_text("{}")


class TestPocketTts(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=KINDS,
        config="release/config.yaml",
        unneeded_tensors=(SPEAKER,),
        refused_configs=[
            ({"flow_lm.flow.type": "diffusion"}, "flow.type: expected one of lsd, flow_matching"),
            ({"flow_lm.lookup_table.n_bins": 199}, "expected 199 tokens, got 200"),
        ],
        refused_edits=[
            (VOICE, lambda t: t.pop(CACHE), f"alba.safetensors: expected {CACHE} [2, 1, n, 2, 32]"),
            (
                VOICE,
                lambda t: t.update({CACHE: t[CACHE] + 0.1}),
                "expected keys and values of this release within 0.001",
            ),
            (VOICE, lambda t: t.update({CACHE: t[CACHE].long()}), "up to 512 rows of floating-point numbers"),
            (VOICE, lambda t: t.update({CACHE: t[CACHE] * torch.nan}), "up to 512 rows of floating-point numbers of"),
            (
                VOICE,
                lambda t: t.update({CACHE: t[CACHE] * 1e30}),
                "rows of floating-point numbers of magnitude at most 10000",
            ),
            ("release", remove_voices_and_encoder, "expected at least one voice, NAME.safetensors, got none"),
            ("release", link_voice, "alba.safetensors: expected a file of this release, got a link to"),
            ("release", rename_config, "--config: expected the release's YAML file, which is in pocket_tts/config"),
            ("release", write_other_config, "config.json without flow_lm"),
        ],
        prompts=prompts,
        refused_inputs=[
            (asked("…"), "text: expected text with a letter or a digit, got '…'"),
            (asked("a word " * 200), "text: expected at most 300 tokens without a comma or full stop, got "),
            (asked("It is. " * 40), "text: expected at most 50 tokens, or options.piece, got a text of"),
            (asked("It is.", piece=1), "options.piece: expected an integer in [0, 0], got 1"),
            (
                asked("a", pcm=np.resize([0.5, -0.5], 9599).astype(np.float32)),
                "messages[0].audio: expected at least 0.4 s, got 0.4000 s",
            ),
            (
                asked("a", {"codes": [[1], [2]]}),
                "messages[0].codes: expected audio or latents (frames of this model are latents), got codes",
            ),
            (
                voiced(np.zeros((9, 10))),
                "messages[0].latents: expected base64 of float32 [8, T], got 90 elements",
            ),
            *(
                (
                    voiced(np.full((8, 10), value)),
                    "messages[0].latents: expected finite numbers of magnitude 10000 at most",
                )
                for value in (np.nan, -np.inf, 10001.0)
            ),
            (voiced(np.zeros((8, 376))), "messages[0].latents: expected at most 30 s, got 30.08 s"),
            (voiced(np.zeros((8, 4))), "messages[0].latents: expected at least 0.4 s, got 0.32 s"),
            (asked("a", latents={"steps": 0}), "options.latents.steps: expected an integer in [1, 1048576], got 0"),
            (asked("a", latents={"steps": 33}), "options.latents.steps: expected an integer in [1, 32], got 33"),
        ],
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
        conformance={},
        conforming_size="english_2m",
        conforms_by_night=True,
    )

    def test_voice_rows_are_recovered_up_to_their_mean(self, releases: dict[str, SmallRelease]) -> None:
        for kind, release in releases.items():
            vocabulary = vocabulary_of(release)
            table = table_of(release)
            assert len(table) == vocabulary.vocab_size
            for name, number in VOICES.items():
                rows = table[list(vocabulary.voice(name))]
                expected = centred(voice_rows(config(kind), name))
                assert len(rows) == number
                assert (centred(rows) - expected).abs().max() < 2e-5 * expected.std()
            assert not table[[*vocabulary.frames, vocabulary.end]].any()

    @pytest.mark.parametrize("file", [MODEL, VOICE])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, *by_night(torch.float16)])
    @pytest.mark.parametrize("kind", ["english", *by_night("english_2m")])
    def test_voices_match_a_release_of_another_precision(
        self, releases: dict[str, SmallRelease], tmp_path: Path, kind: str, dtype: torch.dtype, file: str
    ) -> None:
        """Voices may have been exported before the weights were rounded. Voices of other weights are still refused."""
        copy = releases[kind].copied(tmp_path / "published")
        with edited(copy.folder / file) as tensors:
            for name, stored in tensors.items():
                if stored.is_floating_point():
                    tensors[name] = stored.to(dtype)
        rows = table_of(copy)[list(vocabulary_of(copy).voice("alba"))]
        expected = centred(voice_rows(config(kind), "alba"))
        difference = (centred(rows) - expected).square().mean().sqrt()
        assert difference < 2 * torch.finfo(dtype).eps * expected.std()
        other = copy.copied(tmp_path / "other")
        with edited(other.folder / MODEL) as tensors:
            for name, stored in tensors.items():
                if name.endswith("in_proj.weight"):
                    tensors[name] = stored.roll(1, 1)
        other.assert_refused("expected keys and values of this release within")

    @pytest.mark.parametrize("change", ["none", "zeros", "absent", "wide"])
    def test_encoder_is_kept_if_the_release_has_one(self, copied: SmallRelease, change: str) -> None:
        """A release without voice cloning has zeros or no encoder tensors; wider latents do not fit into rows."""
        with edited(copied.folder / MODEL) as tensors:
            for name in [name for name in tensors if name.startswith(CLONING)]:
                if change == "zeros":
                    tensors[name].zero_()
                elif change == "absent":
                    del tensors[name]
        with edited(copied.folder / self.case.config) as record:
            record["mimi"] |= {"inner_dim": 24} if change == "wide" else {}
        clones = change == "none"
        assert vocabulary_of(copied).clones == clones
        codec = load_file(copied.checkpoint / "codec" / "model.safetensors")
        assert ("encoder.model.0.conv.weight" in codec) == clones
        assert ("voice_connector.weight" in copied.weights) == clones
        if change == "zeros":
            expected = r"messages\[0\]\.role: expected 'user' for task 'tts', which takes no"
            with pytest.raises(InvalidRequest, match=expected):
                copied.preprocessor.prepare(cloning("Hello."))
            assert len(copied.preprocessor.prepare(RawRequest(text="Hello.")).rows) > 21

    def test_release_with_encoder_converts_without_voices(self, copied: SmallRelease) -> None:
        remove_voices(copied.folder / "release")
        assert copied.preprocessor.prepare(cloning("Hello.")).rows[1:16, 1:].any()
        with pytest.raises(InvalidRequest, match="messages: expected a system turn with audio"):
            copied.preprocessor.prepare(RawRequest(text="Hello."))

    @pytest.mark.parametrize(
        ("name", "order"), [("german_24l", ("juergen", "aa", "alba")), ("english", ("alba", "aa", "juergen"))]
    )
    def test_default_voice_matches_the_language(self, copied: SmallRelease, name: str, order: tuple[str, ...]) -> None:
        folder = (copied.folder / "release").rename(copied.folder / name)
        jean = folder / "embeddings" / "jean.safetensors"
        for voice in ("aa", "juergen"):
            jean.with_stem(voice).write_bytes(jean.read_bytes())
        jean.unlink()
        release = replace(copied, arguments=["pocket-tts", "--model", str(folder)])
        assert release.family.voices == order

    def test_packaged_config_is_chosen_by_the_name_of_the_folder(self, copied: SmallRelease) -> None:
        """The random release is smaller than the published one, so the published config does not fit."""
        folder = (copied.folder / "release").rename(copied.folder / "english")
        (folder / "config.yaml").unlink()
        replace(copied, arguments=["pocket-tts", "--model", str(folder)]).assert_refused("expected 4000 tokens, got")

    def test_pieces_of_a_text_match_the_authors(self, releases: dict[str, SmallRelease]) -> None:
        """A request for a piece has the whole text; the prompt contains the number of pieces."""
        for kind, release in releases.items():
            num_voice_rows = len(vocabulary_of(release).voice("alba"))
            num_several = 0
            for text, pieces in zip(CUT_TEXTS, json.loads(reply(kind).pieces), strict=True):
                for piece, (tokens, tail) in enumerate(pieces):
                    prompt = release.preprocessor.prepare(RawRequest(**asked(text, piece=piece)))
                    assert prompt.rows[num_voice_rows:-1, 0].tolist() == tokens, (text, piece)
                    assert prompt.sampling.latents is not None
                    assert (prompt.sampling.latents.tail_rows, prompt.num_pieces) == (tail, len(pieces))
                num_several += len(pieces) > 1
            assert num_several >= 3

    @pytest.mark.parametrize(
        ("text", "tail_rows", "max_rows"), [("one two three four", 5, 109), ("one two three four five", 3, 130)]
    )
    def test_short_texts_have_a_longer_tail(
        self, release: SmallRelease, text: str, tail_rows: int, max_rows: int
    ) -> None:
        prompt = release.preprocessor.prepare(RawRequest(text=text))
        assert prompt.sampling.latents is not None
        assert prompt.sampling.latents.tail_rows == tail_rows
        assert prompt.sampling.audio.max_rows == max_rows
        shorter = release.preprocessor.prepare(RawRequest(**asked(text, audio={"max_rows": 9})))
        assert shorter.sampling.audio.max_rows == 9

    def test_recorded_voice_prompt_rows_hold_its_latents(self, release: SmallRelease) -> None:
        """The latents may be given instead."""
        vocabulary = vocabulary_of(release)
        expected = reply("english").voice
        rows = release.preprocessor.prepare(cloning("Hello.")).rows
        spoken = release.preprocessor.prepare(RawRequest(text="Hello.")).rows
        end = 1 + len(expected)
        assert rows[:end, 0].tolist() == [vocabulary.voice_begin] + [vocabulary.recorded] * len(expected)
        latents = latents_of(rows[1:end, 1:])
        assert np.abs(latents - expected).max() < 2e-5
        assert rows[end:].tolist() == spoken[len(vocabulary.voice("alba")) :].tolist()
        assert release.preprocessor.prepare(RawRequest(**voiced(latents.T))).rows.tolist() == rows.tolist()

    def test_head_without_time_embeddings_has_a_single_step(self, releases: dict[str, SmallRelease]) -> None:
        preprocessor = releases["english_18m"].preprocessor
        with pytest.raises(InvalidRequest, match=r"options\.latents\.steps: expected an integer in \[1, .*got 2"):
            preprocessor.prepare(RawRequest(**asked("a", latents={"steps": 2})))
        latents = preprocessor.prepare(RawRequest(**asked("a", latents={"steps": 1}))).sampling.latents
        assert latents is not None
        assert latents.steps == 1

    @pytest.mark.engine
    @pytest.mark.nightly
    @pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
    def test_two_ranks_match_the_authors_latents(self, release: SmallRelease, is_async: bool) -> None:
        """Both ranks have the same rows, and other requests and preemption change no bits.

        Ranks add up partial sums, so the bits are not those of one rank.
        """
        from tests.engine.forking import forked_processes
        from tests.engine.harness import Engine
        from tests.engine.test_tensor_parallel import RankCheck

        check = RankCheck()
        expected = {name: answer for name, answer in replies(release).items() if name != "cloned"}
        prompts = {name: answer.prompt for name, answer in expected.items()}
        with forked_processes():
            engine = Engine(release.checkpoint, **TIGHT, tensor_parallel_size=2, async_scheduling=is_async)
        with engine:
            alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
            together = engine.run(prompts, {"other1": 3}, after_step=check)
            assert {name: answer.rows for name, answer in together.items()} == alone
            assert any(answer.trailer.num_preemptions for answer in together.values() if answer.trailer)
            assert engine.free_blocks() == engine.num_free_blocks
        assert check.num_checks > 3
        own = expected["own"].rows
        assert callable(own)
        own(np.array(alone["own"], np.int64))


def write_both_layouts(folder: Path, size: str) -> list[str]:
    _, model, codec = write_pocket(folder / "release", has_encoder=size == "cloning")
    return ["pocket-tts", "--model", str(model), "--codec", str(codec)]


class TestTransformersLayout(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write_both_layouts,
        sizes=("cloning", "plain"),
        config="release/transformers/config.json",
        weights="release/transformers/model.safetensors",
        tokenizer="release/transformers/tokenizer.json",
        unneeded_tensors=("model.audio_prompt_proj.weight",),
        refused_configs=[
            ({"hidden_act": "gelu"}, "hidden_act: expected 'gelu_pytorch_tanh'"),
            ({"audio_bos_token_id": 3}, "expected the last ids, 200 to 203, got"),
            ({"flow_head_config.flow_type": "mean"}, "flow_type: expected lsd or drifting, got 'mean'"),
            ({"rope_parameters.rope_type": "yarn"}, "rope_parameters.rope_type: expected 'default', got 'yarn'"),
        ],
        refused_edits=[
            (
                "release/transformers/generation_config.json",
                lambda c: c.update(num_flow_steps=4),
                "generation_config.json: num_flow_steps: expected 1, got 4",
            ),
            (
                "release/transformers/generation_config.json",
                lambda c: c.update(eos_threshold="high"),
                "generation_config.json: eos_threshold: expected a number, got 'high'",
            ),
            (
                "release/codec/config.json",
                lambda c: c.update(model_type="mimi"),
                "expected 'pocket_tts_audio_tokenizer', got 'mimi'",
            ),
            (
                "release/codec/config.json",
                lambda c: c.update(latent_dim=9),
                "codec/config.json: latent_dim: expected 8, got 9",
            ),
            (
                "release/codec/config.json",
                lambda c: c.update(num_filters="4"),
                "num_filters: expected an integer in [1, 1048575]",
            ),
            (
                "release/codec/config.json",
                lambda c: c.update(upsampling_ratios=6),
                "expected a list of positive integers, got 6",
            ),
            (
                "release/codec/model.safetensors",
                lambda t: t.pop("latent_proj.weight"),
                "codec: tensors do not match: missing: latent",
            ),
            (
                "release/codec/model.safetensors",
                lambda t: t.update(more=torch.zeros(2)),
                "codec: tensors do not match: unknown",
            ),
        ],
    )

    @pytest.mark.parametrize("size", ["cloning", *by_night("plain")])
    def test_authors_layout_gives_the_same_checkpoint(
        self, releases: dict[str, SmallRelease], tmp_path: Path, size: str
    ) -> None:
        copy = releases[size].copied(tmp_path / "published")
        authors = replace(copy, arguments=["pocket-tts", "--model", str(copy.folder / "release" / "authors")])
        assert differing_files(authors.checkpoint, releases[size].checkpoint) == []


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("  good\nmorning ", RULES, "Good morning."),
        ("Wait!", RULES, "Wait!"),
        ("he said “yes”", RULES, "He said “yes”."),
        ("so, ", RULES, "So."),
        ("(perhaps -)", RULES, "(perhaps.)"),
        ("one; two", TextRules(drops_semicolons=True), "One, two."),
        ('"Hi?", she said', TextRules(replaced=(('"', ""),)), "Hi? she said."),
        ("salAm", TextRules(begins_with_capital=False, ends_with_mark=False), "salAm"),
        ("two words", TextRules(pads_short=True), " " * 8 + "Two words."),
        ("a text of five words", TextRules(pads_short=True), "A text of five words."),
    ],
)
def test_pocket_text_rules_are_applied(text: str, rules: TextRules, expected: str) -> None:
    assert finished(rewritten(text, rules), rules) == expected


def test_trailing_silence_is_replaced_by_a_pause() -> None:
    voice = np.full(2400, 0.5, np.float32)
    for quiet in (np.zeros(0, np.float32), np.full(5000, 0.005, np.float32)):
        faded = ended_on_pause(np.concatenate([voice, quiet]), 24_000)
        assert len(faded) == 2400 + 1920
        assert (faded[:1921] == 0.5).all()
        assert np.allclose(faded[1920:2400], 0.5 * np.linspace(1, 0, 480))
        assert not faded[2400:].any()
    assert len(ended_on_pause(np.concatenate([voice, voice / 50]), 24_000)) == 4800 + 1920, "34 dB below is a voice"
