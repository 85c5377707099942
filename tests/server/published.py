"""Expected answers of the published families, from the slow reference that reads the release's own file."""

import codecs
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.releases.random_espnet import Published
from stretto.codecs.base import Codec, CodecSpec, load_codec
from stretto.decoder.reply_end import ended_in_pause
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import CUT_S
from stretto.records.prompt import Prompt
from stretto.testing.codec_streams import stream
from stretto_contract.finish_reasons import STOP
from tests.reference.published import PublishedReference


def prepared(preprocessor: Preprocessor, options: dict[str, Any], inputs: dict[str, Any]) -> Prompt:
    """Return the prompt for a request with these server inputs."""
    given = inputs | {"sample_rate": int(inputs["sample_rate"][0])} if "sample_rate" in inputs else inputs
    return preprocessor.prepare(RawRequest(**given, options=json.dumps(options)))


def cut(pcm: np.ndarray, spec: CodecSpec) -> np.ndarray:
    """Return the samples of a reply that a limit has ended, from all samples [n] up to the limit."""
    num_frames = math.ceil(CUT_S * spec.frame_rate)
    return ended_in_pause(pcm, num_frames * spec.samples_per_frame, spec.sample_rate)


def one_shot(codec: Codec, codes: np.ndarray, is_cut: bool) -> np.ndarray:
    """Return the samples [n] of codes [K, T], decoded in one pass, and ended in a pause if a limit ended the reply."""
    pcm = stream(codec, torch.from_numpy(codes)[None], [codes.shape[1]])[0].numpy()
    return cut(pcm, codec.spec) if is_cut else pcm


def check_sound(pcm: np.ndarray, codes: np.ndarray, codec: Codec, first: int = 0, finish_reason: str = STOP) -> None:
    """Check that samples [n] are audible and equal a one-shot decode of codes [K, T] from frame `first` on."""
    num_samples = codec.spec.samples_per_frame
    is_cut = finish_reason != STOP
    whole = one_shot(codec, codes, is_cut)
    num_cut = codes.shape[1] * num_samples - len(whole)
    assert 0 <= num_cut <= (CUT_S * codec.spec.sample_rate if is_cut else 0)
    np.testing.assert_allclose(pcm, whole[first * num_samples :], atol=1e-4)
    assert np.abs(pcm).max() > 0.01


@dataclass(frozen=True)
class Expected:
    """Expected reply to a task: its text, codes [S, T] of all streams, and samples of a one-shot decode.

    The samples end in a pause if a limit ends the reply.
    `lead` is the smallest margin of a reference decision.
    """

    task: str
    pieces: list[str]
    codes: np.ndarray
    pcm: np.ndarray
    lead: float


class PublishedModel:
    """A release, its converted checkpoint, and its expected answers."""

    def __init__(self, published: Published, checkpoint: Path):
        self.checkpoint, self.family = checkpoint, family_at(checkpoint)
        self._published = published

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return Preprocessor(self.checkpoint)

    @cached_property
    def _reference(self) -> PublishedReference:
        config = json.loads((self.checkpoint / "config.json").read_text())
        longest = min(self.family.max_model_len, config["max_position_embeddings"])
        return PublishedReference(self._published, self.family, longest)

    def answer(self, options: dict[str, Any], inputs: dict[str, Any]) -> Expected:
        """Return the expected reply to a request."""
        prompt = prepared(self._preprocessor, options, inputs)
        rows, lead = self._reference.reply(prompt)
        starts = audio_start(rows, self.family, prompt.task)
        texts = [row[0] for row in (rows if starts is None else rows[:starts])]
        codes = frames(rows[starts:], self.family) if starts is not None else np.zeros((0, 0), np.int64)
        longest = prompt.sampling.audio.max_rows - self.family.tail.num_closing_rows(self.family.layout.max_delay)
        is_cut = codes.shape[1] >= longest // self.family.rows_per_frame
        return Expected(prompt.task, self._pieces(texts), codes, self._sound(codes, is_cut), lead)

    def _pieces(self, token_ids: list[int]) -> list[str]:
        """Return the text that each token adds."""
        tokenizer, begins = TextTokenizer.at(self._published.tokenizer), self.family.subwords.start
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        said = [tokenizer.bytes_of(token_id - begins) for token_id in token_ids if token_id in self.family.subwords]
        pieces = [decoder.decode(each) for each in said] + [decoder.decode(b"", final=True)]
        return [piece for piece in pieces if piece]

    def _sound(self, codes: np.ndarray, is_cut: bool) -> np.ndarray:
        if not codes.size:
            return np.zeros(0, np.float32)
        acoustic = torch.from_numpy(codes[list(self.family.layout.codebook_streams)])
        codec = load_codec(self.family.codec, self.checkpoint, num_codebooks=len(acoustic))
        return one_shot(codec, acoustic.numpy(), is_cut)


def audio_start(rows: list[list[int]], family: Family, task: str) -> int | None:
    """Return the first row of the audio segment, or None if a reply has none."""
    segments = family.task(task).segments
    if len(segments) == 1:
        return 0 if segments[0].name == "AUDIO" else None
    return next(index for index, row in enumerate(rows) if row[0] == family.transition[-1]) + 1


def frames(rows: list[list[int]], family: Family) -> np.ndarray:
    """Return codes [S, T] of the frames before the end of audio; ids that are not codes become the nearest code."""
    layout = family.layout
    end = next(index for index, row in enumerate(rows) if row[0] == family.end_of_audio)
    num_frames = end - family.tail.num_closing_rows(layout.max_delay)
    codes = [
        [min(max(rows[t + delay][stream] - ids.start, 0), len(ids) - 1) for t in range(num_frames)]
        for stream, (ids, delay) in enumerate(zip(layout.audio, layout.delays, strict=False))
    ]
    return np.array(codes)
