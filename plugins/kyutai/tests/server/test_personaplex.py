"""PersonaPlex through the real server: recordings and sessions with a voice and a role equal the engine alone."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.tests.moshi_release import frames_of
from plugins.kyutai.tests.personaplex_release import make_checkpoint
from plugins.kyutai.tests.server.test_moshi import PCM, RATE, heard, options, spoken, text_of
from stretto.codecs.base import load_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import RecordedVoice, SpeechClient
from stretto_client.errors import RequestRefused
from stretto_kyutai.personaplex.family import SILENCE
from tests.engine.harness import Engine
from tests.gateway.realtime.caller import call_by
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.listening import Relay
from tests.server.openai_client import openai_client
from tests.server.published import check_sound

# By night: tests/engine/test_personaplex.py compares the engine with the authors' frames.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
ROLE, SYSTEM = "never sit down by the fire", [{"role": "system", "text": "never sit down by the fire"}]
VOICE = PCM[:30_000] / 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("personaplex")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


@pytest.fixture(scope="module")
def expected(served: ServedCheckpoint) -> dict[str, np.ndarray]:
    """Return the frames of the engine alone, [T, 9], in a named voice, and in one of a recording."""
    preprocessor, user = Preprocessor(served.checkpoint), {"role": "user", "audio": "pcm_in"}
    named = RawRequest(
        messages=json.dumps([*SYSTEM, user]),
        pcm_in=PCM,
        sample_rate=24_000,
        options=json.dumps({"seed": 5, "voice": "varm4"}),
    )
    codes = preprocessor.codec.encode(np.pad(PCM, (0, -len(PCM) % 1920)))
    turns = [SYSTEM[0] | {"audio": "pcm_in"}, {"role": "user", "codes": codes.tolist()}]
    recorded = RawRequest(messages=json.dumps(turns), pcm_in=VOICE, sample_rate=24_000, options=json.dumps({"seed": 5}))
    with Engine(served.checkpoint, max_model_len=256) as engine:
        rows = {
            name: engine.run({"r": preprocessor.prepare(raw)})["r"].rows
            for name, raw in (("named", named), ("recorded", recorded))
        }
    return {name: frames_of(own, served.checkpoint) for name, own in rows.items()}


async def test_recorded_and_live_conversations_match_engine_output(
    served: ServedCheckpoint, expected: dict[str, np.ndarray]
) -> None:
    """One conversation loses its connection twice: while its first frames and while later frames are sent."""
    wanted = text_of(served, expected["named"]), expected["named"].T.tolist()
    direct, relay = f"localhost:{served.server.grpc}", Relay(served.server.grpc, 5_000, 50_000)
    async with SpeechClient(direct) as client, relay, SpeechClient(relay.address) as far:
        profile = await client.profile()
        assert (profile.voices, profile.reads_live_audio) == (("natf0", "natm1", "varm4"), True)
        turns = [*SYSTEM, {"role": "user", "audio": "pcm_in"}]
        whole = await heard(client.converse(turns, (PCM, 24_000), voice="varm4", **options()))
        assert whole[:2] == wanted
        for each, sizes, resume_s in ((client, [1920], 0.0), (client, [1, 5000, 333], 0.0), (far, [1920], 60.0)):
            given = options() | {"system": ROLE, "voice": "varm4", "resume_s": resume_s}
            live = await heard(each.talk(spoken(sizes), 24_000, **given))
            assert live[:2] == wanted
            np.testing.assert_allclose(live[2], whole[2], atol=1e-4)
        assert not relay.cuts
        recorded = RecordedVoice((VOICE, 24_000))
        other = await heard(client.talk(spoken([1920]), 24_000, system=ROLE, voice=recorded, **options()))
        assert other[1] == expected["recorded"].T.tolist()


async def test_samples_of_prompt_silence_are_not_sent(
    served: ServedCheckpoint, expected: dict[str, np.ndarray]
) -> None:
    """The decoder's first frame is silence, whose samples are not sent."""
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        talk = client.talk(spoken([1920]), 24_000, system=ROLE, voice="varm4", **options())
        _, codes, pcm = await heard(talk)
    whole = np.concatenate([np.array(SILENCE)[:, None], np.array(codes[1:])], 1)
    check_sound(pcm, whole, load_codec("mimi", served.checkpoint, num_codebooks=8), first=1)


async def test_realtime_session_accepts_role_and_voice_before_audio(
    served: ServedCheckpoint, expected: dict[str, np.ndarray]
) -> None:
    async with openai_client(served.server.grpc) as client, call_by(client, "gpt-realtime") as caller:
        updated = await caller.update(instructions=ROLE, audio={"output": {"voice": "varm4"}})
        assert updated.session.instructions == ROLE
        for frame in range(10):
            await caller.hear((PCM[1920 * frame : 1920 * (frame + 1)] * 32767).astype(np.int16))
            num_samples = 0
            while num_samples < 1920:
                delta = (await caller.until("response.output_audio.delta"))[-1].delta
                num_samples += len(base64.b64decode(delta)) // 2
        await caller.send("session.update", session={"type": "realtime", "instructions": "sell"})
        while (event := await caller.next()).type != "error":
            pass
        assert "session.instructions: expected no change after the first audio" in event.error.message
        await caller.send("response.cancel")
        await caller.until("response.done")


async def test_invalid_talk_options_are_refused_by_field(served: ServedCheckpoint) -> None:
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        for inputs, message in (
            ({"voice": "alba"}, "options.voice: expected one of natf0, natm1, varm4"),
            ({"voice": RecordedVoice((PCM[:2000], 24_000))}, "the recording of a voice of 1 to 30 s"),
            ({"system": "one " * 4000}, r"messages\[0\].text: expected at most"),
            ({"guidance_scale": 2.0}, "options.guidance_scale: expected 1.0"),
        ):
            given: Any = inputs
            with pytest.raises(RequestRefused, match=message):
                await heard(client.talk(spoken([1920]), 24_000, **given))


def test_recording_without_named_voice_is_answered(served: ServedCheckpoint) -> None:
    answer = served.server.ask({"seed": 5}, pcm_in=PCM, **RATE)
    assert answer.error is None
    assert len(answer.pcm) == 1920 * 32
