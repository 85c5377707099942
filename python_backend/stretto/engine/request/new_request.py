"""What the scheduler tells the worker of a request that gets a slot, and of texts that go on in one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData

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


class TextNews(NamedTuple):
    """What has come of a request's text: the ids of the rows from `first_row` on.

    min_rows: once the text has ended, how many frames the reply has at the least; None before.
    """

    first_row: int
    ids: list[int]
    min_rows: int | None


@dataclass
class SpeechCachedRequests(CachedRequestData):
    """vLLM's record of the requests that have slots, with the news of their texts by request."""

    news: Mapping[str, TextNews] = field(default_factory=dict)

    @classmethod
    def of(cls, data: CachedRequestData, news: Mapping[str, TextNews]) -> "SpeechCachedRequests":
        """`data` with the `news`."""
        stock = {column.name: getattr(data, column.name) for column in fields(CachedRequestData) if column.init}
        return cls(**stock, news=news)
