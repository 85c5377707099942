"""Texts of a measurement: sentences of the lengths that assistants and readers have spoken."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

# `{}` becomes a number, so that few texts are the same.
SENTENCES = (
    "Yes, of course.",
    "One moment, please.",
    "Thank you, I have that.",
    "Your table for {} is ready.",
    "It is {} degrees and cloudy in Vienna.",
    "The next train leaves from platform {}.",
    "I found {} results. Would you like to hear the first one?",
    "Your parcel was handed over this morning, and signed for by a neighbour.",
    "Turn left in {} metres, then keep to the right lane.",
    "The meeting has moved to Thursday, so you have {} minutes to prepare the slides.",
    "I am sorry, the kitchen closes early today. Shall I look for another restaurant nearby?",
    "To reset the device, hold the button until the light turns blue, and then release it.",
    "She opened the window, and the smell of rain came in from the garden.",
    "About {} people live in the valley, most of them in the two villages along the river.",
    "The order of {} chairs has left the warehouse. It should arrive on Monday, between nine and twelve o'clock.",
    "Nobody had expected the old lighthouse to burn again, but that night its beam went round and round above the sea.",
    "Your balance is {} euros. The last payment was made to the city library, and two more are waiting for approval.",
    "Before you begin, check that the pump is switched off, that the valve is closed, and that there is no water left "
    "in the filter. Then remove the {} screws at the front.",
    "When the first snow had fallen, the shepherds brought their flocks down from the hills, and for a few weeks the "
    "narrow streets of the town were full of bells and steaming breath.",
    "Here is the summary. Sales rose by {} percent, mostly in the north. Returns fell for the third month in a row. "
    "The new depot opens in spring, and eleven people have already been hired for it.",
)


def mixed(texts: Sequence[str] = SENTENCES, seed: int = 0) -> Iterator[str]:
    """Yield shuffled texts endlessly, with a random number for `{}`. Equal seeds give equal texts."""
    choice = random.Random(seed)
    while True:
        for text in choice.sample(texts, len(texts)):
            yield text.replace("{}", str(choice.randrange(11, 999)))


def lines_of(path: Path) -> list[str]:
    """Return the non-empty lines of a UTF-8 file; raise ValueError if there are none."""
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"--texts: expected a file with a text in each line, got no text in {path}")
    return texts
