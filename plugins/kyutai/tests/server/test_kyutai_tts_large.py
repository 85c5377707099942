"""Kyutai TTS 1.6B through the real server: named voices, a dialogue and guidance as conditions, over each API."""

import asyncio
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from plugins.kyutai.tests.kyutai_tts_release import TURNS, make_checkpoint, text_of
from plugins.kyutai.tests.server.test_kyutai_tts import OPTIONS, frames, heard, written
from stretto.codecs.base import load_codec
from stretto.preprocessing.request import RawRequest
from stretto_client import SpeechClient
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import openai_client
from tests.server.published import check_sound

# By night: tests/engine/test_kyutai_tts_large.py compares the engine with the authors' rows.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
TEXT = text_of(TURNS)
VOICES = "VCTK/p226.wav, expresso/ex03.wav"
DIALOGUE = "Speaker 2: it is\nSpeaker 1: open"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("kyutai_tts")
    checkpoint = make_checkpoint(folder, "large")
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def expected(served: ServedCheckpoint, voices: str, scale: float, text: str = TEXT) -> np.ndarray:
    """Return the codes of a reply by the engine, [K, n]."""
    options = {"seed": 5, "voice": voices, "guidance_scale": scale}
    return frames(served, RawRequest(text=text, options=json.dumps(options)))[1]


def test_served_dialogue_has_the_codes_of_the_engine(served: ServedCheckpoint) -> None:
    codes = expected(served, VOICES, 3.5)
    answer = served.server.ask(OPTIONS | {"voice": VOICES, "guidance_scale": 3.5}, text=TEXT)
    assert answer.error is None
    assert (answer.codes[1:] == codes).all()
    check_sound(answer.pcm, codes, load_codec("mimi", served.checkpoint, num_codebooks=12))
    assert (answer.report["finish_reason"], answer.report["guided_frames"]) == ("stop", 0)
    words = [word["word"] for event in answer.events for word in event["words"]]
    assert words == "who said that the garden door (is) open come in my friend".split()


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    for options, message in (
        ({"voice": "none"}, "options.voice: expected one to 5 of these, separated by commas: expresso"),
        ({"guidance_scale": 2.2}, "options.guidance_scale: expected one of 1, 1.5, 2, 2.5, 3, 3.5, 4, got 2.2"),
    ):
        answer = served.server.ask(options, text=TEXT)
        assert answer.error is not None
        assert message in answer.error


async def test_word_by_word_text_yields_same_speech_as_whole_text(served: ServedCheckpoint) -> None:
    wanted, output = {"voice": VOICES, "guidance_scale": 1.5, "seed": 5}, {"codes": True}
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        profile = await client.profile()
        assert (profile.max_voices, profile.guidance_scales[:2]) == (5, (1.0, 1.5))
        whole = await heard(client.speak(TEXT, output=output, **wanted))
        made = await asyncio.gather(
            heard(client.speak(written(TEXT.splitlines(keepends=True), 0.05), output=output, **wanted)),
            heard(client.speak(written(list(TEXT), 0.01), output=output, **wanted)),
        )
    # The client ends complete lines with a full stop. After "that" and "in", the next line may continue the sentence.
    sent = TEXT.replace("open\n", "open.\n")
    assert whole[0] == expected(served, VOICES, 1.5, sent).tolist()
    assert made[0] == made[1] == whole


async def test_speech_over_http_takes_voices_and_guidance(served: ServedCheckpoint) -> None:
    """A model without a voice named `alloy` uses its first voice for it."""
    for voice, named in (("VCTK/p226.wav", "vctk/p226.wav"), ("alloy", "expresso/ex03.wav")):
        num_samples = 1920 * expected(served, named, 4.0, DIALOGUE).shape[1]
        async with openai_client(served.server.grpc) as client:
            made = await client.audio.speech.create(
                model="tts-1",
                voice=voice,
                input=DIALOGUE,
                response_format="wav",
                extra_body={"seed": 5, "guidance_scale": 4},
            )
        pcm, rate = soundfile.read(io.BytesIO(made.content), dtype="int16")
        assert (len(pcm), rate) == (num_samples, 24_000)
