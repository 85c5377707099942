"""Texts for measurements and small vocabularies."""

import itertools
from collections.abc import Iterator

CITIES = ("Oslo", "Rome", "Boston", "Paris", "Tokyo", "Vienna", "Dublin", "Denver")
ANIMALS = ("dog", "horse", "rabbit", "tiger", "mouse", "monkey", "bird")


def texts() -> Iterator[str]:
    """Yield sentences of similar length. The first 5,040 differ from one another."""
    for number, city, animal in itertools.product(range(10, 100), CITIES, ANIMALS):
        yield f"The train to {city} leaves in {number} minutes and the {animal} is late."
