"""MOSS-TTS-Realtime through the real server: the release's files, converter, repository, server, client.

Replies equal those of the slow reference for the checkpoint, and those to the same text sent word by word.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_realtime_replies import TEXTS, heard_codes
from plugins.moss.lab.random_moss_realtime import KINDS
from plugins.moss.tests.test_moss_tts_realtime import write
from stretto.codecs.base import load_codec
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor
from stretto.testing.reference import ReferenceModel
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.listening import Answer
from tests.server.published import check_sound, prepared

# By night: test_moss_tts_realtime.py compares the same release with the authors' loop; its prompts and its
# codec have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

TEXT, NUM_FRAMES, NUM_CODEBOOKS = TEXTS[1], 45, KINDS["small"][0]
OPTIONS: dict[str, Any] = {
    "audio": {"temperature": 2.0, "max_rows": NUM_FRAMES},
    "chunking": {"first_frames": 2, "steady_frames": 5},
    "output": {"codes": True},
    "seed": 3,
}


def convert(folder: Path) -> Path:
    checkpoint = SmallRelease.written(folder / "published", "small", write).checkpoint
    (checkpoint / "model.safetensors").symlink_to(next(checkpoint.glob("model-*.safetensors")))  # the reference's
    return checkpoint


served = serves(convert)


def codes_of(checkpoint: Path, options: dict[str, Any], **inputs: Any) -> np.ndarray:
    """Return the codes [K, T] of the slow reference's reply to a request."""
    prompt, family = prepared(Preprocessor(checkpoint), options, inputs), family_at(checkpoint)
    rows, lead = ReferenceModel(checkpoint, family, family.max_model_len).reply(prompt)
    assert lead > 1e-4
    starts = np.array([[ids.start] for ids in family.layout.audio])
    return np.array(rows[:-1])[:, :NUM_CODEBOOKS].T - starts


def check(served: ServedCheckpoint, answer: Answer, expected: np.ndarray) -> None:
    assert answer.error is None
    np.testing.assert_array_equal(answer.codes, expected)
    codec = load_codec("moss", served.checkpoint, num_codebooks=NUM_CODEBOOKS)
    check_sound(answer.pcm, expected, codec, finish_reason=answer.report["finish_reason"])
    assert len(answer.pcm) == expected.shape[1] * 1920  # 24 kHz


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_served_model_streams_the_reference_codes(served: ServedCheckpoint, temperature: float) -> None:
    options = OPTIONS | {"audio": OPTIONS["audio"] | {"temperature": temperature}}
    answer = served.server.ask(options, text=TEXT)
    check(served, answer, codes_of(served.checkpoint, options, text=TEXT))


def test_served_cloned_voice_matches_the_reference(served: ServedCheckpoint) -> None:
    turns = [{"role": "system", "codes": heard_codes("small").tolist()}, {"role": "user", "text": TEXT}]
    inputs = {"messages": json.dumps(turns)}
    expected = codes_of(served.checkpoint, OPTIONS, **inputs)
    check(served, served.server.ask(OPTIONS, **inputs), expected)
    assert not np.array_equal(expected, codes_of(served.checkpoint, OPTIONS, text=TEXT)[:, : expected.shape[1]])


@pytest.mark.parametrize("opening", [0, 3, 20], ids=["nothing first", "half a word first", "words first"])
@pytest.mark.parametrize("text", TEXTS[:2], ids=["shorter than the prompt's part", "longer"])
def test_streamed_text_gives_the_same_speech_as_complete_text(
    served: ServedCheckpoint, opening: int, text: str
) -> None:
    at_once = served.server.ask(OPTIONS, text=text)
    assert at_once.error is None
    stream = served.server.stream(OPTIONS | {"text_mode": "open"}, text=text[:opening])
    responses = [stream.next()]
    assert responses[0].event is not None
    session = responses[0].event["session"]
    pieces = [text[start : start + 3] for start in range(opening, len(text), 3)] or [""]
    for part, piece in enumerate(pieces):
        record = {"id": session, "part": part, "is_last": part + 1 == len(pieces)}
        assert served.server.ask(text=piece, session=json.dumps(record)).error is None
    answer = stream.listen()
    assert answer.error is None
    answer.responses = [*responses, *answer.responses]
    np.testing.assert_array_equal(answer.codes, at_once.codes)
    np.testing.assert_allclose(answer.pcm, at_once.pcm, atol=1e-4)
