"""A small family whose text is in rows of its own, as CosyVoice 3's streamed text."""

from dataclasses import replace

from stretto.streams.layout import NO_TAIL, StreamLayout
from stretto_cosyvoice3.family import CodeRules, GroupedText, TextGroups
from tests.speech_families import EIGHT_STREAMS, NUM_TEXT_IDS, TRACKED, UNGUIDED

# Two ids of text in rows of their own, then up to four codes of twelve; a repeated code, or end of a group, is sampled
# again without it.
_CODES = range(NUM_TEXT_IDS, NUM_TEXT_IDS + 12)
_ENDS = range(_CODES.stop, _CODES.stop + 3)
_GROUPS = TextGroups(2, 4, fill_id=_ENDS[1], given_id=_ENDS[2])
GROUPED = replace(
    EIGHT_STREAMS,
    name="grouped",
    layout=StreamLayout(_ENDS.stop, (_CODES,), (0,), (0,), num_input_only=1),
    tasks=(replace(TRACKED.tasks[0], sampling=replace(UNGUIDED, ras_window=5, ras_max_repeats=1)),),
    end_of_reply=_ENDS[0],
    end_of_text=_ENDS[0],
    end_of_audio=_ENDS[0],
    drawn_ends=tuple(_ENDS),
    transition=(),
    guided_streams=(),
    tail=NO_TAIL,
    track=GroupedText(1, pad_id=0, end_id=7, codes=_CODES, groups=_GROUPS),
    drawing=CodeRules(_CODES, _GROUPS),
)
