"""Prompts of Kyutai TTS: words and breaks, whole or in parts, and the delayed codes of a recording."""

import json
from pathlib import Path

import numpy as np
import pytest

from plugins.kyutai.tests.kyutai_tts.test_kyutai_tts_convert import write_wav
from plugins.kyutai.tests.kyutai_tts_release import make_checkpoint, vocabulary
from stretto.errors import InvalidRequest
from stretto.family.plugin import family_at
from stretto.family.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt, SourceWord
from stretto_kyutai.kyutai_tts.family import END_OF_WORDS
from stretto_kyutai.kyutai_tts.mechanism.script import unpack_words
from stretto_kyutai.kyutai_tts.words import WordStream, open_text_codec

PCM = (np.sin(np.arange(24_001) ** 1.3 / 300) / 2).astype(np.float32)
TEXTS = (
    "the garden door is open who said that",
    'come in <break time="0.8s"/> sit down<break time="12.s" />by   the fire:my (friend) ',
    "a < b <bre <break> it is",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kyutai_tts")
    write_wav(folder / "release" / "voices" / "alba.wav") if (folder / "release").mkdir() is None else None
    return make_checkpoint(folder, num_layers=1, depformer_num_layers=1)


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def stream(checkpoint: Path) -> WordStream:
    return WordStream(sentencepiece_at(checkpoint / "tokenizer.model"))


def cloned(text: str) -> RawRequest:
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": text}]
    return RawRequest(messages=json.dumps(turns), pcm_in=PCM, sample_rate=24_000)


def test_words_and_breaks_match_published_code(checkpoint: Path) -> None:
    """Punctuation is changed as by `script_to_entries`; a word is padded by as many rows as it has tokens."""
    tokenizer = sentencepiece_at(checkpoint / "tokenizer.model")
    ids, _ = stream(checkpoint).after(TEXTS[1], is_last=True)
    words = ["come", "in", 10, "sit", "down", 150, "by", "the", "fire", "my", "friend"]
    expected = [([], word) if isinstance(word, int) else (tokenizer.encode(word),) * 2 for word in words]
    found = list(unpack_words(ids))
    assert found == [(tokens, pad if isinstance(pad, int) else len(pad)) for tokens, pad in expected]


@pytest.mark.parametrize("text", TEXTS[:2])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_text_in_parts_yields_same_words(checkpoint: Path, text: str, size: int) -> None:
    words, ids = stream(checkpoint), list[int]()
    for at in range(0, len(text), size):
        more, words = words.after(text[at : at + size], is_last=False)
        ids += more
    more, _ = words.after("", is_last=True)
    assert [*ids, *more] == stream(checkpoint).after(text, is_last=True)[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_words_have_their_places_in_the_text(checkpoint: Path, size: int) -> None:
    text = ' (come)  in:it is<break time="1s"/>: (open '
    words, found = stream(checkpoint), list[SourceWord]()
    for at in range(0, len(text), size):
        _, words = words.after(text[at : at + size], is_last=False)
        found += words.sources
    _, words = words.after("", is_last=True)
    found += words.sources
    assert [each.word for each in found] == ["(come)", "in", "it", "is", "(open"]
    assert [text[each.start : each.end] for each in found] == [each.word for each in found]


def test_prompt_has_the_words_of_the_text(preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(text="(come)  in", options='{"voice": "alba"}'))
    assert prompt.words == ("(come)", "in")
    assert prompt.sources == (SourceWord("(come)", 0, 6), SourceWord("in", 8, 10))
    assert Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).sources == prompt.sources


def check_voice(prompt: Prompt, checkpoint: Path, codes: np.ndarray) -> None:
    """Assert that the prompt has the codes [K, n] of a recording behind the delays, and the initial ids before."""
    known, num_frames = vocabulary(checkpoint), codes.shape[1]
    assert prompt.delayed_tail is not None
    assert (prompt.rows.shape, prompt.num_reference_rows) == ((1 + num_frames, 10), num_frames)
    assert prompt.rows[:, 0].tolist() == [known.initial_text, *[known.nothing] * num_frames]
    rows = np.concatenate([prompt.rows[:, 1:], prompt.delayed_tail])
    for k, first in enumerate(known.first_codes):
        begin = 1 + known.delay_rows + known.delays[k]
        assert (rows[: 1 + known.delays[k], k] == first + 64).all()
        assert (rows[1 + known.delays[k] : begin, k] == known.nothing).all()
        assert (rows[begin : begin + num_frames, k] == first + codes[k]).all()
    assert (rows[:, -1] == known.nothing).all()


def test_recording_codes_follow_the_delay_rows(preprocessor: Preprocessor, checkpoint: Path) -> None:
    codes = preprocessor.codec.encode(np.pad(PCM, (0, -len(PCM) % 1920)))
    prompt = preprocessor.prepare(cloned(TEXTS[0]))
    check_voice(prompt, checkpoint, codes[:, :-2])
    assert prompt.track == (*stream(checkpoint).after(TEXTS[0], is_last=True)[0], END_OF_WORDS)


def test_named_voice_prompt_contains_codes_of_its_recording(preprocessor: Preprocessor, checkpoint: Path) -> None:
    codes = preprocessor.codec.encode(np.zeros(19 * 1920, np.float32))
    prompt = preprocessor.prepare(RawRequest(text="it is", options='{"voice": "Alba"}'))
    check_voice(prompt, checkpoint, codes[:, :-2])
    assert preprocessor.prepare(RawRequest(text="it is")).rows.tolist() == prompt.rows.tolist()


def test_open_text_prompt_has_no_words(preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(text="it", options='{"text_mode": "open"}'))
    assert (prompt.track, prompt.opening, prompt.is_open) == ((), "it", True)


def test_model_without_named_voices_requires_voice_recording(tmp_path: Path) -> None:
    template = Preprocessor(make_checkpoint(tmp_path, num_layers=1, depformer_num_layers=1))
    with pytest.raises(InvalidRequest, match=r"messages: expected a system turn with audio \(this model has no named"):
        template.prepare(RawRequest(text="it is"))
    template.prepare(cloned("it is"))


def test_word_spelling_is_decoded_from_tokens(checkpoint: Path) -> None:
    codec = open_text_codec(family_at(checkpoint), checkpoint)
    tokens, _ = next(unpack_words(stream(checkpoint).after("garden", is_last=True)[0]))
    assert codec.spelled("tts", [1, *tokens]) == "garden"
