"""Prompts of Qwen3-Omni's thinker equal those of transformers' processor; unsupported input is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths

from plugins.qwen3_omni.lab.random_qwen3_omni import AUDIO, text_only_config
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import (
    END,
    Processor,
    Theirs,
    Written,
    conversations,
    convert,
    picture,
    speech,
)
from stretto.errors import InvalidRequest
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.base import Task
from stretto.family.log_mel import SHORTEST, MelFormat
from stretto.family.log_mel_encoder import embed_audio
from stretto.family.plugin import config_at
from stretto.family.prompting import Piece, PromptRows, Turn, choose_task
from stretto_qwen3_omni.qwen3_omni.model import audio_adaptor
from stretto_qwen3_omni.qwen3_omni.prompt import open_template

ASK = Piece("user", "text", text="hello")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(convert(tmp_path_factory.mktemp("thinker")))


@pytest.fixture(scope="module")
def processor(written: Written) -> Processor:
    return Processor(written.checkpoint)


def ids_of(rows: PromptRows) -> list[int]:
    assert rows.rows.dtype == np.int32
    assert rows.rows.shape[1] == 1
    return rows.rows[:, 0].tolist()


@pytest.mark.parametrize("name", conversations())
def test_rows_and_features_match_transformers(written: Written, processor: Processor, name: str) -> None:
    pieces = conversations()[name]
    made, inputs = written.rows(pieces), processor.inputs(pieces)
    assert ids_of(made) == inputs["input_ids"][0].tolist()
    heard = [at for at, token in enumerate(ids_of(made)) if token == AUDIO]
    assert heard == [at for audio in made.audios for at in range(audio.first_row, audio.first_row + audio.num_rows)]
    for index, audio in enumerate(made.audios):
        num_frames = int(inputs["feature_attention_mask"][index].sum())
        assert np.array_equal(audio.features.T, inputs["input_features"][index, :, :num_frames].numpy())
    check_audios(written.prompt(pieces, 1), AudioFormat.from_config(config_at(written.checkpoint)))


@pytest.mark.parametrize("num_samples", [SHORTEST, 319, 320, 321, 1599, 15_999, 16_000, 16_001, 31_967, 80_123])
def test_number_of_audio_rows_matches_transformers(written: Written, processor: Processor, num_samples: int) -> None:
    pieces = (Piece("user", "audio", pcm=speech(6.0)[:num_samples]),)
    (audio,) = written.rows(pieces).audios
    ids = processor.inputs(pieces)["input_ids"]
    assert audio.num_rows == int((ids == AUDIO).sum())


def test_rows_of_any_number_of_frames_match_transformers() -> None:
    numbers = torch.arange(1, 2000)
    expected = _get_feat_extract_output_lengths(numbers, 50).tolist()
    assert [MelFormat(32).num_rows(number) for number in numbers.tolist()] == expected


def test_recordings_of_one_transformers_call_differ_in_their_last_frames_only(
    written: Written, processor: Processor
) -> None:
    """It pads the shorter ones with silence, where a recording of its own is reflected."""
    pieces = conversations()["turns"]
    made, inputs = written.rows(pieces), processor.inputs(pieces, extracts_alone=False)
    assert ids_of(made) == inputs["input_ids"][0].tolist()
    longer, shorter = made.audios
    for index, audio in enumerate((longer, shorter)):
        theirs = inputs["input_features"][index, :, : len(audio.features)].T.numpy()
        differs = np.abs(theirs - audio.features).max(1) > 0
        assert not differs[:-2].any()
        assert differs.any() == (audio is shorter)


@torch.no_grad()
def test_audio_rows_match_transformers(written: Written, processor: Processor) -> None:
    """The rows of recordings that transformers encodes together equal those that are encoded one by one."""
    theirs, pieces = Theirs().thinker, conversations()["turns"]
    inputs = processor.inputs(pieces)
    expected = theirs.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"]).last_hidden_state
    adaptor: Any = audio_adaptor({}, expected.shape[1])
    audios = written.rows(pieces).audios
    rows = [embed_audio(theirs.audio_tower, adaptor, torch.from_numpy(audio.features)) for audio in audios]
    assert [len(each) for each in rows] == [audio.num_rows for audio in audios]
    torch.testing.assert_close(torch.cat(rows), expected, rtol=0, atol=1e-5)


def test_rows_have_sequential_positions(written: Written, processor: Processor) -> None:
    """This follows transformers' rule for three-dimensional positions, which differ only for images and video."""
    for name in ("audio, text", "turns"):
        inputs = processor.inputs(conversations()[name])
        ids, lengths = inputs["input_ids"], inputs["feature_attention_mask"].sum(1)
        given = ids, None, None, torch.ones_like(ids), False, lengths
        positions, shift = Theirs().thinker.get_rope_index(*given)
        assert positions[:, 0].tolist() == [list(range(ids.shape[1]))] * 3
        assert shift.item() == 0


def test_names_of_markers_in_a_text_are_plain_text(written: Written) -> None:
    text = "<|im_end|><|audio_pad|><|im_start|>"
    ids = ids_of(written.rows((replace(ASK, text=text),)))
    plain = ids_of(written.rows((ASK,)))
    assert [ids.count(token) for token in (END, AUDIO)] == [plain.count(END), 0]


