"""Interface of prompt templates, speaking options, and functions that write rows of ids."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.families.base import Family, Task
from stretto.families.conversation import Piece
from stretto.families.registry import plugin
from stretto.records.chunk import Sound
from stretto.records.prompt import InputAudio
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import StreamLayout, delay_codes
from stretto_client.schema import OptionsRecord


@dataclass(frozen=True, slots=True)
class Manner:
    """Speaking options except the voice.

    Attributes:
        language: Name of the language; None to let the model choose.
        instruct: Instructions on the speaking style; empty for none.
        is_streaming: True if the text is read during the reply (streamed text input); False if the prompt contains all
            of it.
        is_open: True if later requests may continue this text.
        transliterates: True to transliterate scripts that the voice cannot read to Latin.
        exaggeration: Strength of the voice's emotion; None for the voice's default.
    """

    language: str | None = None
    instruct: str = ""
    is_streaming: bool = False
    is_open: bool = False
    transliterates: bool = False
    exaggeration: float | None = None


PLAIN = Manner()
AUTO = "auto"  # lets the model choose the language


def read_manner(options: OptionsRecord, family: Family) -> Manner:
    """Return the speaking options of a request.

    Args:
        options: Options of the request.
        family: The model's family.

    Raises:
        InvalidRequest: The family does not support an option or its value.
    """
    return Manner(
        language=_language(options, family),
        instruct=_instruct(options, family),
        is_streaming=_is_streaming(options, family),
        is_open=options.get("text_mode") == "open",
        transliterates=_transliterates(options, family),
        exaggeration=_exaggeration(options, family),
    )


def _language(options: OptionsRecord, family: Family) -> str | None:
    if "language" not in options:
        return None
    language = options["language"]
    name = language.lower() if isinstance(language, str) else language
    if not family.languages or name not in (AUTO, *family.languages):
        known = f"one of {', '.join((AUTO, *family.languages))}"
        expected = known if family.languages else "no value (this model takes no language)"
        raise InvalidRequest("options.language", expected, shown(language))
    return None if name == AUTO else name


def _instruct(options: OptionsRecord, family: Family) -> str:
    instruct = options.get("instruct", "")
    if instruct and not family.takes_instructions:
        raise InvalidRequest("options.instruct", "no value (this model takes no instructions)", shown(instruct))
    return instruct


def _transliterates(options: OptionsRecord, family: Family) -> bool:
    transliterates = options.get("transliterate", False)
    if transliterates and not family.reads_latin_only:
        raise InvalidRequest("options.transliterate", "false or no value (this model supports every script)", "true")
    return transliterates


def _exaggeration(options: OptionsRecord, family: Family) -> float | None:
    exaggeration = options.get("exaggeration")
    if exaggeration is not None and not family.takes_exaggeration:
        raise InvalidRequest("options.exaggeration", "no value (this model takes no exaggeration)", exaggeration)
    return exaggeration


def _is_streaming(options: OptionsRecord, family: Family) -> bool:
    if "text_mode" not in options:
        return family.text_track is not None and family.text_track.is_usual
    if family.text_track is None:
        expected = "no value (this model takes no text during its frames)"
        raise InvalidRequest("options.text_mode", expected, shown(options["text_mode"]))
    return options["text_mode"] != "whole"


def stream0_rows(layout: StreamLayout, ids: list[int]) -> np.ndarray:
    """Return rows with `ids` on stream 0 and pads on the other streams.

    Args:
        layout: The family's streams.
        ids: N absolute token ids.

    Returns:
        int32 [N, S].
    """
    rows = np.full((len(ids), layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, 0] = ids
    return rows


def code_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Return rows with codes as absolute ids, delayed, and pad ids elsewhere.

    row      0    1    2    3
    stream 1 c0,0 c0,1 pad  pad      delay 0
    stream 2 pad  pad  c1,0 c1,1     delay 2

    Args:
        layout: The family's streams.
        codes: Codes, int [K, T].

    Returns:
        int32 [T + max_delay, S].
    """
    num_codebooks, num_frames = codes.shape
    if num_codebooks != layout.num_codebooks or not ((codes >= 0) & (codes < layout.codebook_size)).all():
        raise ValueError(
            f"expected codes [{layout.num_codebooks}, T] in [0, {layout.codebook_size}), got shape {codes.shape}"
        )
    streams = list(layout.codebook_streams)
    first_ids = np.array([layout.audio[stream].start for stream in streams])
    delayed = delay_codes(codes + first_ids[:, None], tuple(layout.delays[stream] for stream in streams), layout.pad_id)
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[: len(delayed), streams] = delayed
    return rows


