"""Builders of training sequences for each task, from utterances or transcripts (see `sequences`)."""

from dataclasses import replace

import numpy as np

from stretto.families.tiny import family as tiny
from training.tiny.encoded import Spoken, Transcript
from training.tiny.sequences import (
    MAX_DELAY,
    NO_TARGET,
    Head,
    Rows,
    blank,
    characters,
    letters_of_phonemes,
    number_phonemes,
    phoneme_text,
    phonemes_of_letters,
    predict,
)

KEPT_FIRST = tiny.TINY.unconditional.keep_first
ARRAYS = ("stream_0", "index", "target", "look")


def _read(voice: str, transcript: Transcript, tail: list[int]) -> tuple[Rows, int]:
    """Return context rows, phoneme text, [end_of_text] and `tail`, and the row where the phoneme text starts."""
    source_ids, source = phoneme_text(transcript)
    head = [tiny.TTS, tiny.VOICES[voice], *characters(transcript.text), tiny.BEGIN_TEXT]
    first = len(head)
    rows = blank([*head, *source_ids, tiny.END_OF_TEXT, *tail])
    number_phonemes(rows, first, source)
    predict(rows, first, first + len(source) + 1)
    for position, (start, stop) in enumerate(letters_of_phonemes(transcript, source)):
        rows.look[first + position - 1, Head.SOURCE] = KEPT_FIRST + start, KEPT_FIRST + stop
    return rows, first


def g2p(transcript: Transcript, voice: str) -> Rows:
    """Return a sequence from characters to phoneme text, without audio."""
    return _read(voice, transcript, [])[0]


def frame_tokens(spoken: Spoken) -> np.ndarray:
    """Return the stream 0 token of each frame: its phoneme, with a mark on the phoneme's first frame."""
    phonemes = np.asarray(spoken.transcript.phonemes)[spoken.phoneme_of_frame]
    continues = np.diff(spoken.phoneme_of_frame, prepend=-1) == 0
    return tiny.FIRST_FRAME_TOKEN + 2 * phonemes + continues


def tts(spoken: Spoken) -> Rows:
    """Return a sequence from characters to phoneme text and then audio."""
    frames = len(spoken.phoneme_of_frame)
    drain = [tiny.PAD] * (MAX_DELAY - 2)
    tail = [tiny.BEGIN_AUDIO, *frame_tokens(spoken).tolist(), tiny.END_OF_AUDIO, *drain, tiny.END_OF_REPLY]
    rows, text = _read(spoken.voice, spoken.transcript, tail)
    audio = len(rows.stream_0) - frames - MAX_DELAY
    rows.index[audio : audio + frames] = tiny.PHONEME_INDEX_BASE + spoken.phoneme_of_frame + 1
    predict(rows, audio, audio + frames + 1)
    _look_at_script(rows, spoken, text, audio)
    return replace(rows, audio=audio, frames=frames, speaks=True)


def _look_at_script(rows: Rows, spoken: Spoken, text: int, audio: int) -> None:
    """Set the guided attention of each audio row to the text rows of its phoneme and of the next one."""
    _, source = phoneme_text(spoken.transcript)
    at = np.asarray([text + position for position, index in enumerate(source) if index >= 0])
    for frame, phoneme in enumerate(spoken.phoneme_of_frame):
        rows.look[audio + frame, Head.THIS_PHONEME] = at[phoneme], at[phoneme] + 1
        if phoneme + 1 < len(at):
            rows.look[audio + frame, Head.NEXT_PHONEME] = at[phoneme + 1], at[phoneme + 1] + 1


def _write(transcript: Transcript, head: Rows) -> Rows:
    """Append phoneme text, [separator], characters and [end_of_reply] to `head`, which ends with [begin_text]."""
    source_ids, source = phoneme_text(transcript)
    first = len(head.stream_0)
    tail = blank([*source_ids, tiny.SEPARATOR, *characters(transcript.text), tiny.END_OF_REPLY])
    joined = {name: np.concatenate([getattr(head, name), getattr(tail, name)]) for name in ARRAYS}
    rows = replace(head, **joined)
    number_phonemes(rows, first, source)
    predict(rows, first, len(rows.stream_0))
    letters = first + len(source) + 1
    for position, (start, stop) in enumerate(phonemes_of_letters(transcript, source)):
        rows.look[letters + position - 1, Head.SOURCE] = first + start, first + stop
    return rows


def spell(transcript: Transcript) -> Rows:
    """Return a sequence from phoneme text to characters, without audio. The phonemes are not targets."""
    rows = _write(transcript, blank([tiny.ASR, tiny.BEGIN_AUDIO, tiny.BEGIN_TEXT]))
    rows.target[: 2 + len(phoneme_text(transcript)[0])] = NO_TARGET
    return rows


def asr(spoken: Spoken) -> Rows:
    """Return a sequence from audio to phoneme text and then characters.

    Each audio row that completes a frame has this frame's token as its target. Only training uses these targets: they
    make the network recognise phonemes while it reads audio.
    """
    frames = len(spoken.phoneme_of_frame)
    count = frames + MAX_DELAY
    head = blank([tiny.ASR, tiny.BEGIN_AUDIO, *[tiny.PAD] * count, tiny.BEGIN_TEXT])
    audio = 2
    head.index[audio:-1] = tiny.FRAME_INDEX_BASE + 1 + np.arange(count)
    head.target[audio + MAX_DELAY : -1] = frame_tokens(spoken)
    rows = _write(spoken.transcript, replace(head, audio=audio, frames=frames))
    _look_at_sound(rows, spoken, audio)
    return rows


def unheard(frames: int) -> Rows:
    """Return a sequence from audio without speech to an empty transcript."""
    count = frames + MAX_DELAY
    tail = [tiny.BEGIN_TEXT, tiny.FIRST_PHONEME + tiny.PHONEMES.index("pau"), tiny.SEPARATOR, tiny.END_OF_REPLY]
    rows = blank([tiny.ASR, tiny.BEGIN_AUDIO, *[tiny.PAD] * count, *tail])
    rows.index[2 : 2 + count] = tiny.FRAME_INDEX_BASE + 1 + np.arange(count)
    rows.index[-3] = tiny.PHONEME_INDEX_BASE + 1
    predict(rows, len(rows.stream_0) - 3, len(rows.stream_0))
    return replace(rows, audio=2, frames=frames)


def _look_at_sound(rows: Rows, spoken: Spoken, audio: int) -> None:
    """Set the guided attention of text rows to the next phoneme's audio rows. A space belongs to the next phoneme."""
    _, source = phoneme_text(spoken.transcript)
    starts = np.searchsorted(spoken.phoneme_of_frame, np.arange(len(spoken.transcript.phonemes) + 1))
    text = audio + len(spoken.phoneme_of_frame) + MAX_DELAY + 1
    for position, index in enumerate(source):
        phoneme = index if index >= 0 else source[position + 1]
        span = audio + starts[phoneme] + tiny.LEAD, audio + starts[phoneme + 1] + MAX_DELAY - 2
        rows.look[text + position - 1, Head.SOUND] = span
