"""VITA-Audio prompts against handwritten published layouts, and the alternation of words and codes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.releases.random_glm4_voice import write_glm4_tokenizer
from stretto.convert.command import main
from stretto.errors import InvalidRequest
from stretto.families.vita_audio.family import VitaVocabulary
from stretto.families.vita_audio.prompt import SYSTEM_TEXT, VitaTemplate, interleave, open_template
from stretto.family.plugin import family_at
from stretto.family.prompting import Piece
from stretto.family.text import TextTokenizer
from tests.encoders.recordings import HEARD, speech
from tests.vita_release import command, random_vita

IM_START, IM_END, BEGIN, END = "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>"
CONTEXT = "<|context_of_audio|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vita")
    assert main(command(random_vita.write_release(folder / "release"), folder / "checkpoint")) == 0
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def template(checkpoint: Path) -> VitaTemplate:
    return open_template(family_at(checkpoint), checkpoint, None, "cpu")


def ids(checkpoint: Path, *parts: str | list[int]) -> list[int]:
    """Return ids for markers by name, for other strings tokenised separately, and for lists as codes."""
    tokenizer, family = TextTokenizer.at(checkpoint), family_at(checkpoint)
    known = {token: token_id for token_id, token in tokenizer.tokens.items()}
    found = list[int]()
    for part in parts:
        if isinstance(part, list):
            found += [known[f"<|audio_{code}|>"] for code in part]
        else:
            found += [known[part]] if part.startswith("<|") else tokenizer.encode(part)
    assert max(found) < family.layout.vocab_size
    return found


def codes(*values: int) -> np.ndarray:
    return np.array([values])


def written(template: VitaTemplate, task: str, *pieces: Piece) -> list[int]:
    return template.write(template._family.task(task), pieces, None).rows[:, 0].tolist()


def test_vita_audio_task_prompts_match_the_published_ones(checkpoint: Path, template: VitaTemplate) -> None:
    head = (IM_START, "assistant", "\n")
    said, heard = Piece("user", "text", text="how are you?"), Piece("user", "audio", codes=codes(3, 1, 4))
    assert written(template, "tts", said) == ids(
        checkpoint, IM_START, "user", "\n", "Convert the text to speech.\nhow are you?", IM_END, "\n", *head
    )
    assert written(template, "chat", said) == ids(
        checkpoint, IM_START, "user", "\n", "how are you?", IM_END, "\n", *head
    )
    assert written(template, "asr", heard) == ids(
        checkpoint,
        *(IM_START, "user", "\n", "Convert the speech to text.\n", BEGIN, [3, 1, 4], END, IM_END, "\n"),
        *head,
    )
    luke = IM_START, "system", "\n", SYSTEM_TEXT, IM_END, "\n"
    assert written(template, "dialogue", heard) == ids(
        checkpoint, *luke, IM_START, "user", "\n", "\n", BEGIN, [3, 1, 4], END, IM_END, "\n", *head
    )
    assert written(template, "dialogue", heard, said) == ids(
        checkpoint, *luke, IM_START, "user", "\n", "how are you?\n", BEGIN, [3, 1, 4], END, IM_END, "\n", *head
    )


def test_voice_and_earlier_turns_precede_the_reply(checkpoint: Path, template: VitaTemplate) -> None:
    voice, text = Piece("system", "messages[0].codes", codes=codes(7, 7)), Piece("user", "messages[1].text", text="hi")
    assert written(template, "tts", voice, text)[: len(ids(checkpoint, IM_START, "system", "\n"))] == ids(
        checkpoint, IM_START, "system", "\n"
    )
    assert written(template, "tts", voice, text) == ids(
        checkpoint,
        *(IM_START, "system", "\n", "Your Voice: ", BEGIN, [7, 7], END, "\n", IM_END, "\n"),
        *(IM_START, "user", "\n", "Convert the text to speech.\nhi", IM_END, "\n", IM_START, "assistant", "\n"),
    )
    system = Piece("system", "messages[0].text", text="be terse.")
    reply = (
        Piece("assistant", "messages[2].text", text="a man"),
        Piece("assistant", "messages[2].codes", codes=codes(1)),
    )
    again = Piece("user", "messages[3].codes", codes=codes(2))
    assert written(template, "dialogue", system, text, *reply, again) == ids(
        checkpoint,
        *(IM_START, "system", "\n", "be terse.", IM_END, "\n", IM_START, "user", "\n", "hi", IM_END, "\n"),
        *(IM_START, "assistant", "\n", "a man", BEGIN, [1], END, IM_END, "\n"),
        *(IM_START, "user", "\n", "\n", BEGIN, [2], END, IM_END, "\n", IM_START, "assistant", "\n"),
    )


def test_encoded_audio_takes_one_prompt_row_per_encoder_row(tmp_path: Path) -> None:
    """The prompt has a voice and a question; an earlier reply stays as codes."""
    release = random_vita.write_release(tmp_path / "release", random_vita.PLUS)
    assert main(command(release, tmp_path / "plus")) == 0
    plus = open_template(family_at(tmp_path / "plus"), tmp_path / "plus", None, "cpu")
    voice, question = (Piece(role, f"{role}.audio", pcm=speech(s)) for role, s in (("system", 0.5), ("user", 1.0)))
    said = Piece("assistant", "assistant.text", text="fine"), Piece("assistant", "assistant.codes", codes=codes(1))
    prompt = plus.write(plus._family.task("dialogue"), (voice, question, *said, question), None)
    heard, rows = [CONTEXT] * (4 + 8), [CONTEXT] * (4 + 17)
    turn = (IM_START, "user", "\n", "\n", BEGIN, *rows, END, IM_END, "\n")
    assert prompt.rows[:, 0].tolist() == ids(
        tmp_path / "plus",
        *(IM_START, "system", "\n", "Your Voice: ", BEGIN, *heard, END, "\n", IM_END, "\n"),
        *turn,
        *(IM_START, "assistant", "\n", "fine", BEGIN, [1], END, IM_END, "\n"),
        *turn,
        *(IM_START, "assistant", "\n"),
    )
    context = family_at(tmp_path / "plus").markers["context_of_audio"]
    places = [place for each in prompt.audios for place in range(each.first_row, each.first_row + each.num_rows)]
    assert places == np.flatnonzero(prompt.rows[:, 0] == context).tolist()
    assert [len(each.features) for each in prompt.audios] == [8, 17, 17]
    assert np.array_equal(prompt.audios[1].features, prompt.audios[2].features)
    with pytest.raises(
        InvalidRequest, match=r"user\.codes: expected audio samples \(VITA-Audio-Plus does not accept codes"
    ):
        written(plus, "asr", Piece("user", "user.codes", codes=codes(1)))


def test_text_and_codes_are_interleaved_as_in_training() -> None:
    words, sounds, ratio = list(range(9)), list(range(100, 130)), (1, 4, 3, 8, 4, 10)
    assert interleave(words, sounds, ratio, (-1, -2)) == [
        *(0, -1, 100, 101, -2),
        *(1, 2, 3, -1, *range(102, 108), -2),
        *(4, 5, 6, 7, -1, *range(108, 116), -2),
        *(8, -1, *range(116, 130), -2),
    ]
    assert interleave(words, [100], ratio, (-1, -2)) == [*words, -1, 100, -2]
    assert interleave(words, [], ratio, (-1, -2)) == words
    assert interleave([], sounds, ratio, (-1, -2)) == [-1, *sounds, -2]


def test_invalid_prompt_pieces_are_refused_by_field_name(template: VitaTemplate) -> None:
    with pytest.raises(InvalidRequest, match="text: expected at most 8000 characters, got 8001 characters"):
        written(template, "tts", Piece("user", "text", text="a" * 8001))
    with pytest.raises(InvalidRequest, match="codes: expected 1 streams, got 2 streams"):
        written(template, "asr", Piece("user", "codes", codes=np.zeros((2, 3), int)))
    with pytest.raises(InvalidRequest, match="the checkpoint has no ssl_tokenizer/"):
        written(template, "asr", Piece("user", "audio", pcm=np.zeros(16000, np.float32)))


def test_prompts_tokenize_audio_with_the_checkpoint_tokenizer(tmp_path: Path) -> None:
    release, tokenizer = random_vita.write_release(tmp_path / "release"), write_glm4_tokenizer(tmp_path / "tokenizer")
    words = [*command(release, tmp_path / "out"), "--ssl-tokenizer", str(tokenizer)]
    assert main(words) == 0
    template = open_template(family_at(tmp_path / "out"), tmp_path / "out", None, "cpu")
    heard, pcm = json.loads(HEARD.read_text())["1.0"], speech(1.0)
    asked, spoken = Piece("user", "codes", codes=codes(*heard)), Piece("user", "audio", pcm=pcm)
    for task in ("asr", "dialogue"):
        assert written(template, task, spoken) == written(template, task, asked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 1000}, "first_audio + codebook_size must be at most vocab_size, got "),
        ({"markers": {}}, "markers: missing "),
        ({"ratio": (1,)}, "ratio: expected pairs of M >= 1 and m >= 3, got (1,)"),
        ({"ratio": (1, 2)}, "ratio: expected pairs of M >= 1 and m >= 3, got (1, 2)"),
        ({"schedule": "boost", "num_modules": 1}, "schedule: 'boost' requires more than 1 modules"),
        ({"schedule": "fast"}, "schedule: 'fast' requires more than 10 modules"),
    ],
)
def test_vocabulary_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VitaVocabulary(**changed)
