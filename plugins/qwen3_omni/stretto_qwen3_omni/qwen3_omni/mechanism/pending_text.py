"""Queue for the text of a reply between the writer and the speaker."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from stretto.engine.feeds import TextFeed


class PendingText:
    """Text of a reply, which the writer generates and the speaker reads.

    Args:
        spoken: Function that drops the ids that the speaker may not read (`TalkerPrompts.spoken`).
        end_of_reply: Id that ends the writer's reply.
        end_id: Id that ends the speaker's text.
    """

    def __init__(self, spoken: Callable[[Sequence[int]], list[int]], end_of_reply: int, end_id: int):
        self._spoken = spoken
        self._end_of_reply = end_of_reply
        self._end_id = end_id
        self._states: np.ndarray | None = None
        self._words: list[int] = []
        self._is_complete = False
        self._has_begun = asyncio.Event()
        self._feed: TextFeed | None = None

    def listen(self, states: np.ndarray | None, ids: list[int]) -> None:
        """Store the ids that the writer has generated (`listener` of `SpeechLLM.reply_chunks`).

        Args:
            states: Hidden states of the writer's prompt, float32 [n, W], which arrive before the first word; None in
                later calls. After a preemption, the same states may arrive again.
        """
        if states is not None and not self._has_begun.is_set():
            self._states = states
        self._words += self._spoken([token_id for token_id in ids if token_id != self._end_of_reply])
        if self._words:
            self._has_begun.set()
        self._pass_on()

    def end(self) -> None:
        """Mark the text as complete."""
        self._is_complete = True
        self._has_begun.set()
        self._pass_on()

    async def begin(self) -> tuple[list[int], np.ndarray | None]:
        """Wait for the first word; return it, if there is one, and the hidden states, which are then freed here."""
        await self._has_begun.wait()
        first = self._words[:1]
        self._words = self._words[1:]
        states = self._states
        self._states = None
        return first, states

    def feed(self, feed: TextFeed) -> None:
        """Send the words after the first one to `feed` as they are generated, up to the length limit of the speech."""
        self._feed = feed
        self._pass_on()

    def _pass_on(self) -> None:
        feed = self._feed
        if feed is None or feed.is_complete:
            return
        words = self._words[: feed.room]
        self._words = []
        is_last = self._is_complete or feed.room == len(words)
        if words or is_last:
            feed.write([*words, *([self._end_id] if is_last else [])], is_last)
