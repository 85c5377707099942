"""Request parameters as they travel inside vLLM's sampling parameters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from stretto.engine.request.rules import SegmentRules
from stretto.records.prompt import HeardAudio, Prompt
from stretto.records.sampling import SamplingConfig

KEY = "speech"


@dataclass(frozen=True, slots=True)
class SpeechParams:
    """Parameters of one request of a reply, conditional or unconditional.

    Attributes:
        task: Name of the family's task.
        sampling: Sampling options.
        codes: Ids of streams 1 and up of every prompt row, int32 [P, S - 1].
        is_unconditional: True for the unconditional request of a CFG pair.
        audios: Audio inputs and the prompt rows that they replace.
        num_delayed_rows: Number of rows after the prompt in `codes`, for streams already begun when the reply begins.
        track: Ids of the streamed text input for the first rows of the reply.
        is_open: True if more text follows.
    """

    task: str
    sampling: SamplingConfig
    codes: np.ndarray
    is_unconditional: bool = False
    audios: tuple[HeardAudio, ...] = ()
    num_delayed_rows: int = 0
    track: tuple[int, ...] = ()
    is_open: bool = False

    @property
    def is_guided(self) -> bool:
        return self.sampling.guidance_scale != 1.0

    def to_extra_args(self) -> dict[str, Any]:
        """Return these parameters as plain data for `SamplingParams.extra_args`."""
        record = {
            "task": self.task,
            "sampling": self.sampling.to_json(),
            "codes": self.codes.astype(np.int32).tobytes(),
            "num_rows": len(self.codes),
            "is_unconditional": self.is_unconditional,
            "num_delayed_rows": self.num_delayed_rows,
            "track": self.track,
            "is_open": self.is_open,
            "audios": [
                (each.first_row, each.num_rows, each.features.shape, each.features.astype(np.float32).tobytes())
                for each in self.audios
            ],
        }
        return {KEY: record}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any], num_streams: int) -> "SpeechParams":
        """Return the parameters in `extra_args`, for rows of `num_streams` input streams."""
        record = extra_args[KEY]
        sampling = SamplingConfig.from_json("sampling", record["sampling"])
        codes = np.frombuffer(record["codes"], np.int32).reshape(record["num_rows"], num_streams - 1)
        audios = tuple(
            HeardAudio(first_row, num_rows, np.frombuffer(features, np.float32).reshape(shape))
            for first_row, num_rows, shape, features in record["audios"]
        )
        is_unconditional, num_delayed_rows = record["is_unconditional"], record["num_delayed_rows"]
        track, is_open = tuple(record["track"]), record["is_open"]
        return cls(record["task"], sampling, codes, is_unconditional, audios, num_delayed_rows, track, is_open)


def sampling_params(prompt: Prompt, rules: SegmentRules) -> SamplingParams:
    """Return vLLM's sampling parameters for `prompt`: its stop condition, and our parameters as extra arguments."""
    codes, num_delayed_rows = prompt.rows[:, 1:], 0
    if prompt.delayed_tail is not None:
        codes, num_delayed_rows = np.concatenate([codes, prompt.delayed_tail]), len(prompt.delayed_tail)
    params = SpeechParams(
        prompt.task,
        prompt.sampling,
        codes,
        audios=prompt.audios,
        num_delayed_rows=num_delayed_rows,
        track=prompt.track,
        is_open=prompt.is_open,
    )
    return SamplingParams(
        temperature=0.0,
        max_tokens=rules.max_model_len - len(prompt.rows),
        stop_token_ids=[rules.family.end_of_reply],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=params.to_extra_args(),
    )
