"""Fish Audio S2 prompts: rows equal those of the whole prompt's parts, tokenised with special tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from plugins.fish_s2.lab.random_fish_s2 import IDS, KINDS
from plugins.fish_s2.tests.fish_s2_release import absolute, convert_release
from plugins.moss.tests.moss_tts.test_prompt import heard
from stretto.codecs.base import Codec, load_codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.prompting import Piece, Template
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto_fish_s2.prompt import open_template

NUM_CODEBOOKS, NUM_CODES, *_ = KINDS["small"]
SYSTEM = "<|im_start|>system\n"
END = "<|im_end|>\n"
VOICE = "convert the provided text to speech reference to the following:\n\nText:\n"
REPLY = "<|im_start|>assistant\n<|voice|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> Codec:
    return load_codec("fish_s2", checkpoint)


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return family_at(checkpoint)


@pytest.fixture(scope="module")
def template(checkpoint: Path, family: Family, codec: Codec) -> Template:
    return open_template(family, checkpoint, codec, "cpu")


def codes(number: int) -> np.ndarray:
    """Return codes of a recording, int64 [K, T]."""
    return np.random.default_rng(number).integers(0, NUM_CODES, (NUM_CODEBOOKS, 3 + number))


def expected_rows(checkpoint: Path, family: Family, *parts: str | np.ndarray) -> np.ndarray:
    """Return the rows of parts, which are texts with special tokens, or codes."""
    tokenizer, rows = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), list[list[int]]()
    for part in parts:
        if isinstance(part, str):
            ids = tokenizer.encode(part, add_special_tokens=False).ids
            rows += [[token, *[0] * NUM_CODEBOOKS] for token in ids]
        else:
            rows += [[IDS["<|semantic:0|>"] + frame[0], *frame] for frame in part.T.tolist()]
    return absolute(np.array(rows), family)


def written(template: Template, family: Family, *pieces: Piece) -> np.ndarray:
    return template.write(family.tasks[0], pieces, None).rows


SAID = Piece("user", "text", "The garden door is open.")


def test_text_alone(checkpoint: Path, template: Template, family: Family) -> None:
    parts = [SYSTEM, "convert the provided text to speech", END, "<|im_start|>user\n", str(SAID.text), END, REPLY]
    expected = expected_rows(checkpoint, family, *parts)
    rows = written(template, family, SAID)
    assert rows.dtype == np.int32
    assert (rows == expected).all()


@pytest.mark.parametrize(
    ("words", "tagged"),
    [
        ("Hello.", "<|speaker:0|>Hello."),
        ("<|speaker:0|>Hello.\n<|speaker:1|>Hi.", "<|speaker:0|>Hello.\n<|speaker:1|>Hi."),
    ],
    ids=["one voice", "two voices"],
)
def test_voice_and_earlier_turns(checkpoint: Path, template: Template, family: Family, words: str, tagged: str) -> None:
    voice = Piece("system", "messages[0].codes", codes=codes(1)), Piece("system", "messages[0].text", words)
    earlier = Piece("user", "messages[1].text", "Before."), Piece("assistant", "messages[2].codes", codes=codes(2))
    parts = [SYSTEM, VOICE, tagged, "\n\nSpeech:\n", codes(1), END]
    parts += ["<|im_start|>user\n", "Before.", END, REPLY, codes(2), END]
    expected = expected_rows(checkpoint, family, *parts, "<|im_start|>user\n", str(SAID.text), END, REPLY)
    assert (written(template, family, *voice, *earlier, SAID) == expected).all()


def test_each_speaker_gets_a_line(checkpoint: Path, template: Template, family: Family) -> None:
    text = "  <|speaker:0|> Hello there. <|speaker:12|>Hi! \n\n<|speaker:0|>Bye.\n"
    lines = "<|speaker:0|> Hello there.\n<|speaker:12|>Hi!\n<|speaker:0|>Bye."
    expected = expected_rows(checkpoint, family, "<|im_start|>user\n", lines, END, REPLY)
    assert (written(template, family, Piece("user", "text", text))[-len(expected) :] == expected).all()


def test_recording_is_encoded(template: Template, family: Family, codec: Codec) -> None:
    pcm = np.random.default_rng(3).standard_normal(codec.spec.samples_per_frame * 3 + 5).astype(np.float32) * 0.1
    voice = Piece("system", "audio", pcm=pcm), Piece("system", "words", "Hello.")
    rows, first = written(template, family, *voice, SAID), np.array([ids.start for ids in family.layout.audio])
    frames = rows[np.isin(rows[:, 0], family.layout.audio[0])] - first
    assert frames.shape == (4, NUM_CODEBOOKS), "the last frame is completed with silence"
    assert (codec.encode(pcm) == frames.T).all()


VOICE_PIECES = Piece("system", "audio", codes=codes(0)), Piece("system", "words", "Hello.")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([Piece("user", "text", "")], "text: expected text with at least one non-space character, got ''"),
        ([Piece("user", "text", "a" * 4001)], "text: expected at most 4000 characters, got 4001"),
        ([Piece("user", "text", "Oh, <|speaker:0|>Hi")], "no words before the first tag <|speaker:N|>, got 'Oh,'"),
        ([Piece("user", "text", "<|Speaker:0|>Hi")], "text: expected speakers as <|speaker:N|>"),
        ([Piece("user", "text", "<speaker 0>Hi")], "where N is a number, got '<speaker 0>'"),
        ([*VOICE_PIECES[:1], SAID], "audio: expected the audio of a voice together with its words, got audio only"),
        ([*VOICE_PIECES[1:], SAID], "words: expected the audio of a voice together with its words, got text only"),
        ([Piece("system", "codes", codes=codes(0)[1:]), VOICE_PIECES[1], SAID], "codes: expected 5 streams, got 4"),
        ([Piece("system", "codes", codes=codes(0) + 64), VOICE_PIECES[1], SAID], "codes[0]: expected codes in [0, 64)"),
        ([Piece("user", "first", "a"), SAID], "first: expected an assistant turn with the speech of the text before"),
        ([Piece("user", "first", codes=codes(0)), SAID], "first: expected user turns with text, each followed by"),
        ([SAID, Piece("assistant", "said", "a"), SAID], "said: expected user turns with text, each followed by"),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:30],
)
def test_invalid_pieces_are_refused(template: Template, family: Family, pieces: list[Piece], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        written(template, family, *pieces)
    assert message.replace("first: expected an", "text: expected an") in str(refusal.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (heard(np.zeros(61 * 44_100, np.float32)), "pcm_in: expected at most 60 s"),
        ({"text": "a", "options": '{"language": "english"}'}, "options.language: expected no value"),
        ({"text": "a", "options": '{"instruct": "slowly"}'}, "options.instruct: expected no value"),
        ({"text": "a", "options": '{"text_mode": "open"}'}, "options.text_mode: expected no value"),
        ({"text": "a", "options": '{"guidance": {"scale": 2}}'}, "options.guidance"),
    ],
)
def test_invalid_input_error_names_its_field(inputs: dict[str, Any], message: str, checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Preprocessor(checkpoint).prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)


def test_special_tokens_in_a_text_are_characters(checkpoint: Path) -> None:
    prompt: Prompt = Preprocessor(checkpoint).prepare(RawRequest(text="a <|voice|> <|semantic:3|> b"))
    ids = prompt.rows[:, 0].tolist()
    assert ids.count(IDS["<|voice|>"]) == 1, "only before the reply"
    assert IDS["<|semantic:0|>"] + 3 not in ids
