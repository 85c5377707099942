"""Chatterbox through the real server and the gateway: releases, converter, repository, server, clients.

Codes equal those of the authors' T3, and samples a one-shot decode in the requested voice.
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

from plugins.chatterbox.lab.random_chatterbox import command, convert, convert_turbo, write_release
from plugins.chatterbox.tests.chatterbox_release import RECORD, REPLIES, options_of
from plugins.chatterbox.tests.chatterbox_voices import at_24_khz, authors, networks, voice_file
from stretto.codecs.base import Window, load_codec
from stretto.convert.command import main
from stretto_chatterbox.family import END_OF_SPEECH
from stretto_contract.finish_reasons import limit_of
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import gateway_port
from tests.server.published import cut
from tests.server.test_supervision import kill, stub_of

# By night: test_chatterbox.py of this plug-in holds the same releases to the same replies; prompts and the codec have
# tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

RECORDED = "odd"  # recording of a voice, and the name of a voice with its file
NUM_CODES = 6561  # ids of speech from here on are no codes
SAMPLES_PER_CODE = 960  # 24 kHz


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("chatterbox")
    release, of_authors = write_release(folder / "release"), authors()
    voice = (of_authors[f"{RECORDED}.t3_tokens"], of_authors[f"{RECORDED}.speaker_emb"])
    torch.save(voice_file(*voice, networks().sound(at_24_khz(RECORDED))), release / "voices" / f"{RECORDED}.pt")
    checkpoint = folder / "checkpoint"
    assert main(command(release, checkpoint)) == 0
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("multilingual")
    checkpoint = convert(folder, is_multilingual=True)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("turbo")
    checkpoint = convert_turbo(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def spoken(answer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes [1, T] and samples of a complete reply."""
    assert answer.error is None
    (pcm,) = answer.sounds
    return answer.codes, pcm


# Codes whose samples follow the last one: silence after Turbo's, and the last one of Multilingual is not played.
FURTHER_CODES = {"english": 0, "multilingual": -1, "turbo": 3}


@pytest.mark.parametrize(
    ("release", "reply"),
    [
        pytest.param(release, reply, id=f"{release} {reply['text']}")
        for release in FURTHER_CODES
        for reply in REPLIES[release]
    ],
)
def test_served_codes_and_samples_match_the_published_model(
    release: str, reply: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    served: ServedCheckpoint = request.getfixturevalue(release)
    answer = served.server.ask(options_of(reply, RECORD[release]["num_codes"]), text=reply["text"])
    codes, pcm = spoken(answer)
    drawn = [code for code in reply["codes"] if code != END_OF_SPEECH]
    wanted = np.array([code for code in drawn if code < NUM_CODES])[None]
    np.testing.assert_array_equal(codes, wanted)
    codec, voice = load_codec("s3gen", served.checkpoint), float(reply["voice"] == "anna")
    window = Window(torch.from_numpy(wanted)[None], 0, 0, torch.zeros(1), torch.full((1, 1), voice))
    whole = codec.decode(window)[0][0].numpy()
    whole = cut(whole, codec.spec) if limit_of(answer.report) else whole
    np.testing.assert_allclose(pcm, whole, atol=1e-4)
    assert len(pcm) == SAMPLES_PER_CODE * (wanted.shape[1] + FURTHER_CODES[release])
    assert np.abs(pcm).max() > 0.01
    assert answer.report["num_frames"] == len(drawn)
    assert release == "turbo" or answer.report["guided_frames"] == len(drawn)


async def test_served_model_requires_language_and_names_missing_packages(multilingual: ServedCheckpoint) -> None:
    """This holds directly and through the gateway, which also accepts codes with a region; other requests continue."""
    server, options = multilingual.server, {"seed": 7, "audio": {"temperature": 0.8, "max_rows": 12}}
    for given, message in (
        ({}, "options.language: expected one of arabic"),
        ({"language": "auto"}, "options.language: expected one of arabic"),
        ({"language": "ja"}, "options.language: expected one of arabic"),
    ):
        server.refuses({"text": "a", "options": json.dumps(given)}, message)
    server.refuses({"text": "a", "options": '{"language": "zh"}'}, "options.language: expected one of")
    _, pcm = spoken(server.ask({**options, "language": "french", "output": {"codes": True}}, text="Où est la gare ?"))
    async with (
        gateway_port(server.grpc) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1/audio", timeout=120) as http,
    ):
        request = {"input": "Où est la gare ?", "voice": "default", "response_format": "pcm", **options}
        answers = [await http.post("/speech", json=request | {"language": name}) for name in ("fr-FR", "French")]
        assert [answer.status_code for answer in answers] == [200, 200]
        for answer in answers:
            samples = np.frombuffer(answer.content, np.int16) / 32768
            np.testing.assert_allclose(samples, pcm, atol=2e-3)
        for language in ({}, {"language": "auto"}, {"language": "ja"}):
            refused = await http.post("/speech", json=request | language)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "language"


def recorded(pcm: np.ndarray, text: str) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording, float32 [n] at 24 kHz."""
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": text}]
    return {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": np.array([24_000], np.int32)}


def test_voice_from_a_recording_matches_its_voice_file(english: ServedCheckpoint) -> None:
    """The second request finds the voice in all caches, and the third a new decoder, which has none.

    Another recording gives another voice.
    """
    options = options_of(REPLIES["english"][0], 48) | {"voice": RECORDED, "seed": 5}
    named = english.server.ask(options, text="hello you")
    del options["voice"]
    answers = [english.server.ask(options, **recorded(at_24_khz(RECORDED), "hello you")) for _ in range(2)]
    kill(english.server, stub_of(english.server, "acoustic_decoder"))
    for name in (RECORDED, "stereo"):
        answers.append(english.server.ask(options, **recorded(at_24_khz(name), "hello you")))
    (codes, pcm), *recordings, other = map(spoken, (named, *answers))
    for of_recording in recordings:
        np.testing.assert_array_equal(of_recording[0], codes)
        np.testing.assert_allclose(of_recording[1], pcm, atol=1e-3)
    assert other[1].shape != pcm.shape or np.abs(other[1] - pcm).max() > 1e-2


async def test_uploaded_voice_via_gateway_matches_a_direct_request(turbo: ServedCheckpoint, tmp_path: Path) -> None:
    """It sounds like the same recording in a request to the server, until it is deleted."""
    wav = io.BytesIO()
    soundfile.write(wav, at_24_khz("long"), 24_000, format="WAV", subtype="FLOAT")
    form = {"name": "mine", "consent": "I agree."}
    options = {"seed": 7, "audio": {"temperature": 0.8, "max_rows": 12}}
    async with (
        gateway_port(turbo.server.grpc, voices=tmp_path / "voices") as port,
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
    direct = turbo.server.ask(options, messages=json.dumps(turns), audio=wav.getvalue())
    assert direct.error is None
    (pcm,) = direct.sounds
    samples = np.frombuffer(spoken[0].content, np.int16) / 32768
    np.testing.assert_allclose(samples, pcm, atol=2e-3)
