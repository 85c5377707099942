"""Texts that are read in pieces, as writers send them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from stretto_client.markup import Markup, open_reader


def cut(text: str, sizes: Sequence[int] = ()) -> list[str]:
    """Return a text in pieces of these sizes in turn; in one piece if there are none."""
    ends = itertools.accumulate(itertools.cycle(sizes or [len(text) + 1]))
    inside = list(itertools.takewhile(lambda end: end < len(text), ends))
    return [text[start:end] for start, end in itertools.pairwise([0, *inside, len(text)])]


def read(text: str, markup: Markup = "auto", sizes: Sequence[int] = (), tags: Sequence[str] | None = None) -> str:
    """Return the spoken text of a text that arrives in pieces, for a model that renders some tags."""
    reader = open_reader(markup, tags)
    return "".join(map(reader.add, cut(text, sizes))) + reader.end()


async def written(*pieces: str, error: Exception | None = None) -> AsyncIterator[str]:
    """Yield the pieces of a text; then raise an error, if there is one."""
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece
    if error is not None:
        raise error
