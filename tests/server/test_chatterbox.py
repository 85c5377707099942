"""Chatterbox through the real server: release, converter, repository, server, client.

Codes are those of its authors' own T3, samples those of one decode in the voice that was asked for.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoints.random_chatterbox import command, write_release
from stretto.codecs.base import Window, load_codec
from stretto.convert.command import main
from stretto.families.chatterbox.family import END_OF_SPEECH
from tests.chatterbox_release import RECORD, REPLIES
from tests.chatterbox_voices import at_24_khz, authors, networks, voice_file
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.test_supervision import kill, stub_of

# By night: tests/engine/test_chatterbox.py holds the same release to the same replies; its prompts and its codec have
# tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

RECORDED = "odd"  # recording of a voice, and the name of a voice with its file
NUM_CODES = 6561  # ids of speech from here on are no codes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("chatterbox")
    release, of_authors = write_release(folder / "release"), authors()
    voice = (of_authors[f"{RECORDED}.t3_tokens"], of_authors[f"{RECORDED}.speaker_emb"])
    torch.save(voice_file(*voice, networks().sound(at_24_khz(RECORDED))), release / "voices" / f"{RECORDED}.pt")
    checkpoint = folder / "checkpoint"
    assert main(command(release, checkpoint)) == 0
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def options_of(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the options that produce a reply of the fixture."""
    drawn = {name: reply[name] for name in ("temperature", "top_p", "min_p")}
    return {
        "audio": drawn | {"max_rows": RECORD["num_codes"]},
        "guidance_scale": 1 + reply["weight"],
        "repetition_penalty": reply["penalty"],
        "seed": reply["seed"],
        "voice": reply["voice"],
        "output": {"codes": True},
    }


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply["text"])
def test_a_text_is_spoken_as_the_authors_model_says_it(served: ServedCheckpoint, reply: dict[str, Any]) -> None:
    answer = served.server.ask(options_of(reply), text=reply["text"])
    assert answer.error is None
    drawn = [code for code in reply["codes"] if code != END_OF_SPEECH]
    wanted = np.array([code for code in drawn if code < NUM_CODES])[None]
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    np.testing.assert_array_equal(codes, wanted)
    codec, voice = load_codec("s3gen", served.checkpoint), float(reply["voice"] == "anna")
    window = Window(torch.from_numpy(wanted)[None], 0, 0, torch.zeros(1), torch.full((1, 1), voice))
    (pcm,) = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
    np.testing.assert_allclose(pcm, codec.decode(window)[0][0].numpy(), atol=1e-4)
    assert len(pcm) == 960 * wanted.shape[1]  # 24 kHz
    assert np.abs(pcm).max() > 0.01
    assert answer.report["num_frames"] == answer.report["guided_frames"] == len(drawn)


def recorded(pcm: np.ndarray, text: str) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording, float32 [n] at 24 kHz."""
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": text}]
    return {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": np.array([24_000], np.int32)}


def test_a_recording_is_spoken_in_as_its_voice_file_is(served: ServedCheckpoint) -> None:
    """The second request finds the voice in all caches, and the third a new decoder, which has none.

    Another recording is another voice.
    """
    options = options_of(REPLIES[0]) | {"voice": RECORDED, "seed": 5}
    named = served.server.ask(options, text="hello you")
    del options["voice"]
    answers = [served.server.ask(options, **recorded(at_24_khz(RECORDED), "hello you")) for _ in range(2)]
    kill(served.server, stub_of(served.server, "acoustic_decoder"))
    for name in (RECORDED, "stereo"):
        answers.append(served.server.ask(options, **recorded(at_24_khz(name), "hello you")))
    spoken = []
    for answer in (named, *answers):
        assert answer.error is None
        codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
        (pcm,) = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
        spoken.append((codes, pcm))
    (codes, pcm), *recordings, other = spoken
    for of_recording in recordings:
        np.testing.assert_array_equal(of_recording[0], codes)
        np.testing.assert_allclose(of_recording[1], pcm, atol=1e-3)
    assert other[1].shape != pcm.shape or np.abs(other[1] - pcm).max() > 1e-2


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    turns = [{"role": "user", "codes": [[1, 2]]}]
    for inputs, message in (
        ({"text": " "}, "text: expected text of at least one character"),
        ({"text": "a", "options": '{"voice": "bob"}'}, "options.voice: expected one of default, anna, odd"),
        ({"text": "a" * 65}, "text: expected"),
        ({"messages": json.dumps(turns)}, "messages[0]: expected text for task 'tts', got audio"),
        (
            recorded(np.zeros(24_000, np.float32), "a"),
            "messages[0].audio: expected a recording of a voice, got silence",
        ),
        (
            recorded(at_24_khz(RECORDED), "a") | {"options": '{"voice": "anna"}'},
            "options.voice: expected no value with a recording of the voice, got 'anna'",
        ),
    ):
        served.server.refuses(inputs, message)
