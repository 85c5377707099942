"""A model family as data: its streams, special ids, tasks and defaults. It builds no tensor and reads no file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stretto.families.bursts import Bursts
from stretto.families.depth import DepthSpec
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import StreamLayout
from stretto.streams.pattern import FORCED_TAIL, PADDED_WARM_UP, Staircase, Tail, WarmUp
from stretto.streams.segment import Segment

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Script:
    """A monotonic script on stream 0 of the audio segment, taken from the text segment just written.

    Every text token in `spoken` is an entry, in order; its ordinal (from 1) is `index_base + ordinal` on
    `index_stream`, an input-only stream. In the audio segment the pointer stays on its entry or advances to
    the next, never elsewhere: stream 0 carries `first_frame + 2 * (token - spoken.start)` in the entry's first
    row and that id + 1 while it stays; P(advance) = 1 - P(stay), the softmax taken over the audio interval of
    stream 0 and `end_of_audio`. Advancing from the last entry ends the audio.
    """

    spoken: range
    first_frame: int
    index_base: int
    index_stream: int
    max_entries: int


@dataclass(frozen=True)
class UnconditionalContext:
    """What the unconditional half of a guidance pair sees: the same rows at the same positions, except that

    - context rows between the first `keep_first` and the last `keep_last` become `[null_id, pad, …]`, but for what
      `kept_streams` carry there;
    - in audio rows each stream of `hidden_streams` carries `null_id` (stream 0) or pad (any other) in place of
      an id of its audio interval or index; ids outside it (end of audio, the pads of the tail) stay.
    """

    null_id: int
    keep_first: int
    keep_last: int
    hidden_streams: tuple[int, ...] = ()
    kept_streams: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextTrack:
    """An input-only stream of the text that is spoken: row i of the reply carries frame i and the track's id i.

    end_id: the last id of a text. pad_id: what the rows behind it carry, one that is no silence of the layout's.
    is_usual: whether a text is read so where a request does not say, and not as a whole before the reply.
    """

    stream: int
    pad_id: int
    end_id: int
    is_usual: bool = False


@dataclass(frozen=True)
class PositionStream:
    """An input-only stream of learned positions: row i of the reply carries the i-th of `ids`, a pad behind the last.

    What the rows of a prompt carry its template says.
    """

    stream: int
    ids: range


@dataclass(frozen=True)
class Task:
    """One thing a family can do: which segments it replies with and what its text segment may say.

    needs, also: what the turn that it answers must hold, and what it may hold besides: `text`, `audio`.
    text: what a text segment may say; of an interleaved one, its codes too.
    answers: whose turn that is. has_history: whether turns of user and assistant may come before it.
    system: what a system turn before all others may hold; () where there is none.
    """

    name: str
    segments: tuple[Segment, ...]
    text: tuple[range, ...]
    needs: tuple[str, ...]
    sampling: SamplingConfig
    also: tuple[str, ...] = ()
    answers: Role = "user"
    has_history: bool = False
    system: tuple[str, ...] = ()

    @property
    def speaks(self) -> bool:
        """Whether there is audio in what it replies with."""
        return self.has_audio_segment or Segment.INTERLEAVED in self.segments

    @property
    def has_audio_segment(self) -> bool:
        """Return True if the reply has a segment of audio alone, with a length that a request may limit."""
        return Segment.AUDIO in self.segments


@dataclass(frozen=True)
class Family:
    """Everything about a published model family that is not a weight.

    transition: rows forced on stream 0 between the text and the audio segment.
    guided_streams: output streams whose logits are guided in the audio segment.
    frame_rate: frames per second of the codec; where it is 0, nothing can be asked for in seconds of the engine.
    end_of_text, end_of_audio, end_of_reply: what stands in the row that closes a text which audio follows, the audio,
    the reply; the last is never read. end_of_text None: what was drawn; where a limit closes the text nothing was, and
    the transition follows at once.
    drawn_ends: what the model draws to close a segment, any of these, where it does not draw the above.
    voices, languages: by name, in lower case; what may be asked for. takes_instructions: whether how to speak may be
    said in words. reads_latin_only: whether text in other scripts is refused, or transliterated if asked for.
    voice_titles: of the voices in this order, for people, as "Female"; () if their names say enough.
    warm_up, tail: the two ends of the delay pattern, drawn in `streams/pattern.py`.
    has_stream_bias: the checkpoint has `stream_bias.weight` [S, H], added to the hidden state before each head.
    subwords: ids of the tokens of the checkpoint's tokenizer, in its order; None where the family needs no tokenizer.
    markers: ids that only prompts carry, by the names that the checkpoint gives them.
    bursts: the modules that say further rows in a step, where the model has any.
    penalized: which ids a repetition penalty counts in a text: those `drawn`, or `all`, the prompt's too; None where
    the family has no such penalty.
    depth: how the streams 1 ... of a row are drawn one after another; None: all at once, from its hidden state.
    end_frame: ids of the streams 0 ..., as many as count; a row in audio that begins with them is `end_of_audio`, which
    stream 0 does not draw then.
    text_track: the stream whose ids for the rows of the reply come with the request, where there is one.
    positions: the stream of learned positions, of a family without a text track, where there is one.
    staircase: where streams begin and end by ids of their own: extra ids of the layout, an end the last of its
    stream's. Its ends are the `end_frame` then, and what it puts into a row counts as drawn (SAMPLED_WARM_UP, NO_TAIL).
    has_audio_head: the checkpoint has `audio_head.weight` [n, H], the heads of all output streams in audio one behind
    another, what stream 0 ends with behind its own, and none over the vocabulary.
    num_filled_codebooks: codebooks of the codec behind those of the layout: not drawn, but filled in of the whole
    utterance where it is decoded (`codec/refinement`).
    leaves_out_extra: frames with an extra id of the layout are not decoded, nor told; else it stands for a code.
    not_served: why the server refuses it, which `SpeechLLM` drives; empty where it serves it.
    """

    name: str
    layout: StreamLayout
    tasks: tuple[Task, ...]
    codec: str
    end_of_reply: int
    end_of_text: int | None
    end_of_audio: int
    transition: tuple[int, ...]
    guided_streams: tuple[int, ...]
    unconditional: UnconditionalContext
    script: Script | None = None
    voices: tuple[str, ...] = ()
    voice_titles: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    takes_instructions: bool = False
    reads_latin_only: bool = False
    max_text_chars: int = 0
    max_audio_s: float = 0.0
    max_model_len: int = 0
    frame_rate: float = 0.0
    first_chunk_frames: int = field(default=4)
    steady_chunk_frames: int = field(default=25)
    drawn_ends: tuple[int, ...] = ()
    warm_up: WarmUp = PADDED_WARM_UP
    tail: Tail = FORCED_TAIL
    has_stream_bias: bool = False
    subwords: range | None = None
    markers: Mapping[str, int] = field(default_factory=dict, hash=False)
    bursts: Bursts | None = None
    penalized: Literal["drawn", "all"] | None = None
    depth: DepthSpec | None = None
    end_frame: tuple[int, ...] = ()
    text_track: TextTrack | None = None
    positions: PositionStream | None = None
    staircase: Staircase | None = None
    has_audio_head: bool = False
    num_filled_codebooks: int = 0
    leaves_out_extra: bool = False
    not_served: str = ""

    @property
    def num_codebooks(self) -> int:
        """Of the codec."""
        return self.layout.num_codebooks + self.num_filled_codebooks

    @property
    def track_stream(self) -> int | None:
        """The stream whose ids are known before its rows are: a text's or positions; None where there is none."""
        track = self.text_track or self.positions
        return None if track is None else track.stream

    def task(self, name: str) -> Task:
        """The task called `name`; KeyError lists the names there are."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"{name!r} is not one of {[task.name for task in self.tasks]}")
