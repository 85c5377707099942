"""Prompts of OpusLM dialogue: `[sos][task]`, each piece as `[role]` and its segment, `[role][modality]` of the reply.

    dialogue, text_dialogue   … [user][codec_ssl] frames … [user][text] words … [assistant][text]
    speak                     … [assistant][text] words … [assistant][codec_ssl]
    asr                       … [user][codec_ssl] frames … [user][text]

If the assistant's text is spoken in the same reply, no further turn is needed: the model continues after the last word.
"""

import numpy as np

from stretto.families.base import Task
from stretto.families.opuslm.family import ASSISTANT_OUTPUT, SOS_EOS, SYSTEM_PROMPT, USER_INPUT
from stretto.families.opuslm.prompt_segments import SegmentWriter
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.preprocessing.prompt import PromptRows
from stretto.streams.layout import Segment

ROLES = {"system": SYSTEM_PROMPT, "user": USER_INPUT, "assistant": ASSISTANT_OUTPUT}


class DialogueTemplate:
    """Prompt template of the dialogue model."""

    def __init__(self, segments: SegmentWriter):
        self._segments = segments

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the turns and the head of the reply; audio in a system turn is the assistant's voice."""
        segments = self._segments
        name = "text_dialogue" if task.name == "text_dialogue" else "audio_dialogue"
        parts = [segments.ids(SOS_EOS, segments.task_id(name))]
        for piece in pieces:
            is_voice = piece.role == "system" and piece.text is None
            parts += [segments.ids(ROLES[piece.role]), segments.voice(piece) if is_voice else segments.piece(piece)]
        modality = "text_bpe" if task.segments[0] is Segment.TEXT else "codec_ssl"
        speaker = USER_INPUT if task.name == "asr" else ASSISTANT_OUTPUT
        parts += [segments.ids(speaker), segments.marker(modality)]
        return PromptRows(np.concatenate(parts))
