"""Model families as data: streams, special ids, tasks, multi-token steps, depth transformers, defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import Segment, StreamLayout
from stretto.streams.pattern import FORCED_TAIL, PADDED_WARM_UP, Staircase, Tail, WarmUp

MAX_NUMBERS, MAX_NUMBER = 32, 8192  # limits of a schedule, which a request may define


@dataclass(frozen=True)
class BurstSchedule:
    """Schedule of the rows of a reply that modules generate.

    Attributes:
        name: Name of the schedule in requests and error messages.
        mode: M1, m1, M2, m2 …: M1 rows of the backbone, one per step, the last of them followed by m1 rows of modules
            in the same step; then M2 and m2. The last pair repeats.
        num_modules: Number of modules. If an m is larger, the backbone generates the row after the modules' rows, and
            the modules start again.
    """

    name: str
    mode: tuple[int, ...]
    num_modules: int = MAX_NUMBER

    def __post_init__(self) -> None:
        if not self.mode or len(self.mode) % 2 or min(self.mode[::2]) < 1 or min(self.mode[1::2]) < 0:
            raise ValueError(f"{self.name}: expected pairs of M >= 1 and m >= 0, got {self.mode}")

    @cached_property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.mode[::2], self.mode[1::2], strict=True))

    @cached_property
    def max_extra(self) -> int:
        """Largest number of rows that modules generate in a step."""
        return min(self.num_modules, max(self.mode[1::2]))

    def num_extra(self, index: int) -> int:
        """Return the number of module rows in the step that begins with row `index`, a row of the backbone."""
        place = index
        for main, extra in self._pairs[:-1]:
            if place < main + extra:
                return self._extra(index, place, main, extra)
            place -= main + extra
        main, extra = self._pairs[-1]
        return self._extra(index, place % (main + extra), main, extra)

    def next_step(self, index: int) -> int:
        """Return the first row of the backbone at or after `index`."""
        step = 0
        while step < index:
            step += 1 + self.num_extra(step)
        return step

    def _extra(self, index: int, place: int, main: int, extra: int) -> int:
        behind = place - (main - 1)  # 0 in the row that the modules' rows follow
        if behind < 0:
            return 0
        assert behind % (self.num_modules + 1) == 0, (
            f"{self.name}: row {index} belongs to a module, so no step starts with it"
        )
        return min(self.num_modules, extra - behind)

    def window(self, num_modules: int) -> int:
        """Return the largest number of recent rows that a module may not have read yet.

        Rows are counted back from the last row that the backbone has read. Module k (from 0) reads row j together with
        the id of row j + k + 1. Modules read a prompt as its chunks arrive, and the rows of a multi-token step as far
        as the ids are known. They read the remaining rows with the next multi-token step.
        """
        extra = self.num_extra(0)
        index, widest, behind = 1 + extra, num_modules, max(0, num_modules - 1 - extra)
        for _ in range(sum(self.mode[::2]) + 2 * self.mode[-2] if self.max_extra else 0):
            behind += 1 + extra
            widest = max(widest, behind)
            extra = self.num_extra(index)
            index += 1 + extra
            if extra:
                behind = max(0, num_modules - 1 - extra)
        return widest


@dataclass(frozen=True)
class Bursts:
    """Modules of a model and its named schedules; the first schedule is the default.

    Attributes:
        num_modules: Number of modules; module k (from 0) generates row k + 1 after the backbone's row.
        schedules: Named schedules.
    """

    num_modules: int
    schedules: tuple[BurstSchedule, ...]

    def __post_init__(self) -> None:
        if (most := max(schedule.max_extra for schedule in self.schedules)) > self.num_modules:
            raise ValueError(f"{self.num_modules} modules cannot generate {most} rows in a step")

    def schedule(self, name: str | Sequence[int] | None) -> BurstSchedule:
        """Return the schedule called `name`, one of the given numbers, or the default for None.

        KeyError lists the names.
        """
        if name is not None and not isinstance(name, str):
            return BurstSchedule("the request's schedule", tuple(name), self.num_modules)
        for schedule in self.schedules:
            if name in (None, schedule.name):
                return schedule
        raise KeyError(f"{name!r} is not one of {[schedule.name for schedule in self.schedules]}")

    @cached_property
    def window(self) -> int:
        """Upper bound on the rows that modules may not have read yet, for any schedule.

        It covers the named schedules, up to 2 * num_modules rows. If a step would leave more rows unread, the modules
        read them in that step and generate nothing (`worker/module_rows.py`). That suffices for any schedule, because a
        multi-token step leaves at most N = `num_modules` rows, and the next step reads N + 1.
        """
        windows = (schedule.window(self.num_modules) for schedule in self.schedules)
        return max(self.num_modules + 1, *(min(window, 2 * self.num_modules) for window in windows))


@dataclass(frozen=True)
class DepthSpec:
    """Hyperparameters of a depth transformer with layers of Llama or Qwen3.

    Position 0 reads the row's hidden state, and position p the code of stream p - 1. The output of position p samples
    stream p. Codes have embedding tables of their own, of width `hidden`, which include any projection that the
    published model applies.

    Attributes:
        hidden: Width.
        rope: `rope_parameters` of a published config.json, including `rope_theta`.
        projection: Linear layer from the backbone's width to `hidden`, with or without bias; None if the widths are
            equal.
        has_head_norms: True if queries and keys are normalised per head, as in Qwen3.
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope: Mapping[str, Any] = field(hash=False)
    projection: Literal["plain", "biased"] | None = "plain"
    has_head_norms: bool = False


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Script:
    """Alignment pointer on stream 0 of the audio segment, over the text segment that was just generated.

    Every text token in `spoken` is an entry, in order. Its ordinal (from 1) appears as `index_base + ordinal` on
    `index_stream`, an input-only stream. In the audio segment the pointer stays on its entry or advances to the next
    one. Stream 0 carries `first_frame + 2 * (token - spoken.start)` in an entry's first row, and that id + 1 while the
    pointer stays. P(advance) = 1 - P(stay), with the softmax over the audio interval of stream 0 and `end_of_audio`.
    Advancing from the last entry ends the audio.

    Attributes:
        spoken: Ids of the text tokens that are entries.
        first_frame: Id of the first row of an entry for token `spoken.start`.
        index_base: Id of ordinal 0 on `index_stream`.
        index_stream: Input-only stream of the ordinals.
        max_entries: Largest number of entries.
    """

    spoken: range
    first_frame: int
    index_base: int
    index_stream: int
    max_entries: int


