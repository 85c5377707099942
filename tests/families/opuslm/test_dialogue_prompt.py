"""OpusLM dialogue's prompts, row by row: system 8, user 9, assistant 10; audio_dialogue 89, text_dialogue 88."""

import numpy as np

from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.families.opuslm.family import opuslm_dialogue
from stretto.families.opuslm.prompt import DialogueTemplate
from stretto.family.prompting import Piece
from stretto.family.text import SILENT
from stretto.streams.chunking import ChunkPolicy, Pacer
from tests.families.opuslm.rows import CODES, FRAMES, GAP, VOICE, segments, text
from tests.reply_rows import chunks_in
from tests.small_vocabularies import SMALL_OPUSLM

FAMILY = opuslm_dialogue(SMALL_OPUSLM)
TEMPLATE = DialogueTemplate(segments(FAMILY))
HEARD = Piece("user", "", codes=CODES)


def write(task: str, *pieces: Piece) -> list[list[int]]:
    return TEMPLATE.write(FAMILY.task(task), pieces, None).rows.tolist()


def test_audio_user_turn_is_answered_with_text_first() -> None:
    assert write("dialogue", HEARD) == [*text(5, 89, 9, 34), *FRAMES, *text(10, 35)]


def test_prompt_with_voice_audio_turn_and_its_text() -> None:
    rows = write("dialogue", Piece("system", "", codes=CODES), HEARD, Piece("user", "", text="x"))
    turn = [*text(9, 34), *FRAMES, *text(9, 35, 395), *GAP]
    assert rows == [*text(5, 89, 8, 37), *VOICE, *turn, *text(10, 35)]


def test_earlier_turns_precede_the_reply_in_order() -> None:
    said = (Piece("assistant", "", text="a"), Piece("assistant", "", codes=CODES))
    rows = write("dialogue", Piece("user", "", text="x"), *said, Piece("user", "", text="y"))
    first = [*text(9, 35, 395), *GAP, *text(10, 35, 372), *GAP, *text(10, 34), *FRAMES]
    assert rows == [*text(5, 89), *first, *text(9, 35, 396), *GAP, *text(10, 35)]


def test_written_dialogue_uses_the_text_dialogue_task() -> None:
    rows = write("text_dialogue", Piece("system", "", text="z"), Piece("user", "", text="x"))
    assert rows == [*text(5, 88, 8, 35, 397), *GAP, *text(9, 35, 395), *GAP, *text(10, 35)]


def test_speak_prompt_contains_the_assistant_text() -> None:
    rows = write("speak", Piece("user", "", text="x"), Piece("assistant", "", text="a"))
    assert rows == [*text(5, 89, 9, 35, 395), *GAP, *text(10, 35, 372), *GAP, *text(10, 34)]


def test_asr_prompt_asks_for_the_user_turn_text() -> None:
    assert write("asr", HEARD) == [*text(5, 89, 9, 34), *FRAMES, *text(9, 35)]


def test_generated_and_prefilled_replies_have_equal_rows() -> None:
    """The engine and the template for earlier turns write equal rows between text and audio."""
    words = [372, 373]
    reply = [*write("dialogue", HEARD), *text(*words), *text(0, *FAMILY.transition)]
    assert reply == write("speak", HEARD, Piece("assistant", "", text="ab"))


def test_reply_sent_back_with_codes_reproduces_its_rows() -> None:
    """The next turn therefore finds all of them in the prefix cache, up to the reply's last frame."""
    task, asked = FAMILY.task("dialogue"), [*text(5, 89, 9, 34), *FRAMES, *text(10, 35)]
    reply = [*text(372, 373), *text(0, *FAMILY.transition), *FRAMES[:2]]
    last = [5, *FRAMES[2][1:]]  # the end is drawn at the place of the third frame
    drained = [[256, *row[1:]] for row in FRAMES[3:]] + [[256] + [276 + 12 * k for k in range(8)]]
    begun = ReplyState.begin(SegmentRules(FAMILY, 1024), task, len(asked))
    speaker = Utterance(begun, (), SILENT, Pacer(ChunkPolicy(1, 1)), with_codes=True)
    rows = [np.array([[NO_CHANGE, *row]]) for row in [*reply, last, *drained]]
    chunks = [chunk for row in rows for chunk in chunks_in(speaker, row)]
    told = np.concatenate([np.array(chunk.chunk.output_codes) for chunk in chunks if chunk.chunk.output_codes], 1)
    assert np.array_equal(told, CODES)
    said = (Piece("assistant", "", text="ab"), Piece("assistant", "", codes=told))
    following = write("dialogue", HEARD, *said, Piece("user", "", text="x"))
    assert following[: len(asked) + len(reply)] == [*asked, *reply]
