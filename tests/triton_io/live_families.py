"""Families whose replies run in step with a recording: one writes text, the other speaks."""

from dataclasses import replace

from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.family.input_tracks import CodeTrack
from tests.small_vocabularies import CSM


def with_recording(family: Family) -> Family:
    """Return a family with three further streams, for the codes of a recording."""
    num_streams = family.layout.num_output_streams
    layout = replace(family.layout, num_input_only=3)
    return replace(family, layout=layout, track=CodeTrack(range(num_streams, num_streams + 3)))


LISTENS = with_recording(replace(TINY, layout=replace(TINY.layout, codebook_streams=()), frame_rate=12.5))
SPEAKS = with_recording(CSM)
