"""The realtime API on real servers: transcripts of the bundled model, and a family that converses."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
import soxr
from pocketsphinx import Decoder

from stretto_client import SpeechClient
from stretto_gateway import g711
from stretto_gateway.encoding import wav_header
from tests.gateway.realtime.caller import RATE, Caller, call_by, silence, spoken
from tests.server.conftest import ServedRelease, Server
from tests.server.openai_client import openai_client
from tests.server.published import Expected
from tests.server.test_families import SPOKEN, messages, turn

pytestmark = [
    pytest.mark.server,
    pytest.mark.nightly,
]  # by day tests/gateway/realtime, before a server that answers by a script
OPTIONS = {"seed": 5} | {name: value for name, value in SPOKEN.items() if name != "output"}


async def test_bundled_model_transcribes_spoken_turns(server: Server) -> None:
    """A spoken turn has the same transcript as a file with the same samples."""
    async with openai_client(server.grpc) as client, call_by(client, "gpt-4o-transcribe") as caller:
        await caller.hear(np.concatenate([silence(0.5), spoken(), silence(1)]))
        events = await caller.until("conversation.item.input_audio_transcription.completed")
    began, ended = events[0].audio_start_ms, events[1].audio_end_ms
    heard = np.concatenate([silence(0.5), spoken(), silence(1)])[began * RATE // 1000 : ended * RATE // 1000]
    async with SpeechClient(f"localhost:{server.grpc}") as plain:
        file = wav_header(RATE, heard.nbytes) + heard.tobytes()
        expected = "".join([event.text async for event in plain.transcribe(file)])
    assert len(expected.split()) > 3
    assert events[-1].transcript == expected.strip()
    assert events[-1].usage.total_tokens > 0


@pytest.mark.parametrize("law", g711.LAWS)
async def test_words_survive_a_telephone_line(server: Server, law: g711.Law) -> None:
    """Another recogniser knows the words of the bundled voice in G.711. The bundled recogniser needs a wider band."""
    async with openai_client(server.grpc) as client:
        said = await client.audio.speech.create(
            model="tts-1",
            voice="heart",
            input="The number is three one four one five nine.",
            response_format=law,  # type: ignore[arg-type]
            extra_body={"seed": 5},
        )
    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(soxr.resample(g711.decode(law, said.content), g711.RATE, 16_000).tobytes(), full_utt=True)
    decoder.end_utt()
    text = decoder.hyp().hypstr
    assert len(set(text.split()) & {"number", "three", "one", "four", "five", "nine"}) >= 4, text


@pytest.fixture
def talker(families: Callable[[str], ServedRelease]) -> ServedRelease:
    """Convert and serve a small random OpusLM dialogue release."""
    return families("opuslm-dialogue")


async def reply(caller: Caller) -> tuple[str, bytes]:
    """Return the transcript and audio of a reply, from its final event."""
    await caller.send("response.create", response={"options": OPTIONS})
    events = await caller.until("response.done")
    assert events[-1].response.status in ("completed", "incomplete"), events[-1]  # by the limit in OPTIONS
    sounds = [base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta"]
    return events[-1].response.output[0].content[0].transcript, b"".join(sounds)


def check(got: tuple[str, bytes], expected: Expected) -> None:
    """Check the words and duration of a reply against the slow reference."""
    assert expected.lead > 2e-5, "the reference itself was nearly undecided: choose another seed"
    text, sound = got
    assert text == "".join(expected.pieces)
    assert len(sound) // 2 == pytest.approx(len(expected.pcm) * RATE / 16_000, abs=2)


async def test_truncated_realtime_reply_keeps_only_the_played_codes(talker: ServedRelease) -> None:
    def expected(*turns: dict[str, Any]) -> Expected:
        return talker.model.answer(OPTIONS | {"output": {"codes": True}}, messages(*turns))

    async with openai_client(talker.server.grpc) as client, call_by(client, "gpt-realtime") as caller:
        await caller.say("how are you?")
        first = await reply(caller)
        begun = [turn("user", text="how are you?")]
        check(first, expected(*begun))
        item_id = caller.seen[-1].response.output[0].id
        await caller.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=200)
        await caller.say("and now?")
        second = await reply(caller)
    codes = expected(*begun).codes
    kept = codes[:, : round(codes.shape[1] * 0.2 * RATE / (len(first[1]) // 2))]
    assert 0 < kept.shape[1] < codes.shape[1]
    heard = [turn("assistant", codes=kept.tolist()), turn("user", text="and now?")]
    check(second, expected(*begun, *heard))


async def test_barge_in_frees_the_language_model(talker: ServedRelease) -> None:
    long = OPTIONS | {"audio": {"min_rows": 1000, "max_rows": 1400}}
    async with openai_client(talker.server.grpc) as client, call_by(client, "gpt-realtime") as caller:
        await caller.say("how are you?")
        await caller.send("response.create", response={"options": long})
        await caller.until("response.output_audio.delta")
        await caller.hear(np.concatenate([silence(0.5), spoken()[: RATE // 2]]))
        events = await caller.until("response.done")
        assert events[-1].response.status == "cancelled"
        await asyncio.to_thread(talker.server.until, lambda: talker.server.table().num_active() == 0)


async def test_realtime_reports_model_refusals(talker: ServedRelease) -> None:
    """Without an audio tokenizer this release refuses audio input."""
    async with openai_client(talker.server.grpc) as client:
        await refused(client)


async def refused(client: openai.AsyncOpenAI) -> None:
    async with call_by(client, "gpt-realtime") as caller:
        await caller.update()
        await caller.hear(silence(0.5))
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.done")
        await caller.send("response.create")
        done = (await caller.until("response.done"))[-1].response
        assert done.status == "failed"
        assert "codes" in done.status_details.error.message