def frame_rows(layout: StreamLayout, codes: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Return rows with codes of all output streams as absolute ids, delayed.

    row      0    1    2    3
    stream 0 c0,0 c0,1 f0   f0       delay 0
    stream 1 f1   c1,0 c1,1 f1       delay 1; fill f1 without a frame

    Args:
        layout: The family's streams.
        codes: Codes, int [S, T], one row per output stream.
        fill: Id of each output stream for rows without a frame.

    Returns:
        int32 [T + max_delay, S].
    """
    num_frames = codes.shape[1]
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, : layout.num_output_streams] = fill
    for stream, delay in enumerate(layout.delays):
        rows[delay : delay + num_frames, stream] = layout.audio[stream].start + codes[stream]
    return rows


def check_codes(codes: np.ndarray, family: Family, path: str) -> None:
    """Check codes in a request.

    Args:
        codes: Codes, int [S, T].
        family: The model's family.
        path: Name of the codes in error messages.

    Raises:
        InvalidRequest: The number of streams, the duration or a code is outside the family's limits.
    """
    layout, max_frames = family.layout, int(family.max_audio_s * family.frame_rate)
    if len(codes) != layout.num_output_streams:
        raise InvalidRequest(path, f"{layout.num_output_streams} streams", f"{len(codes)} streams")
    if codes.shape[1] > max_frames:
        raise InvalidRequest(
            path, f"at most {max_frames} frames ({family.max_audio_s:g} s)", f"{codes.shape[1]} frames"
        )
    for stream, ids in enumerate(layout.audio):
        if codes[stream].max() >= len(ids):
            raise InvalidRequest(f"{path}[{stream}]", f"codes in [0, {len(ids)})", codes[stream].max())


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """Prompt written by a template.

    Attributes:
        rows: Absolute token ids of every input stream, with delays applied, int32 [P, S].
        words: Words of the text to speak, for word timestamps; empty if timestamps are not supported.
        audios: Audio inputs for the encoder, which replace placeholder rows, in order.
        delayed_tail: See `Prompt`.
        track: See `Prompt`.
        num_reference_rows: See `Prompt`.
        voice: See `Prompt`.
        sound: See `Prompt`.
        max_rows: Largest number of audio rows that this text may take; None for the limit of the options alone.
        min_rows: Smallest number of audio rows for this text, if that of the options is lower.
        tail_rows: Number of frames from the detected end of speech, for frames that are latents; None for the default.
    """

    rows: np.ndarray
    words: tuple[str, ...] = ()
    audios: tuple[InputAudio, ...] = ()
    delayed_tail: np.ndarray | None = None
    track: tuple[int, ...] = ()
    num_reference_rows: int = 0
    voice: int = 0
    max_rows: int | None = None
    tail_rows: int | None = None
    sound: Sound | None = None
    min_rows: int = 0

    def limited(self, sampling: SamplingConfig) -> SamplingConfig:
        """Return `sampling` with the limits of this prompt."""
        if self.max_rows is not None or self.min_rows:
            most = min(sampling.audio.max_rows, self.max_rows or sampling.audio.max_rows)
            least = min(max(sampling.audio.min_rows, self.min_rows), most)
            sampling = replace(sampling, audio=replace(sampling.audio, min_rows=least, max_rows=most))
        if self.tail_rows is not None and sampling.latents is not None:
            sampling = replace(sampling, latents=replace(sampling.latents, tail_rows=self.tail_rows))
        return sampling


class Template(Protocol):
    """Prompt template of one family."""

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a conversation.

        Args:
            task: Task that answers the conversation.
            pieces: The conversation.
            voice: Name of the voice, or None.
            manner: Other speaking options.

        Raises:
            InvalidRequest: A piece is too long or cannot be spoken.
        """
        ...


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the family's prompt template.

    Args:
        family: The model's family.
        checkpoint: Folder of the checkpoint.
        codec: The checkpoint's codec.
        device: Torch device for audio encoding.

    Raises:
        CheckpointError: The folder lacks a required file, or the family has no prompts.
    """
    found = plugin(family.name)
    if found is None or found.open_template is None:
        raise CheckpointError(f"{family.name} has no prompts")
    template: Template = found.open_template(family, checkpoint, codec, device)
    return template
