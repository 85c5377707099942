"""Serving profiles: the first chunk and the number of chunks of a reply, as docs/production.md states them."""

import re
from pathlib import Path

import pytest

from stretto.convert.profiles import PROFILES, ServingProfile
from stretto.families.tiny.family import TINY
from stretto.streams.chunking import ChunkPolicy, DecoderLoad, Pacer

PAGE = Path(__file__).parents[2] / "docs/production.md"
RATE, REPLY_S, LATENCY_S, TICK_S = 80 / 3, 10.0, 0.02, 0.005  # frames of the bundled codec; an idle decoder


def paced(profile: ServingProfile, speed: float) -> tuple[float, int]:
    """Return the time of the first samples in seconds, and the number of chunks of a reply of REPLY_S.

    Args:
        profile: The profile.
        speed: Seconds of audio that the model generates in a second.
    """
    family, now = profile.with_chunks(TINY), [0.0]
    sizes = (family.first_chunk_frames, family.steady_chunk_frames)
    policy = ChunkPolicy(*sizes, playout_s=profile.playout_s, frame_rate=RATE)
    pacer = Pacer(policy, lambda: DecoderLoad(LATENCY_S), lambda: now[0])
    total, sent, num_chunks, first_s = int(REPLY_S * RATE), 0, 0, 0.0
    while (ready := min(total, int(now[0] * RATE * speed))) < total:
        if size := pacer.num_to_send(ready - sent):
            first_s, sent, num_chunks = first_s or now[0] + LATENCY_S, sent + size, num_chunks + 1
        now[0] += TICK_S
    return first_s, num_chunks + -(-(total - sent) // family.steady_chunk_frames)


@pytest.mark.parametrize("name", PROFILES)
def test_page_states_the_chunks_of_each_profile(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|((?: [\d.]+ s, \d+ \|)+)$", PAGE.read_text(), re.MULTILINE)
    stated = [(float(first), int(number)) for first, number in re.findall(r"([\d.]+) s, (\d+)", row)]
    assert stated == [(round(first, 2), number) for first, number in (paced(PROFILES[name], s) for s in (1.1, 2, 4))]
