"""Scheduler-to-worker records of newly scheduled requests and of streamed text updates."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData

from stretto.engine.request.params import SpeechParams
from stretto.engine.request.track import Track


@dataclass
class SpeechRequestData(NewRequestData):
    """vLLM's record of a newly scheduled request, extended.

    Attributes:
        params: Request parameters.
        codes: Ids of streams 1 and up in all rows so far, prompt and reply, int32 [n, S - 1].
        track: Streamed text input, if any.
    """

    params: SpeechParams | None = None
    codes: np.ndarray | None = None
    track: Track | None = None

    @classmethod
    def of(
        cls, data: NewRequestData, params: SpeechParams, codes: np.ndarray, track: Track | None = None
    ) -> "SpeechRequestData":
        """Return `data` extended by the request's parameters, history and streamed text."""
        stock = {column.name: getattr(data, column.name) for column in fields(NewRequestData)}
        return cls(**stock, params=params, codes=codes, track=track)


class TextNews(NamedTuple):
    """Text that has arrived for a request.

    Attributes:
        first_row: Row of the first id.
        ids: Ids of that row and the following ones.
        min_rows: Least number of frames of the reply, once the text is complete; None before.
    """

    first_row: int
    ids: list[int]
    min_rows: int | None


@dataclass
class SpeechCachedRequests(CachedRequestData):
    """vLLM's record of the running requests, extended by the text that has arrived for each."""

    news: Mapping[str, TextNews] = field(default_factory=dict)

    @classmethod
    def of(cls, data: CachedRequestData, news: Mapping[str, TextNews]) -> "SpeechCachedRequests":
        """Return `data` extended by `news`."""
        stock = {column.name: getattr(data, column.name) for column in fields(CachedRequestData) if column.init}
        return cls(**stock, news=news)
