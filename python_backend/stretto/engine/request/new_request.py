"""What the scheduler tells the worker of a request that gets a slot."""

from dataclasses import dataclass, fields

import numpy as np
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.request.params import SpeechParams
from stretto.engine.request.track import Track


@dataclass
class SpeechRequestData(NewRequestData):
    """vLLM's record, with ours.

    codes: int32 [n, S - 1], the streams 1 ... of all its rows so far, prompt and reply. track: what its text track
    goes on with.
    """

    params: SpeechParams | None = None
    codes: np.ndarray | None = None
    track: Track | None = None

    @classmethod
    def of(
        cls, data: NewRequestData, params: SpeechParams, codes: np.ndarray, track: Track | None = None
    ) -> "SpeechRequestData":
        """`data` with the request's parameters and history."""
        stock = {column.name: getattr(data, column.name) for column in fields(NewRequestData)}
        return cls(**stock, params=params, codes=codes, track=track)
