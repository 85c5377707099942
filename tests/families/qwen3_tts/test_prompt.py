"""Prompts of Qwen3-TTS are those that its authors' package gives its talker; what it cannot say is refused by name."""

import json

import numpy as np
import pytest
from transformers import Qwen2Tokenizer

from stretto.errors import InvalidRequest
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from tests.fakes import FrameCounter
from tests.published_qwen3_tts import CASES, Checkpoint, fixture

LONG, STRANGE = "x" * 4001, "klingon"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return {kind: Checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in CASES}


def prepare(checkpoint: Checkpoint, text: str = "hello world", **options: object) -> Prompt:
    preprocessor = Preprocessor(checkpoint.folder, FrameCounter(1920, 4, 32))
    return preprocessor.prepare(RawRequest(text=text, options=json.dumps(options)))


def test_the_rows_of_every_case_are_the_authors(checkpoints: dict[str, Checkpoint]) -> None:
    """Languages, a dialect, speakers, instructions, words before the frames and beside them: to 1e-5 in float32."""
    largest = 0.0
    for kind, checkpoint in checkpoints.items():
        for name, (prompt, case) in checkpoint.cases().items():
            rows = checkpoint.embedded(prompt.rows)
            assert rows.shape == case.prompt.shape, (kind, name)
            largest = max(largest, float(np.abs(rows - case.prompt).max()))
            assert len(prompt.track) == (len(fixture()["words"]) if name.endswith("streaming") else 0)
    assert largest <= 1e-5


def test_a_request_says_voice_language_and_how_to_speak(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["custom_voice"]
    plain = prepare(checkpoint)
    assert np.array_equal(plain.rows, prepare(checkpoint, voice="Ryan", language="Auto", text_mode="whole").rows)
    known, text = checkpoint.vocabulary, checkpoint.vocabulary.text
    words = TextTokenizer.at(checkpoint.folder).encode("hello world")
    asked = prepare(checkpoint, voice="ERIC", language="English", instruct="tell", text_mode="streaming")
    assert asked.rows[0].tolist()[:1] == [text.im_start]
    assert known.num_text_ids + known.speakers["eric"] in asked.rows[:, 0]
    assert known.num_text_ids + known.languages["english"] in asked.rows[:, 0]
    assert asked.rows[-1, -1] == words[0]
    assert asked.track == (*words[1:], text.eos)
    designed = prepare(checkpoints["voice_design"], instruct="a low voice")
    assert len(designed.rows) > len(plain.rows)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("custom_voice", {"voice": "Nobody"}, "options.voice: expected one of ryan, eric, got 'Nobody'"),
        ("custom_voice", {"language": STRANGE}, "options.language: expected one of auto, chinese, english, got"),
        ("custom_voice", {"language": "sichuan_dialect"}, "options.language: expected one of auto, chinese, english"),
        ("custom_voice", {"language": 3}, "options.language: expected one of auto"),
        ("custom_voice", {"instruct": 7}, "options.instruct: expected text"),
        ("custom_voice", {"instruct": LONG}, "options.instruct: expected at most 4000 characters, got 4001"),
        ("custom_voice", {"text_mode": "slow"}, "options.text_mode: expected one of whole, streaming"),
        ("voice_design", {"voice": "ryan"}, "options.voice: expected none: this model has no voices by name"),
    ],
)
def test_what_it_cannot_say_is_refused_by_name(
    checkpoints: dict[str, Checkpoint], kind: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prepare(checkpoints[kind], **options)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("text", ["", LONG])
def test_words_there_must_be_and_not_too_many(checkpoints: dict[str, Checkpoint], text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^text: "):
        prepare(checkpoints["custom_voice"], text)


def test_text_is_split_as_qwen_2_was_trained(checkpoints: dict[str, Checkpoint]) -> None:
    """As transformers' own class does: a merge over a change of case holds, names of special tokens are text."""
    folder = checkpoints["custom_voice"].folder
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    theirs = Qwen2Tokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)
    ours = TextTokenizer.at(folder)
    for text in ("aBaB hello  world\n\n", "d'État cafe\u0301 कि 123", "x  \n y\tz", "Ünïcode, «quotes» — 7½"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.tokens[ours.encode("aB")[0]] == "aB"
    assert len(ours.encode("<|im_start|>")) > 1
