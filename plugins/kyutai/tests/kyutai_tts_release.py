"""Small random releases of Kyutai TTS, their conversion, and the replies of the authors' code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plugins.kyutai.lab.kyutai_tts_replies import CONFIGS, REPLIES, Wanted
from plugins.kyutai.lab.kyutai_tts_replies import TEXTS as TEXTS
from plugins.kyutai.lab.kyutai_tts_replies import TURNS as TURNS
from plugins.kyutai.lab.random_kyutai_tts import VOICES, write_release
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.text import SENTENCEPIECE_FILE, sentencepiece_at
from stretto.records.prompt import Condition, Prompt
from stretto_kyutai.kyutai_stt.family import PAD
from stretto_kyutai.kyutai_tts.family import END_OF_WORDS, TtsVocabulary
from stretto_kyutai.kyutai_tts.prompt import vectors_at, voice_rows
from stretto_kyutai.kyutai_tts.words import WordStream

DATA = Path(__file__).parent / "data"


def make_checkpoint(folder: Path, name: str = "small", **changed: Any) -> Path:
    """Write a release and convert it.

    Args:
        folder: Existing folder for the release and the checkpoint.
        name: Name of the release's config, a key of CONFIGS.
        **changed: Fields of config.json with other values.
    """
    release = write_release(folder / "release", base=CONFIGS[name], **changed)
    assert main(["kyutai-tts", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


@dataclass(frozen=True)
class Reply:
    """A reply of the authors' code.

    Attributes:
        text: Text that was spoken.
        codes: Codes of the recording, [K, n]; n is 0 in a release with conditions.
        voices: Names of the voices whose vectors are conditions; empty in other releases.
        seed: Seed; 0 is greedy.
        scale: Guidance scale.
        rows: Rows that the model read, [T, 1 + K]; -1 for nothing.
        second: Tokens of the second text stream in these rows, [T]; -1 for nothing.
        times: Steps in which words and breaks began.
        end: Step in which the text ended.
    """

    text: str
    codes: np.ndarray
    voices: tuple[str, ...]
    seed: int
    scale: float
    rows: np.ndarray
    second: np.ndarray
    times: list[int]
    end: int

    @property
    def num_frames(self) -> int:
        """Number of frames of the reply."""
        return self.end + 4 - self.codes.shape[1]


def replies(name: str = "small") -> list[Reply]:
    """Return the authors' replies of a release, a key of CONFIGS."""
    with np.load(DATA / "kyutai_tts_replies.npz") as found:
        return [_reply(found, at, wanted) for at, wanted in enumerate(REPLIES) if wanted.release == name]


def _reply(found: Any, at: int, wanted: Wanted) -> Reply:
    """Return a reply of the fixture, the contents of a `.npz` file."""
    config, rows = CONFIGS[wanted.release], found[f"rows{at}"].astype(np.int64)
    second, num_ids = np.full(len(rows), -1), config["text_card"] + 1
    if config.get("demux_second_stream"):
        second, rows[:, 0] = rows[:, 0] // num_ids - 1, rows[:, 0] % num_ids
    codes = found[f"codes{at}"] if f"codes{at}" in found else np.zeros((config["n_q"], 0))
    return Reply(
        text_of(wanted.turns),
        codes.astype(np.int64),
        VOICES[: wanted.size] if config["conditioners"] else (),
        wanted.seed,
        wanted.scale,
        rows,
        second,
        found[f"times{at}"].tolist(),
        int(found[f"end{at}"][0]),
    )


def text_of(turns: tuple[str, ...]) -> str:
    """Return the text of a request that speaks these turns of two speakers."""
    if len(turns) == 1:
        return turns[0]
    return "\n".join(f"Speaker {1 + at % 2}: {turn}" for at, turn in enumerate(turns))


def vocabulary(checkpoint: Path) -> TtsVocabulary:
    """Return the vocabulary of a checkpoint."""
    return TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


def packed(checkpoint: Path, text: str) -> list[int]:
    """Return a text as packed words, without its end."""
    tokenizer, has_turns = sentencepiece_at(checkpoint / SENTENCEPIECE_FILE), vocabulary(checkpoint).has_turns
    return WordStream(tokenizer, has_turns=has_turns).after(text, is_last=True)[0]


def condition(checkpoint: Path, voices: tuple[str, ...], scale: float) -> Condition | None:
    """Return the condition of a reply; None if the release has none."""
    known = vocabulary(checkpoint)
    if known.voice_shape is None:
        return None
    paths = [checkpoint / "voices" / f"{name.lower()}.safetensors" for name in voices]
    vectors = np.concatenate([vectors_at(path, known.voice_shape[1]) for path in paths])
    return Condition((known.guidance_scales.index(scale), known.control_id), vectors)


def make_prompt(checkpoint: Path, reply: Reply, **limits: int) -> Prompt:
    """Return the prompt of a reply of the authors."""
    sampling = family_at(checkpoint).tasks[0].sampling
    assert sampling.depth is not None
    if reply.seed == 0:
        depth = replace(sampling.depth, temperature=0.0)
        sampling = replace(sampling, audio=replace(sampling.audio, temperature=0.0), depth=depth)
    audio = replace(sampling.audio, **limits)
    made = condition(checkpoint, reply.voices, reply.scale)
    scale = reply.scale if made is None else 1.0
    sampling = replace(sampling, audio=audio, seed=reply.seed, guidance_scale=scale)
    rows, tail = voice_rows(vocabulary(checkpoint), reply.codes)
    track, num_frames = (*packed(checkpoint, reply.text), END_OF_WORDS), reply.codes.shape[1]
    return Prompt("tts", rows, sampling, delayed_tail=tail, track=track, num_reference_rows=num_frames, condition=made)


def rows_of(rows: list[list[int]], checkpoint: Path) -> np.ndarray:
    """Return the rows of a reply without the last, in the authors' form, [n, 1 + K].

    Rows of the engine have no second text, so the text is that of stream 0.
    """
    known, ids = vocabulary(checkpoint), np.array(rows[:-1])
    is_empty = ids == known.nothing
    ids[:, 0][ids[:, 0] == known.wish_id] = PAD
    ids[:, 1:] -= np.array(known.first_codes)
    return np.where(is_empty, -1, ids)
