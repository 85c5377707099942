"""Bagpiper's prompts by row: bos 1, eos 2, eot 3, system 4, user 5, assistant 6, text 7, audio 8; text from 256."""

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.families.bagpiper.family import bagpiper
from stretto.families.bagpiper.prompt import SYSTEM_TEXT, BagpiperTemplate
from stretto.family.audio_format import check_audios
from stretto.family.log_mel import MelFormat, log_mel
from stretto.family.prompting import Piece, PromptRows
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import Prompt
from tests.small_vocabularies import SMALL_BAGPIPER


class Exclaiming(TextTokenizer):
    """Tokenizer with one token per letter, in which "!" is 0, as in Qwen's vocabulary."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return ["!abcdefghijklmnopqrstuvwxyz ".index(letter) for letter in text.lower().rstrip(".")]


FAMILY = bagpiper(SMALL_BAGPIPER)
FORMAT = MelFormat(80)
TEMPLATE = BagpiperTemplate(FAMILY, Subwords(Exclaiming(), FAMILY), FORMAT)
USUAL = [256 + token_id for token_id in Exclaiming().encode(SYSTEM_TEXT)]


def write(task: str, *pieces: Piece) -> PromptRows:
    return TEMPLATE.write(FAMILY.task(task), pieces, None)


def stream0(prompt: PromptRows) -> list[int]:
    """Return the ids of stream 0; check that all other streams carry pads."""
    assert prompt.rows.dtype == np.int32
    assert prompt.rows.shape[1] == 8
    assert not prompt.rows[:, 1:].any()
    return prompt.rows[:, 0].tolist()


def heard(num_samples: int) -> Piece:
    return Piece("user", "audio", pcm=np.zeros(num_samples, np.float32))


def test_tts_has_no_system_turn_and_begins_with_text() -> None:
    assert stream0(write("tts", Piece("user", "text", text="abc"))) == [1, 5, 7, 257, 258, 259, 2, 6, 7]


def test_lone_exclamation_mark_becomes_pad_as_in_training() -> None:
    """ESPnet's `SpeechLMPreprocessor` computes where(ids == pad, pad, ids + 256) on Qwen's token ids."""
    said = Piece("user", "", text="!a!!"), Piece("assistant", "", text="!"), Piece("user", "", text="b!")
    prompt = write("chat", Piece("system", "", text="z"), *said)
    assert stream0(prompt) == [1, 4, 7, 282, 2, 5, 7, 0, 257, 0, 0, 2, 6, 7, 0, 2, 5, 7, 258, 0, 2, 6, 7]


def test_speak_task_begins_with_audio() -> None:
    assert stream0(write("speak", Piece("user", "text", text="a"))) == [1, 5, 7, 257, 2, 6, 8]


@pytest.mark.parametrize("task", ["chat", "generate"])
def test_default_system_text_is_used_if_none_is_given(task: str) -> None:
    assert stream0(write(task, Piece("user", "text", text="a"))) == [1, 4, 7, *USUAL, 2, 5, 7, 257, 2, 6, 7]
    given = write(task, Piece("system", "", text="z"), Piece("user", "", text="a"))
    assert stream0(given) == [1, 4, 7, 282, 2, 5, 7, 257, 2, 6, 7]


def test_role_pieces_end_with_eot_except_the_last() -> None:
    prompt = write("understand", Piece("system", "", text="z"), heard(160 * 20), Piece("user", "text", text="ab"))
    assert stream0(prompt) == [1, 4, 7, 282, 2, 5, 8, 0, 0, 0, 3, 5, 7, 257, 258, 2, 6, 7]
    (audio,) = prompt.audios
    assert (audio.first_row, audio.num_rows, audio.features.shape) == (7, 3, (20, 80))


def test_audio_of_several_turns_is_placed_in_each_turn() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(size).astype(np.float32) for size in (160 * 100, 160 * 205))
    said = (Piece("user", "audio", pcm=first), Piece("assistant", "", text="b"), Piece("user", "pcm_in", pcm=second))
    prompt = write("understand", Piece("system", "", text="z"), *said)
    assert [(audio.first_row, audio.num_rows) for audio in prompt.audios] == [(7, 13), (27, 27)]
    assert np.array_equal(prompt.audios[1].features, log_mel(second, FORMAT))
    task = FAMILY.task("understand")
    check_audios(Prompt(task.name, prompt.rows, task.sampling, audios=prompt.audios), FORMAT)


def test_a_checkpoint_without_an_encoder_refuses_audio() -> None:
    deaf = BagpiperTemplate(FAMILY, Subwords(Exclaiming(), FAMILY), None)
    with pytest.raises(InvalidRequest, match=r"pcm_in: expected no audio \(this checkpoint has no audio encoder\)"):
        deaf.write(FAMILY.task("understand"), (Piece("user", "pcm_in", pcm=np.zeros(960, np.float32)),), None)


def test_audio_shorter_than_half_a_window_is_refused() -> None:
    """Both ends are padded by reflecting half a window, and the authors' features fail on shorter audio."""
    (audio,) = write("understand", heard(201)).audios
    assert audio.features.shape == (1, 80)
    with pytest.raises(InvalidRequest, match=r"^audio: expected audio of at least 201 samples .*, got 200 samples"):
        write("understand", heard(200))


def test_chat_prompt_contains_every_turn() -> None:
    prompt = write(
        "chat",
        Piece("system", "", text="z"),
        Piece("user", "", text="a"),
        Piece("assistant", "", text="b"),
        Piece("user", "", text="c"),
    )
    assert stream0(prompt) == [1, 4, 7, 282, 2, 5, 7, 257, 2, 6, 7, 258, 2, 5, 7, 259, 2, 6, 7]


def test_assistant_audio_is_delayed_codes_padded_per_codebook() -> None:
    codes = np.arange(16).reshape(8, 2)
    system, last = Piece("system", "", text="z"), Piece("user", "", text="c")
    said = (Piece("user", "", text="a"), Piece("assistant", "", text="b"), Piece("assistant", "", codes=codes))
    rows = write("chat", system, *said, last).rows
    assert rows[:14, 0].tolist() == [1, 4, 7, 282, 2, 5, 7, 257, 2, 6, 7, 258, 3, 6]
    assert rows[14].tolist() == [8, 0, 0, 0, 0, 0, 0, 0]
    pads = [556 + 17 * stream for stream in range(8)]
    speech = rows[15:24]
    for row in range(9):
        for stream in range(8):
            frame = row - stream
            code = pads[stream] + 1 + 2 * stream + frame if 0 <= frame < 2 else pads[stream]
            assert speech[row, stream] == code
    assert rows[24:, 0].tolist() == [2, 5, 7, 259, 2, 6, 7]
    assert not rows[24:, 1:].any()


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("user", "messages[0].codes", codes=np.zeros((8, 1), int)), "messages[0].codes: expected audio samples"),
        (Piece("user", "text", text=""), "text: expected text of at least one character"),
        (Piece("assistant", "m.codes", codes=np.zeros((9, 1), int)), "m.codes: expected 8 streams, got 9 streams"),
    ],
)
def test_invalid_prompt_pieces_are_refused_by_field_name(piece: Piece, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        write("chat", Piece("system", "", text="z"), piece)
    assert str(caught.value).startswith(message)