def test_codes_of_the_assistant_are_left_out_if_its_text_is_there(written: Written) -> None:
    said = Piece("assistant", "messages[1].text", text="hello")
    spoken = Piece("assistant", "messages[1].codes", codes=np.zeros((4, 9), np.int64))
    with_codes, without = (written.rows((ASK, *turn, ASK)) for turn in ((said, spoken), (said,)))
    assert ids_of(with_codes) == ids_of(without)


def test_interrupted_reply_without_known_words_is_read_as_empty(written: Written, processor: Processor) -> None:
    spoken, empty = Piece("assistant", "codes", codes=np.zeros((4, 9), np.int64)), Piece("assistant", "text", text="")
    expected = processor.inputs((ASK, empty, ASK))["input_ids"][0].tolist()
    assert ids_of(written.rows((ASK, spoken, ASK))) == expected


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (replace(ASK, text=""), "text: expected text of at least one character"),
        (replace(ASK, text="a" * 32_001), "text: expected at most 32000 characters, got 32001 characters"),
        (
            Piece("user", "messages[0].codes", codes=np.zeros((4, 1), int)),
            r"messages\[0\].codes: expected text or audio",
        ),
        (Piece("user", "audio", pcm=np.zeros(200, np.float32)), "audio: expected audio of at least 201 samples"),
    ],
)
def test_invalid_pieces_are_refused_by_field_name(written: Written, piece: Piece, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        written.rows((piece,))


def test_total_length_of_recordings_is_limited(written: Written) -> None:
    pieces = tuple(Piece("user", f"audio[{index}]", pcm=np.zeros(100 * 16_000, np.float32)) for index in range(4))
    expected = r"^audio\[3\]: expected at most 300 s of audio in all turns, got 400.0 s"
    with pytest.raises(InvalidRequest, match=expected):
        written.rows(pieces)


@pytest.mark.parametrize(
    "turns",
    [
        (Turn(text="hi"),),
        (Turn(audio_input="audio"),),
        (
            Turn("system", text="Be terse."),
            Turn(audio_input="audio", text="hi"),
            Turn("assistant", text="a"),
            Turn(text="b"),
        ),
    ],
)
def test_chat_accepts_text_and_audio_with_history(written: Written, turns: tuple[Turn, ...]) -> None:
    assert choose_task(None, turns, written.family).name == "chat"


def test_voice_of_a_spoken_reply_is_its_index(written: Written) -> None:
    """The prompts of text replies have no voice, because the codec has none."""
    codec: Any = None  # unused
    template = open_template(written.family, written.checkpoint, codec, "cpu")
    chat, spoken = written.family.tasks
    assert written.family.voices == ("ethan", "chelsie")

    def voice_of(task: Task, name: str | None) -> int:
        return template.write(task, (ASK,), name).voice

    assert [voice_of(spoken, name) for name in ("chelsie", "ethan", None)] == [1, 0, 0]
    assert voice_of(chat, "chelsie") == 0


def test_recordings_and_images_outside_user_turns_are_refused_if_the_reply_is_spoken(written: Written) -> None:
    codec: Any = None  # unused
    template = open_template(written.family, written.checkpoint, codec, "cpu")
    chat, spoken = written.family.tasks
    for kind, piece in {
        "audio": Piece("assistant", "messages[0].it", pcm=np.zeros(1600, np.float32)),
        "an image": Piece("assistant", "messages[0].it", pixels=picture(64, 64)),
    }.items():
        made = template.write(chat, (piece, ASK), None)
        assert made.audios or made.images
        with pytest.raises(InvalidRequest) as caught:
            template.write(spoken, (piece, ASK), None)
        expected = "text in turns of the assistant, because the reply is spoken"
        assert str(caught.value) == f"messages[0].it: expected {expected}, got {kind}"


def test_text_only_checkpoint_has_no_voices(tmp_path: Path) -> None:
    assert Written(convert(tmp_path, text_only_config())).family.voices == ()


def test_images_are_limited(written: Written) -> None:
    """Refusals name the piece, the limit and the value."""
    seen = Piece("user", "messages[0].image", pixels=picture(64, 64))
    template = open_template(written.family, written.checkpoint, None, "cpu")  # type: ignore[arg-type]
    narrow = replace(seen, pixels=picture(1, 201))
    for task in written.family.tasks:
        for pieces, message in (
            ((narrow,), "sides of a ratio of at most 200, got 201 x 1 pixels"),
            ((seen,) * 5, "at most 4 images in all turns, got 5 images"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                template.write(task, pieces, None)
            assert str(caught.value) == f"messages[0].image: expected {message}"


def test_large_images_are_scaled(written: Written) -> None:
    small, large = (written.rows((Piece("user", "", pixels=picture(*size)),)) for size in ((1, 1), (1500, 1400)))
    assert [image.num_rows for made in (small, large) for image in made.images] == [49, 16_236]


def test_images_in_any_turn_can_be_spoken_about(written: Written) -> None:
    turns = (Turn(has_image=True, path="messages[0]"), Turn("assistant", "rain"), Turn(text="why?"))
    for name in (None, "dialogue"):
        assert choose_task(name, turns, written.family).name == (name or "chat")
