"""Chatterbox Turbo through the real server and the gateway: release, converter, repository, server, clients.

Codes are those of its authors' own T3, samples those of one decode in the voice that was asked for.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch

from benchmarks.checkpoints.random_chatterbox import convert_turbo
from stretto.codecs.base import Window, load_codec
from stretto.families.chatterbox.family import END_OF_SPEECH
from tests.chatterbox_release import TURBO
from tests.chatterbox_voices import at_24_khz
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import gateway_port

# By night: tests/engine/test_chatterbox_turbo.py holds the same release to the same replies.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_CODES, SAMPLES_PER_CODE = 6561, 960


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("turbo")
    checkpoint = convert_turbo(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def options_of(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the options that produce a reply of the fixture."""
    drawn = {name: reply[name] for name in ("temperature", "top_k", "top_p")}
    return {
        "audio": drawn | {"max_rows": TURBO["num_codes"]},
        "repetition_penalty": reply["penalty"],
        "seed": reply["seed"],
        "voice": reply["voice"],
        "output": {"codes": True},
    }


@pytest.mark.parametrize("reply", TURBO["replies"], ids=lambda reply: reply["text"])
def test_codes_and_samples_are_the_authors(served: ServedCheckpoint, reply: dict[str, Any]) -> None:
    answer = served.server.ask(options_of(reply), text=reply["text"])
    assert answer.error is None
    wanted = np.array([code for code in reply["codes"] if code < NUM_CODES])[None]
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    np.testing.assert_array_equal(codes, wanted)
    codec, voice = load_codec("s3gen", served.checkpoint), float(reply["voice"] == "anna")
    window = Window(torch.from_numpy(wanted)[None], 0, 0, torch.zeros(1), torch.full((1, 1), voice))
    (pcm,) = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
    np.testing.assert_allclose(pcm, codec.decode(window)[0][0].numpy(), atol=1e-4)
    assert len(pcm) == SAMPLES_PER_CODE * (wanted.shape[1] + 3)  # three codes of silence follow
    assert answer.report["num_frames"] == len([code for code in reply["codes"] if code != END_OF_SPEECH])


def test_unsuitable_requests_are_refused(served: ServedCheckpoint) -> None:
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "a"}]
    recorded = {"messages": json.dumps(turns), "sample_rate": np.array([24_000], np.int32)}
    for inputs, message in (
        ({"text": "a", "options": '{"exaggeration": 0.5}'}, "options.exaggeration: expected no value"),
        ({"text": "a", "options": '{"guidance_scale": 2.0}'}, "options.guidance_scale: expected"),
        (
            {**recorded, "pcm_in": np.ones(72_000, np.float32)},
            "messages[0].audio: expected more than 5.0 s, got 3.0000 s",
        ),
        ({**recorded, "pcm_in": np.zeros(144_000, np.float32)}, "messages[0].audio: expected a recording of a voice"),
    ):
        served.server.refuses(inputs, message)


async def test_an_uploaded_voice_speaks_through_the_gateway(served: ServedCheckpoint, tmp_path: Path) -> None:
    """It speaks as the same recording does in a request to the server, until it is deleted."""
    wav = io.BytesIO()
    soundfile.write(wav, at_24_khz("long"), 24_000, format="WAV", subtype="FLOAT")
    form = {"name": "mine", "consent": "I agree."}
    options = {"seed": 7, "audio": {"temperature": 0.8, "max_rows": 12}}
    async with (
        gateway_port(served.server.grpc, voices=tmp_path / "voices") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1/audio", timeout=120) as http,
    ):
        added = await http.post("/voices", data=form, files={"audio_sample": ("me.wav", wav.getvalue())})
        assert added.status_code == 200, added.text
        voice = added.json()["id"]
        request = {"input": "A [laugh] cat.", "voice": voice, "response_format": "pcm", **options}
        spoken = [await http.post("/speech", json=request) for _ in range(2)]
        assert [answer.status_code for answer in spoken] == [200, 200]
        assert spoken[0].content == spoken[1].content
        named = await http.post("/speech", json=request | {"voice": "anna"})
        assert named.content != spoken[0].content
        short = io.BytesIO()
        soundfile.write(short, at_24_khz("short"), 24_000, format="WAV")
        refused = await http.post("/voices", data=form, files={"audio_sample": ("me.wav", short.getvalue())})
        assert refused.status_code == 400
        assert "more than 5.0 s" in refused.json()["error"]["message"]
        assert (await http.delete(f"/voices/{voice}")).status_code == 200
        assert (await http.post("/speech", json=request)).status_code == 400
    turns = [{"role": "system", "audio": "audio"}, {"role": "user", "text": "A [laugh] cat."}]
    direct = served.server.ask(options, messages=json.dumps(turns), audio=wav.getvalue())
    assert direct.error is None
    (pcm,) = [response.pcm for response in direct.responses if response.pcm is not None and len(response.pcm)]
    samples = np.frombuffer(spoken[0].content, np.int16) / 32768
    np.testing.assert_allclose(samples, pcm, atol=2e-3)
