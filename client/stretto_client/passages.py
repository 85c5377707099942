"""Passages of a streamed text, divided where a mark changes the voice."""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from stretto_client.markup import MarkupReader
from stretto_client.ssml import VoiceChange
from stretto_client.unread import UnreadText
from stretto_contract.sentence_ends import PAUSE, full_stop, last_sign


class Passages(UnreadText):
    """Buffer of a streamed text that returns one passage at a time.

    Attributes:
        spoken: Text of the current passage that has been returned.
    """

    def __init__(self, pieces: AsyncGenerator[str, None], reader: MarkupReader):
        super().__init__(self._divided(pieces, reader))
        self._changes = deque[VoiceChange]()  # change at each PAUSE in the buffer
        self._voice = VoiceChange(None)
        self.spoken = ""

    async def _divided(self, pieces: AsyncGenerator[str, None], reader: MarkupReader) -> AsyncIterator[str]:
        """Yield the text with a PAUSE for each change of the voice. Any other pause ends a sentence."""
        last = ""
        async with aclosing(pieces):
            async for piece in pieces:
                text = ""
                for token in re.split(f"({PAUSE})", piece):
                    change = reader.pauses.popleft() if token == PAUSE and reader.pauses else None
                    if isinstance(change, VoiceChange):
                        self._changes.append(change)
                        text += PAUSE
                    else:
                        text += full_stop(last) + " " if token == PAUSE else token
                    last = last_sign(text) or last
                yield text

    @property
    def is_at_change(self) -> bool:
        """True if the current passage has been returned and the voice changes after it."""
        return self._text.startswith(PAUSE)

    @property
    def is_complete(self) -> bool:
        """True if all of the current passage has been returned."""
        return self.is_at_change or super().is_complete

    @property
    def _is_decided(self) -> bool:
        """True if the buffer has text or a change of the voice, or takes no more text."""
        return bool(self._text.strip()) or PAUSE in self._text or self._is_full or self._is_complete

    def _end(self, max_chars: int) -> int:
        end = self._text.find(PAUSE, 0, max_chars)
        return max_chars if end < 0 else end

    async def pop(self, max_chars: int, patience_s: float | None = None) -> str:
        text = await super().pop(max_chars, patience_s)
        self.spoken += text
        return text

    async def begin(self) -> VoiceChange | None:
        """Go to the next passage that is not blank; return its voice, or None at the end of the text."""
        self.spoken = ""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_decided)
                blank, mark, after = self._text.partition(PAUSE)
                if blank.strip() or (blank and not mark and not self._is_complete):
                    return self._voice
                if not mark:
                    break
                self._voice = self._changes.popleft()
                self._text = after
                self._changed.notify_all()
        if self._failure is not None:
            raise self._failure
        return None
