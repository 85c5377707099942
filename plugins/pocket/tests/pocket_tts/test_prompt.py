"""Pocket TTS prompts: text prepared as by the authors, rows of a voice, lengths and tails."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from plugins.pocket.lab.pocket_tts_replies import CUT_TEXTS
from plugins.pocket.tests.pocket_release import KINDS, cloning, convert_release, reply
from stretto.errors import InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.streams.layout import latents_of
from stretto_pocket.pocket_tts.family import PocketVocabulary, TextRules
from stretto_pocket.pocket_tts.prompt import ended_on_pause, finished, rewritten

RULES = TextRules()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("pocket"), "english")


@pytest.mark.parametrize("kind", KINDS)
def test_text_preparation_matches_the_authors(tmp_path: Path, kind: str) -> None:
    """Distilled models have a SentencePiece tokenizer."""
    checkpoint, expected = convert_release(tmp_path, kind), reply(kind)
    assert (checkpoint / "tokenizer.model").exists() == (kind != "english")
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    assert finished(rewritten(expected.text, known.text), known.text) == expected.prepared
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text=expected.text))
    assert prompt.rows[len(known.voice("alba")) : -1, 0].tolist() == expected.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_text_match_the_authors(tmp_path: Path, kind: str) -> None:
    """A request for a piece has the whole text. The prompt says how many pieces there are."""
    checkpoint = convert_release(tmp_path, kind)
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    preprocessor, num_several = Preprocessor(checkpoint), 0
    for text, pieces in zip(CUT_TEXTS, json.loads(reply(kind).pieces), strict=True):
        for piece, (tokens, tail) in enumerate(pieces):
            prompt = preprocessor.prepare(RawRequest(text=text, options=json.dumps({"piece": piece})))
            assert prompt.rows[len(known.voice("alba")) : -1, 0].tolist() == tokens, (text, piece)
            assert prompt.sampling.latents is not None
            assert (prompt.sampling.latents.tail_rows, prompt.num_pieces) == (tail, len(pieces))
        num_several += len(pieces) > 1
    assert num_several >= 3


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


@pytest.mark.parametrize(
    ("text", "tail_rows", "max_rows"), [("one two three four", 5, 109), ("one two three four five", 3, 130)]
)
def test_short_texts_have_a_longer_tail(checkpoint: Path, text: str, tail_rows: int, max_rows: int) -> None:
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text=text))
    assert prompt.sampling.latents is not None
    assert prompt.sampling.latents.tail_rows == tail_rows
    assert prompt.sampling.audio.max_rows == max_rows
    shorter = Preprocessor(checkpoint).prepare(RawRequest(text=text, options=json.dumps({"audio": {"max_rows": 9}})))
    assert shorter.sampling.audio.max_rows == 9


def test_preset_voice_prompt_has_its_rows(checkpoint: Path) -> None:
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    template = Preprocessor(checkpoint)
    for voice, number in (("alba", 21), ("jean", 9)):
        rows = template.prepare(RawRequest(text="Hello.", options=json.dumps({"voice": voice}))).rows
        assert rows[:number, 0].tolist() == list(known.voice(voice))
        assert rows[-1, 0] == known.bos
        assert not rows[:, 1:].any()
        assert (rows[number:-1, 0] < known.num_text_ids).all()


def test_recorded_voice_prompt_rows_hold_its_latents(checkpoint: Path) -> None:
    known, expected = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), reply("english").voice
    rows = Preprocessor(checkpoint).prepare(cloning("Hello.")).rows
    spoken = Preprocessor(checkpoint).prepare(RawRequest(text="Hello.")).rows
    end = 1 + len(expected)
    assert rows[:end, 0].tolist() == [known.voice_begin] + [known.recorded] * len(expected)
    assert np.abs(latents_of(rows[1:end, 1:]) - expected).max() < 2e-5
    assert rows[end:].tolist() == spoken[len(known.voice("alba")) :].tolist()


def test_trailing_silence_is_replaced_by_a_pause() -> None:
    voice = np.full(2400, 0.5, np.float32)
    for quiet in (np.zeros(0, np.float32), np.full(5000, 0.005, np.float32)):
        found = ended_on_pause(np.concatenate([voice, quiet]), 24_000)
        assert len(found) == 2400 + 1920
        assert (found[:1921] == 0.5).all()
        assert np.allclose(found[1920:2400], 0.5 * np.linspace(1, 0, 480))
        assert not found[2400:].any()
    assert len(ended_on_pause(np.concatenate([voice, voice / 50]), 24_000)) == 4800 + 1920, "34 dB below is a voice"


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.resize([0.5, -0.5], 9599).astype(np.float32), r"expected at least 0\.4 s, got 0\.4000 s"),
        (np.zeros(24_000, np.float32), "expected a recording of a voice, got silence"),
        (np.ones(31 * 24_000, np.float32), "expected at most 30 s"),
    ],
)
def test_invalid_voice_recordings_are_refused(checkpoint: Path, pcm: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"pcm_in|messages.*: {message}"):
        Preprocessor(checkpoint).prepare(cloning("Hello.", pcm))


def test_latent_model_refuses_codes_as_a_voice(checkpoint: Path) -> None:
    turns = '[{"role": "system", "codes": [[1], [2]]}, {"role": "user", "text": "b"}]'
    expected = r"messages\[0\]\.codes: expected audio or latents \(frames of this model are latents\), got codes"
    with pytest.raises(InvalidRequest, match=expected):
        Preprocessor(checkpoint).prepare(RawRequest(messages=turns))


def given(latents: np.ndarray) -> RawRequest:
    """Return a request in the voice of a recording that is given as latents [D, T]."""
    data = base64.b64encode(latents.astype("<f4").tobytes()).decode()
    turns = [{"role": "system", "latents": data}, {"role": "user", "text": "Hello."}]
    return RawRequest(messages=json.dumps(turns))


def test_latents_are_accepted_as_a_voice(checkpoint: Path) -> None:
    preprocessor = Preprocessor(checkpoint)
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    expected = preprocessor.prepare(cloning("Hello.")).rows
    latents = latents_of(expected[expected[:, 0] == known.recorded, 1:]).T
    assert preprocessor.prepare(given(latents)).rows.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((9, 10)), r"base64 of float32 \[8, T\], got 90 elements"),
        (np.full((8, 10), np.nan), "finite numbers of magnitude 10000 at most"),
        (np.full((8, 10), -np.inf), "finite numbers of magnitude 10000 at most"),
        (np.full((8, 10), 10001.0), "finite numbers of magnitude 10000 at most"),
        (np.zeros((8, 376)), r"at most 30 s, got 30\.08 s"),
        (np.zeros((8, 4)), r"at least 0\.4 s, got 0\.32 s"),
    ],
)
def test_invalid_voice_latents_are_refused(checkpoint: Path, latents: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.latents: expected " + message):
        Preprocessor(checkpoint).prepare(given(latents))


def test_release_without_encoder_refuses_recordings(tmp_path: Path) -> None:
    preprocessor = Preprocessor(convert_release(tmp_path, "english", clones=False))
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role: expected 'user' for task 'tts', which takes no"):
        preprocessor.prepare(cloning("Hello."))
    assert len(preprocessor.prepare(RawRequest(text="Hello.")).rows) > 21


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RawRequest(text="…"), "text: expected text with a letter or a digit, got '…'"),
        (RawRequest(text="a" * 4001), "text: expected at most 4000 characters, got 4001 characters"),
        (RawRequest(text="a word " * 200), "text: expected at most 300 tokens without a comma or full stop, got "),
        (RawRequest(text="It is. " * 40), r"text: expected at most 50 tokens, or options\.piece, got a text of"),
        (RawRequest(text="It is.", options='{"piece": 1}'), r"options\.piece: expected an integer in \[0, 0\], got 1"),
        (RawRequest(text="a", options='{"voice": "nobody"}'), r"options\.voice: expected one of alba, jean"),
    ],
)
def test_unspeakable_input_is_refused(checkpoint: Path, request_: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Preprocessor(checkpoint).prepare(request_)


@pytest.mark.parametrize(("kind", "most"), [("english", 32), ("english_18m", 1)])
def test_latent_steps_are_limited_by_the_head(tmp_path: Path, kind: str, most: int) -> None:
    """A head without time embeddings has a single step."""
    preprocessor = Preprocessor(convert_release(tmp_path, kind))
    for number in (0, most + 1):
        expected = rf"options\.latents\.steps: expected an integer in \[1, .*got {number}"
        with pytest.raises(InvalidRequest, match=expected):
            preprocessor.prepare(RawRequest(text="a", options=json.dumps({"latents": {"steps": number}})))
    prompt = preprocessor.prepare(RawRequest(text="a", options=json.dumps({"latents": {"steps": most}})))
    assert prompt.sampling.latents is not None
    assert prompt.sampling.latents.steps == most
