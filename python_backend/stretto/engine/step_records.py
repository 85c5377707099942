"""Records sent to the worker with each step: new requests, continued requests and streamed text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData

from stretto.engine.tracks import Track
from stretto.records.prompt import Prompt


@dataclass
class SpeechRequestData(NewRequestData):
    """vLLM's record of a newly scheduled request, with our fields added.

    Attributes:
        prompt: The request's prompt, without what only the front end needs.
        codes: Ids of streams 1 to S - 1 for all rows so far, prompt and reply, int32 [n, S - 1].
        state: Values of `SegmentRules.sent_state` after the newest row; empty for the state before a reply.
    """

    prompt: Prompt | None = None
    codes: np.ndarray | None = None
    track: Track | None = None
    state: Sequence[int] = ()

    @classmethod
    def extending(
        cls,
        data: NewRequestData,
        prompt: Prompt,
        codes: np.ndarray,
        track: Track | None = None,
        state: Sequence[int] = (),
    ) -> "SpeechRequestData":
        """Return a copy of vLLM's `data`, extended by the request's prompt, rows, text stream and state."""
        stock = {column.name: getattr(data, column.name) for column in fields(NewRequestData)}
        return cls(**stock, prompt=prompt, codes=codes, track=track, state=state)


class NewText(NamedTuple):
    """Streamed text or live audio that has arrived for a request since its last step.

    Attributes:
        entries: Entries of the slot's tables, int32 [n, 1 + K]; see `Track.entries`.
        limits: Limits of the reply (`SlotLimits`), keyed by name; empty until the text or audio is complete.
    """

    entries: np.ndarray
    limits: Mapping[str, int]


@dataclass
class SpeechCachedRequests(CachedRequestData):
    """vLLM's record of continued requests, with the new text and the first audio rows of replies.

    Attributes:
        new_text: Streamed text and live audio that have arrived since the last step, keyed by request id.
        audio_starts: Positions of the first audio rows that have become known since the last step, keyed by request id.
    """

    new_text: Mapping[str, NewText] = field(default_factory=dict)
    audio_starts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def extending(
        cls, data: CachedRequestData, new_text: Mapping[str, NewText], audio_starts: Mapping[str, int]
    ) -> "SpeechCachedRequests":
        """Return a copy of vLLM's `data`, extended by the new text and the first audio rows of replies."""
        stock = {column.name: getattr(data, column.name) for column in fields(CachedRequestData) if column.init}
        return cls(**stock, new_text=new_text, audio_starts=audio_starts)
