"""Magpie TTS through the real server: the archives of a release, converter, repository, server, client.

Replies equal those of the slow reference for the release, and their samples one decode of their codes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.magpie.tests.magpie_reference import MagpieReference
from plugins.magpie.tests.test_magpie import write
from stretto.codecs.base import load_codec
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound, prepared

# By night: test_magpie.py compares the rows of the same release with the reference.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

KIND = "stacked"
TEXT = "The garden door is open."
OPTIONS: dict[str, Any] = {
    "audio": {"max_rows": 30},
    "chunking": {"first_frames": 2, "steady_frames": 5},
    "output": {"codes": True},
    "seed": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"voice": "bob", "language": "fr", "audio": {"max_rows": 30, "temperature": 0.0}},
    "unguided": {"voice": "cid", "language": "de", "guidance_scale": 1.0},
}


def convert(folder: Path) -> Path:
    return SmallRelease.written(folder / "published", KIND, write).checkpoint


served = serves(convert)


@pytest.mark.parametrize("case", CASES)
def test_served_model_streams_the_reference_codes(served: ServedCheckpoint, case: str) -> None:
    options = OPTIONS | CASES[case]
    answer = served.server.ask(options, text=TEXT)
    assert answer.error is None
    family = family_at(served.checkpoint)
    prompt = prepared(Preprocessor(served.checkpoint), options, {"text": TEXT})
    assert prompt.condition is not None
    voice = family.voices.index(CASES[case].get("voice", family.voices[0]))
    reply = MagpieReference(KIND).reply(voice, prompt.condition.ids, prompt.sampling, family)
    expected = np.array(reply.codes).T
    np.testing.assert_array_equal(answer.codes[1:], expected)  # after the positions that rows attended to
    codec = load_codec("nanocodec", served.checkpoint)
    check_sound(answer.pcm, expected, codec, finish_reason=answer.report["finish_reason"])
