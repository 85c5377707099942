"""OpusLM's prompts, row by row: sos 5; codec_ssl 34, text_bpe 35, spk 37; tasks from 64; text from 372."""

from dataclasses import replace

import pytest

from stretto.errors import InvalidRequest
from stretto.families.opuslm.family import opuslm
from stretto.families.opuslm.prompt import OpusTemplate
from stretto.family.prompting import Piece
from tests.families.opuslm.rows import CODES, FRAMES, GAP, VOICE, segments, text
from tests.small_vocabularies import SMALL_OPUSLM

FAMILY = opuslm(SMALL_OPUSLM)
TEMPLATE = OpusTemplate(segments(FAMILY))
SAID, HEARD = Piece("user", "text", text="xy"), Piece("user", "messages[0].codes", codes=CODES)


def write(task: str, *pieces: Piece) -> list[list[int]]:
    return TEMPLATE.write(FAMILY.task(task), pieces, None).rows.tolist()


def test_plain_tts_prompt_is_text_then_the_audio_marker() -> None:
    assert write("tts", SAID) == [*text(5, 82, 35, 395, 396), *GAP, *text(34)]


def test_tts_prompt_has_500_voice_frames_after_the_text() -> None:
    voice = Piece("system", "messages[0].codes", codes=CODES)
    assert write("tts", voice, SAID) == [*text(5, 81, 35, 395, 396), *GAP, *text(37), *VOICE, *text(34)]


def test_asr_prompt_is_audio_then_the_text_marker() -> None:
    assert write("asr", HEARD) == [*text(5, 80, 34), *FRAMES, *text(35)]


def test_text_lm_prompt_ends_with_the_text() -> None:
    assert write("text_lm", SAID) == text(5, 64, 35, 395, 396)


def test_audio_lm_prompt_ends_after_the_last_frame_with_a_delayed_tail() -> None:
    assert write("audio_lm", HEARD) == [*text(5, 83, 34), *FRAMES[:2]]
    written = TEMPLATE.write(FAMILY.task("audio_lm"), (HEARD,), None)
    assert written.delayed_tail.tolist() == [row[1:] for row in FRAMES[2:]]
    assert all(TEMPLATE.write(FAMILY.task(name), (SAID,), None).delayed_tail is None for name in ("tts", "text_lm"))


def test_tasks_use_the_ids_of_newer_releases() -> None:
    family = opuslm(replace(SMALL_OPUSLM, tasks={"asr": 66, "textlm": 64}))
    template = OpusTemplate(segments(family))
    assert template.write(family.task("asr"), (HEARD,), None).rows[1, 0] == 66
    with pytest.raises(
        InvalidRequest, match="task: expected a task for which this checkpoint has a token, got one that"
    ):
        template.write(family.task("tts"), (SAID,), None)