@dataclass(frozen=True)
class UnconditionalContext:
    """Differences between the rows of the unconditional request and those of the conditional request of a CFG pair.

    Both have the same positions. These rows differ:

    - Context rows after the first `keep_first` and before the last `keep_last` become `[null_id, pad, …]`, except in
      `kept_streams`.
    - In audio rows, each stream of `hidden_streams` carries `null_id` (stream 0) or pad (any other stream) instead of
      ids of its audio interval or index. Other ids (end of audio, pads of the tail) are unchanged.
    """

    null_id: int
    keep_first: int
    keep_last: int
    hidden_streams: tuple[int, ...] = ()
    kept_streams: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextTrack:
    """Input-only stream for streamed text: row i of the reply carries frame i and the i-th id of the text.

    Attributes:
        stream: Index of the stream.
        pad_id: Id of rows after the end of the text; not a silent id of the layout.
        end_id: Last id of a text.
        is_usual: True if text is read this way by default; False if by default all of it precedes the reply.
    """

    stream: int
    pad_id: int
    end_id: int
    is_usual: bool = False


@dataclass(frozen=True)
class PositionStream:
    """Input-only stream of learned positions: row i of the reply carries the i-th of `ids`, pads after the last.

    Ids in rows of the prompt are set by the prompt template.
    """

    stream: int
    ids: range


@dataclass(frozen=True)
class Task:
    """Task of a family: the segments of its reply and the ids that its text segment may contain.

    Attributes:
        name: Name of the task in requests.
        segments: Segments of the reply, in order.
        text: Ids that a text segment may contain; for an interleaved segment, the codes too.
        needs: Content that the last turn must have: `text`, `audio`.
        sampling: Default sampling options.
        also: Content that the last turn may have in addition.
        answers: Role of the last turn.
        has_history: True if turns of user and assistant may precede the last turn.
        system: Content that a leading system turn may have; () if none is allowed.
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
        """True if the reply contains audio."""
        return self.has_audio_segment or Segment.INTERLEAVED in self.segments

    @property
    def has_audio_segment(self) -> bool:
        """True if the reply has an audio-only segment, whose length a request may limit."""
        return Segment.AUDIO in self.segments


@dataclass(frozen=True)
class Family:
    """Everything about a published model family except its weights.

    Attributes:
        end_of_reply: Id of stream 0 in the row that ends the reply; no step reads it.
        end_of_text: Id of stream 0 in the row that ends a text followed by audio. None: the sampled id is kept, and if
            a limit ended the text, the transition follows at once.
        end_of_audio: Id of stream 0 in the row that ends the audio.
        transition: Ids forced on stream 0, one per row, between the text and the audio segment.
        guided_streams: Output streams with classifier-free guidance in the audio segment.
        script: Alignment pointer, if the family has one.
        voices: Names of the voices in lower case.
        voice_titles: Titles of the voices for people, such as "Female", in the order of `voices`; () if the names
            suffice.
        languages: Names of the languages in lower case.
        takes_instructions: True if the manner of speaking may be described in words.
        reads_latin_only: True if text in other scripts is rejected, or transliterated on request.
        frame_rate: Frames per second of the codec; 0 if the engine cannot convert seconds to frames.
        drawn_ends: Ids that the model samples to end a segment, if these differ from the ids above.
        warm_up, tail: Both ends of the delay pattern, drawn in `streams/pattern.py`.
        has_stream_bias: True if the checkpoint has `stream_bias.weight` [S, H], which is added to the hidden state
            before each head.
        subwords: Ids of the tokens of the checkpoint's tokenizer, in its order; None if the family needs no tokenizer.
        markers: Ids that occur in prompts only, by their names in the checkpoint.
        bursts: Modules that generate further rows in a step, if the model has any.
        penalized: Ids that a repetition penalty counts in a text: `drawn` for generated ids, `all` to include the
            prompt; None if the family has no such penalty.
        depth: Depth transformer that samples the streams 1 ... of a row one after another; None if all streams are
            sampled at once from the row's hidden state.
        end_frame: Ids of the streams 0 ..., as many as are compared. An audio row that begins with them counts as
            `end_of_audio`, which stream 0 does not sample then.
        text_track: Stream of the ids that a request provides for the rows of the reply, if the family has one.
        positions: Stream of learned positions, if the family has one; never together with a text track.
        staircase: Extra ids of the layout that begin and end each stream; an end is the last extra id of its stream.
            The ends are the `end_frame` then, and these ids count as sampled (SAMPLED_WARM_UP, NO_TAIL).
        has_audio_head: True if the checkpoint has `audio_head.weight` [n, H] and no head over the vocabulary. It holds
            the heads of all output streams in audio, one after another; the ids that end stream 0 follow its own.
        num_filled_codebooks: Number of codebooks after those of the layout. They are not sampled, but filled in for the
            whole utterance by the decoder (`FamilyPlugin.load_refinement`).
        leaves_out_extra: True if frames with an extra id of the layout are neither decoded nor reported; False if such
            an id represents a code.
        not_served: Reason why the server rejects a family that `SpeechLLM` supports; empty if it is served.
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
        """Number of codebooks of the codec."""
        return self.layout.num_codebooks + self.num_filled_codebooks

    @property
    def rows_per_frame(self) -> int:
        """Number of audio rows of a frame."""
        return self.layout.frame_codec.rows_per_frame

    @property
    def track_stream(self) -> int | None:
        """Stream whose ids are known in advance (streamed text or positions); None if there is none."""
        track = self.text_track or self.positions
        return None if track is None else track.stream

    def task(self, name: str) -> Task:
        """Return the task called `name`; KeyError lists the known names."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"{name!r} is not one of {[task.name for task in self.tasks]}")
