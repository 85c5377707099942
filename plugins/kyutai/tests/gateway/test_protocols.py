"""Kyutai's protocols: messages, limits, malformed input, and clients that leave or do not read."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from stretto_client import SpeechEvent
from stretto_client.model_profile import ModelProfile
from stretto_client.unread import UnreadAudio
from stretto_gateway.admission import Held
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import find_voice
from stretto_gateway.config import Limits
from stretto_gateway.encoding import make_encoder
from stretto_gateway.speech_stream import IncomingText
from stretto_kyutai.protocols.endpoints import SpeakQuery
from stretto_kyutai.protocols.estimated_words import TranscriptWords
from stretto_kyutai.protocols.sessions import ReceivedAudio
from tests.client.fake_server import PROFILE, Chunk, EmptyFinal, ErrorText, Request, Step, Taken, Until
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import task
from tests.gateway.realtime.test_bounds import closed, open_socket, status
from tests.gateway.realtime.test_live_transcripts import CONTINUES, Growing
from tests.gateway.test_ogg import HEADER, TAGS, decode, opus, page
from tests.patience import PATIENCE_S, until_async

RATE, FRAME = 24_000, 1920
CHAT, ASR, TTS = "/api/chat", "/api/asr-streaming", "/api/tts_streaming"
DUPLEX = PROFILE | {
    "family": "both_ways",
    "reads_live_audio": True,
    "voices": ["natf2"],
    "options": ["depth"],
    "tasks": [task("duplex", needs=["audio"], speaks=True) | {"system": ["text"]}],
}
LISTENS = PROFILE | {
    "reads_live_audio": True,
    "pauses_s": [0.5, 1.0, 2.0, 3.0],
    "tasks": [task("asr", needs=["audio"])],
}
TONE = (np.sin(np.arange(RATE) / 9) * 9000).astype(np.int16)


class Partner:
    """A server of live audio that answers with `steps` once it has `num_samples`, and with `last` after the session."""

    def __init__(self, steps: list[Step], num_samples: int = 1, last: tuple[Step, ...] = ()) -> None:
        self.heard, self.num_samples = list[float](), num_samples
        self.is_live, self.is_over, self.may_take = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_take.set()
        self.begun = list[Request]()
        self.steps, self.last = steps, last

    def __call__(self, request: Request) -> list[Step]:
        if "session" not in request:
            self.begun.append(request)
            name = f"s{len(self.begun)}"
            return [Chunk(0, None, session=name), Until(self.is_live), *self.steps, Until(self.is_over), *self.last]
        record = json.loads(request["session"])
        if "resume" in record:  # the client ends the session
            return [EmptyFinal()]
        self.heard += np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist()
        if len(self.heard) >= self.num_samples:
            self.is_live.set()
        if record["is_last"]:
            self.is_over.set()
        return [Until(self.may_take), Taken(record["part"])]

    @property
    def options(self) -> Any:
        return json.loads(self.begun[-1]["options"])


def event(text: str = "", **more: Any) -> Chunk:
    """Return an event of a transcript."""
    return Chunk(1, None, text, more=more)


LAST = Chunk(9, None, is_final=True, is_last=True)


async def received(opened: Any) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        message = await opened.recv()
    assert isinstance(message, bytes)
    return message


async def unpacked(opened: Any, until: str = "") -> list[dict[str, Any]]:
    """Return the messages up to one of a type, or up to the end."""
    messages = list[dict[str, Any]]()
    async with asyncio.timeout(PATIENCE_S):
        async for message in opened:
            messages.append(msgpack.unpackb(message))
            if messages[-1]["type"] == until:
                break
    return messages


def pack(kind: str, **fields: Any) -> bytes:
    return msgpack.packb({"type": kind, **fields}, use_single_float=True)


# Full-duplex speech


async def test_chat_streams_speech_and_text_while_audio_is_sent(start: Start) -> None:
    frames = [TONE[at : at + FRAME] for at in range(0, 5 * FRAME, FRAME)]
    spoken = [Chunk(n, FRAME, f" {n}", is_16_bit=True, pcm=pcm) for n, pcm in enumerate(frames)]
    end = Chunk(9, FRAME, is_16_bit=True, is_final=True, is_last=True)
    partner = Partner(spoken, RATE // 2, (end,))
    running = await start(partner, DUPLEX)
    query = "?text_prompt=You+are+kind.&voice_prompt=NATF2.pt&seed=7&text_temperature=0.6&text_topk=20"
    async with open_socket(running, f"{CHAT}{query}&audio_temperature=0.9&audio_topk=200&pad_mult=0&email=x") as opened:
        assert await received(opened) == b"\0"
        sent, expected = opus(), decode(opus(), 10_000)
        for at in range(0, len(sent), 400):
            await opened.send(b"\1" + sent[at : at + 400])
        sound, text = b"", ""
        while text != " 0 1 2 3 4":
            message = await received(opened)
            sound += message[1:] if message[0] == 1 else b""
            text += message[1:].decode() if message[0] == 2 else ""
    assert np.abs(decode(sound, 99)[FRAME : 3 * FRAME]).max() > 0.2
    form = {"encoding": "pcm_s16le", "sample_rate": RATE}
    sampling = {"temperature": 0.6, "top_k": 20, "depth": {"temperature": 0.9, "top_k": 200}, "seed": 7}
    assert partner.options == {"live": True, "voice": "natf2", "output": form, "resume_s": 10.0, **sampling}
    assert json.loads(partner.begun[0]["messages"]) == [{"role": "system", "text": "You are kind."}]
    np.testing.assert_allclose(partner.heard, expected[: len(partner.heard)], atol=1e-6)
    await running.idle()
    await until_async(running.behind.cancelled.is_set)  # a client that leaves ends the reply


async def test_unsupported_options_and_messages_are_ignored(start: Start) -> None:
    plain = DUPLEX | {"voices": [], "options": [], "tasks": [DUPLEX["tasks"][0] | {"system": []}]}
    partner = Partner([])
    running = await start(partner, plain)
    async with open_socket(running, f"{CHAT}?text_prompt=a&voice_prompt=b.pt&seed=-1&audio_topk=9") as opened:
        assert await received(opened) == b"\0"
        for message in (b"", b"\3\0", b"\6", b"\x09abc", b"\2hello", "\1text"):  # kinds without an effect
            await opened.send(message)
        await opened.send(b"\1" + opus())
        await until_async(lambda: bool(partner.heard))
    output = {"encoding": "pcm_s16le", "sample_rate": RATE}
    assert partner.options == {"live": True, "output": output, "resume_s": 10.0}
    assert "messages" not in partner.begun[0]


async def test_end_of_reply_closes_session(start: Start) -> None:
    end = Chunk(9, FRAME, is_16_bit=True, is_final=True, is_last=True)
    running = await start(Partner([end]), DUPLEX)
    async with open_socket(running, CHAT) as opened:
        await opened.send(b"\1" + opus())
        assert await closed(opened) == (1000, "")
    await running.idle()


@pytest.mark.parametrize(
    ("query", "script", "profile", "message", "code"),
    [
        ("?voice_prompt=nobody.pt", [], DUPLEX, "voice: expected one of natf2", 1011),
        ("?seed=many", [], DUPLEX, "seed: Input should be a valid integer", 1011),
        ("?text_temperature=nan", [], DUPLEX, "text_temperature: Input should be a finite number", 1011),
        ("", [ErrorText("full: 4 sessions are open, try again")], DUPLEX, "at capacity; try again", 1013),
        ("", [], PROFILE, "model: 'tiny' does not support full-duplex speech", 1011),
    ],
)
async def test_refused_conversation_sends_error_message(
    start: Start, query: str, script: list[Step], profile: Any, message: str, code: int
) -> None:
    running = await start(script, profile)
    async with open_socket(running, CHAT + query) as opened:
        told = await received(opened)
        assert (told[:1], message in told[1:].decode()) == (b"\5", True), told
        assert (await closed(opened))[0] == code
    await running.idle()


async def test_malformed_ogg_ends_only_its_own_session(start: Start) -> None:
    running = await start(Partner([]), DUPLEX)
    async with open_socket(running, CHAT) as first, open_socket(running, CHAT) as second:
        await first.send(b"\1" + HEADER + b"noise")
        while (told := await received(first))[:1] != b"\5":
            assert told == b"\0"
        assert told[1:].decode().startswith("audio: expected a page that begins with b'OggS'")
        assert await closed(first) == (1007, "a message was malformed")
        await second.send(b"\1" + opus())
        assert await received(second) == b"\0"
        await running.until(gateway_active=1)


async def test_opus_bomb_stays_encoded_in_memory_until_disconnect(start: Start) -> None:
    """Two bytes of Opus are 120 ms. Nothing is decoded before the server takes it, and a client may leave meanwhile."""
    partner = Partner([])
    partner.may_take.clear()
    running = await start(partner, DUPLEX)
    bomb = HEADER + TAGS + page(b"\x0b\x06" * 255, 0, lacing=b"\x02" * 255) * 1000  # 8 hours
    async with open_socket(running, CHAT) as opened:
        for _ in range(3):
            await opened.send(b"\1" + bomb)
        held = running.app.state.gateway.sessions.held
        await until_async(lambda: held.num_bytes > 3 * len(bomb))
        assert held.num_bytes < 3 * len(bomb) + 1000
        async with running.http() as http:
            assert (await http.get("/health/live")).status_code == 200
    await running.idle()


async def test_unread_audio_memory_is_limited(start: Start) -> None:
    partner = Partner([])
    partner.may_take.clear()
    running = await start(partner, LISTENS, limits=Limits(max_held_bytes=16 * RATE, drain_s=1))
    async with open_socket(running, ASR) as opened:
        for _ in range(40):
            await opened.send(pack("Audio", pcm=[0.0] * RATE))
        error = (await unpacked(opened, "Error"))[-1]
        assert "bytes are held for all clients" in error["message"]
        assert (await closed(opened))[0] == 1013
    await running.idle()


# Live transcription


async def test_asr_sends_steps_words_and_markers_in_order(start: Start) -> None:
    word, pauses = {"word": "cat", "start_s": 0.32}, [[0.25, 0.5, 0.75, 1.0]]
    steps: list[Step] = [
        event(pauses=pauses, begun=[], transcribed_s=0.0),
        event("cat", pauses=pauses, begun=[word], transcribed_s=0.08),
        event("", pauses=2 * pauses, begun=[], transcribed_s=0.24),
        Chunk(4, None, aligned=(("cat", 0.32, 0.5),), more={"pauses": pauses, "begun": [], "transcribed_s": 0.32}),
    ]
    partner = Partner(steps, 4 * FRAME)
    running = await start(partner, LISTENS)
    async with open_socket(running, ASR) as opened:
        assert await unpacked(opened, "Ready") == [{"type": "Ready"}]
        pcm = (TONE[: 3 * FRAME] / 32768).astype(np.float32)
        await opened.send(pack("Audio", pcm=pcm.tolist()))
        await opened.send(pack("Marker", id=-3))
        await opened.send(pack("Novelty", id=-3))  # an unknown type
        await opened.send("text")
        await opened.send(pack("Audio", pcm=[0, 1, 0.5] * FRAME))
        messages = await unpacked(opened, "EndWord")
    assert [each.get("step_idx", each["type"]) for each in messages] == [1, 2, "Word", 3, 4, "Marker", 5, "EndWord"]
    assert messages[0] == {"type": "Step", "step_idx": 1, "prs": pauses[0], "buffered_pcm": 5 * FRAME}
    assert messages[2] == {"type": "Word", "text": "cat", "start_time": 0.32}
    assert messages[5] == {"type": "Marker", "id": -3}
    assert messages[7] == {"type": "EndWord", "stop_time": 0.5}
    assert partner.options == {"live": True, "progress": True, "pauses": True}
    np.testing.assert_array_equal(partner.heard[: len(pcm)], pcm)
    await running.idle()


async def test_words_within_one_event_are_ordered_by_time(start: Start) -> None:
    words = [{"word": name, "start_s": start_s} for name, start_s in (("a", 0.0), ("b", 0.0), ("c", 0.4), ("d", 0.8))]
    ended = (("a", 0.0, 0.4), ("b", 0.0, 0.4), ("c", 0.4, 0.8))
    steps: list[Step] = [Chunk(1, None, aligned=ended, more={"begun": words, "transcribed_s": 1.0})]
    running = await start(Partner(steps), LISTENS | {"pauses_s": []})
    async with open_socket(running, ASR) as opened:
        await opened.send(pack("Audio", pcm=[0.0] * FRAME))
        await opened.send(pack("Marker", id=1))
        messages = await unpacked(opened, "Marker")
    found = [each.get("text", each.get("stop_time")) for each in messages]
    assert found == [None, "a", "b", 0.4, "c", 0.8, "d", None]


async def test_init_message_starts_new_transcript(start: Start) -> None:
    partner = Partner([])
    running = await start(partner, LISTENS)
    async with open_socket(running, ASR) as opened:
        await unpacked(opened, "Ready")
        await opened.send(pack("Init"))  # nothing to begin anew
        await opened.send(pack("OggOpus", data=list(opus())))
        await until_async(lambda: bool(partner.heard))
        await opened.send(pack("Init"))
        assert await unpacked(opened, "Ready") == [{"type": "Ready"}]
        await opened.send(pack("OggOpus", data=opus()))
        await until_async(lambda: len(partner.heard) > RATE)
    assert len(partner.begun) == 2
    await running.idle()


async def test_marker_ends_a_turn_of_a_model_that_reads_whole_recordings(start: Start) -> None:
    growing = Growing()
    running = await start(growing, CONTINUES)
    held = running.app.state.gateway.sessions.held
    async with open_socket(running, ASR) as opened:
        assert await unpacked(opened, "Ready") == [{"type": "Ready"}]
        await opened.send(pack("Marker", id=0))  # without audio before it
        await opened.send(pack("Audio", pcm=[0.25] * (4 * RATE)))
        messages = await unpacked(opened, "EndWord")
        await until_async(lambda: held.num_bytes == 2 * 4 * RATE)
        await opened.send(pack("Audio", pcm=[0.25] * (RATE // 2)))
        for number in (1, 2):
            await opened.send(pack("Marker", id=number))
        for number in (1, 2):
            messages += await unpacked(opened, "Marker")
            assert messages[-1]["id"] == number
        await until_async(lambda: not held.num_bytes)
        await opened.send(pack("Audio", pcm=[0.25] * round(1.5 * RATE)))
        await opened.send(pack("Marker", id=3))
        messages += await unpacked(opened, "Marker")
    told = [(each.get("text"), each.get("start_time", each.get("stop_time", each.get("id")))) for each in messages]
    assert told == [
        (None, 0),
        ("word0", 0.0),
        (None, pytest.approx(4 / 3)),
        ("word1", pytest.approx(4 / 3)),
        (None, pytest.approx(8 / 3)),
        ("word2", pytest.approx(8 / 3)),
        (None, 4.0),
        ("word3", 4.0),
        (None, 4.5),
        (None, 1),
        (None, 2),
        ("word0", 4.5),
        (None, 6.0),
        (None, 3),
    ]
    assert [seconds for seconds, _ in growing.requests] == [2, 4, 4.5, 1.5]
    assert [options["beginning"] for _, options in growing.requests] == ["", "", "word0 word1 word2 ", ""]
    await running.idle()


async def test_turn_without_a_marker_ends_at_half_of_the_longest_recording(start: Start) -> None:
    growing = Growing()
    running = await start(growing, CONTINUES | {"max_audio_s": 3.0})
    async with open_socket(running, ASR) as opened:
        await unpacked(opened, "Ready")
        for _ in range(3):
            await opened.send(pack("Audio", pcm=[0.25] * RATE))
        await opened.send(pack("Audio", pcm=[0.25]))  # less than the server accepts
        await opened.send(pack("Marker", id=1))
        await unpacked(opened, "Marker")
    assert [seconds for seconds, _ in growing.requests] == [2, 1 + 1 / RATE]
    await running.idle()


async def test_failed_turn_ends_the_session_with_its_error(start: Start) -> None:
    running = await start([ErrorText("invalid request: pcm_in: expected at most 1 s, got 2 s")], CONTINUES)
    async with open_socket(running, ASR) as opened:
        await opened.send(pack("Audio", pcm=[0.25] * (2 * RATE)))
        assert "at most 1 s" in (await unpacked(opened, "Error"))[-1]["message"]
    await running.idle()
    assert not running.app.state.gateway.sessions.held.num_bytes


def test_words_share_the_time_of_their_text() -> None:
    words = TranscriptWords(10.0)
    texts = [("a ca", 2.0), ("t 你好, do", 4.0), ("g", None), ("s", 5.0)]
    found = list[tuple[str, float, float | None]]()
    for text, transcribed_s in texts:
        event = SpeechEvent(None, "", 0, "text", text, transcribed_s=transcribed_s, is_final=transcribed_s == 5.0)
        found += [(word.word, word.start_s, word.end_s) for word in words.push(event)]
    assert [word for word, *_ in found] == ["a", "cat", "你好", ",", "dogs"]
    assert [(start_s, end_s) for _, start_s, end_s in found] == [
        (10.0, 12.0),
        (12.0, 13.0),
        (13.0, pytest.approx(13 + 2 / 3)),
        (pytest.approx(13 + 2 / 3), 14.0),
        (14.0, 15.0),
    ]


MALFORMED: list[tuple[str, bytes, str]] = [
    (ASR, b"\xc1", "expected MessagePack"),
    (ASR, b"\x81", "expected MessagePack"),
    (ASR, b"", "expected MessagePack"),
    (ASR, b"\x91" * 2000 + b"\0", "expected MessagePack"),
    (ASR, msgpack.packb([[]] * 200_000), "more than 8 lists"),
    (ASR, msgpack.packb({"type": [1]}), "expected an object with a type"),
    (ASR, msgpack.packb([1, 2]), "expected an object with a type"),
    (ASR, msgpack.packb({1: 2}, strict_types=True), "expected MessagePack"),
    (ASR, pack("Audio"), "pcm: expected a list of samples"),
    (ASR, pack("Audio", pcm=["1.0"]), "pcm: expected a list of samples"),
    (ASR, pack("Audio", pcm=["a" * 100_000] + [""] * 500_000), "pcm: expected a list of samples"),  # 200 GB as an array
    (ASR, pack("Audio", pcm=[[0.0], [0.0, 1.0]]), "pcm: expected a list of samples"),
    (ASR, pack("Audio", pcm=[True]), "pcm: expected a list of samples"),
    (ASR, pack("OggOpus", data=[300]), "data: expected bytes"),
    (ASR, pack("OggOpus", data="OggS"), "data: expected bytes"),
    (ASR, pack("OggOpus", data=b"RIFF"), "audio: expected a page that begins"),
    (ASR, pack("Marker", id="1"), "id: expected an integer"),
    (ASR, pack("Marker", id=True), "id: expected an integer"),
    (TTS, b"{}", "expected MessagePack"),
    (TTS, pack("Text", text=b"bytes"), "text: expected text"),
    (TTS, pack("Text"), "text: expected text"),
    (TTS, msgpack.packb({"type": "Text", "text": "\ud800"}, unicode_errors="surrogatepass"), "expected MessagePack"),
]


@pytest.mark.parametrize(("path", "message", "told"), MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_message_is_reported_and_closes_session(
    start: Start, path: str, message: bytes, told: str
) -> None:
    both = LISTENS | {"tasks": [*LISTENS["tasks"], *PROFILE["tasks"]]}
    running = await start(Partner([]), both)
    async with open_socket(running, f"{path}?format=PcmMessagePack") as opened:
        await unpacked(opened, "Ready")
        await opened.send(message)
        error = (await unpacked(opened, "Error"))[-1]
        assert told in error["message"]
        assert await closed(opened) == (1007, "a message was malformed")
    await running.idle()


async def test_model_without_live_transcription_is_refused(start: Start) -> None:
    running = await start()
    async with open_socket(running, ASR) as opened:
        (error,) = await unpacked(opened, "Error")
        assert error["message"] == "model: 'tiny' does not transcribe live audio"
        assert (await closed(opened))[0] == 1011


# Streamed text to speech


def words(*spoken: str) -> list[Step]:
    """Return a reply with 0.2 s of sound for each word."""
    steps: list[Step] = []
    for number, word in enumerate(spoken):
        start_s = {"word": word, "start_s": 0.2 * number}
        steps.append(Chunk(number, RATE // 5, is_16_bit=True, pcm=TONE[: RATE // 5], more={"words": [start_s]}))
    return [*steps, Chunk(99, None, is_final=True, is_last=True)]


async def spoken_text(start: Start, query: str, *messages: Any, profile: Any = None) -> tuple[Running, list[bytes]]:
    """Return all messages of a session in which a client sends these."""
    running = await start(words("a", "cat"), profile)
    async with open_socket(running, f"{TTS}?{query}") as opened, asyncio.timeout(PATIENCE_S):
        for message in messages:
            await opened.send(message)
        found = [message async for message in opened]
        assert (opened.close_code, opened.close_reason) == (1000, "")
    await running.idle()
    return running, found


async def test_tts_sends_word_times_and_audio_frames(start: Start) -> None:
    text = [pack("Text", text="A"), pack("Text", text="  lazy\ncat "), pack("Novelty"), pack("Eos")]
    query = "format=PcmMessagePack&voice=unmute-prod-website/default_voice.wav&cfg_alpha=1.5&seed=3"
    running, found = await spoken_text(start, query, *text, pack("Text", text="too late"))
    messages = [msgpack.unpackb(each) for each in found]
    assert messages[0] == {"type": "Ready"}
    assert [each for each in messages if each["type"] == "Text"] == [
        {"type": "Text", "text": "a", "start_s": 0.0, "stop_s": 0.2},
        {"type": "Text", "text": "cat", "start_s": 0.2, "stop_s": 0.4},
    ]
    frames = [each["pcm"] for each in messages if each["type"] == "Audio"]
    assert [len(frame) for frame in frames] == [1920, 1920, 960] * 2
    sound = np.concatenate(frames)
    np.testing.assert_allclose(sound, np.tile(TONE[: RATE // 5], 2) / 32768, atol=1e-7)
    (request,) = running.behind.requests
    assert request["text"] == b"A lazy cat"
    options = json.loads(request["options"])
    assert (options["seed"], options["output"]) == (3, {"encoding": "pcm_s16le", "sample_rate": RATE})
    assert options.get("voice") is None


async def test_tts_accepts_text_frames_and_zero_byte_as_end(start: Start) -> None:
    running, found = await spoken_text(start, "format=Pcm&voice=RMS", "A cat", b"\0")
    sound = np.frombuffer(b"".join(found), "<f4")
    np.testing.assert_array_equal(sound, (np.tile(TONE[: RATE // 5], 2) / 32768).astype(np.float32))
    assert running.behind.requests[0]["text"] == b"A cat"
    assert json.loads(running.behind.requests[0]["options"])["voice"] == "rms"


NAMED = ModelProfile(
    "named",
    RATE,
    100,
    voices=("unmute-prod-website/default_voice.wav", "vctk/p226.wav"),
    max_voices=2,
    guidance_scales=(1.0, 1.5),
)


def test_voice_and_guidance_scale_of_kyutai_clients_are_those_of_the_model() -> None:
    fields = SpeakQuery(voice="VCTK/p226.wav", cfg_alpha=1.5).fields(NAMED, is_strict=True)
    assert (fields.voice_name, fields.options["guidance_scale"]) == ("vctk/p226.wav", 1.5)
    assert "guidance_scale" not in SpeakQuery(cfg_alpha=1.2).fields(NAMED, is_strict=True).options


def test_names_of_several_voices_are_separated_by_commas() -> None:
    both = f"{NAMED.voices[1]},{NAMED.voices[0]}"
    assert find_voice(NAMED, "VCTK/p226.wav, unmute-prod-website/default_voice.wav") == both
    for names in ("vctk/p226.wav,other", "vctk/p226.wav," * 2):
        with pytest.raises(ApiError, match="voice: expected one to 2 of these, separated by commas: unmute-prod"):
            find_voice(NAMED, names)
    with pytest.raises(ApiError, match="voice: expected one of"):
        find_voice(replace(NAMED, max_voices=1), both)


def test_error_message_has_the_first_of_many_voices() -> None:
    many = replace(NAMED, voices=tuple(f"voice-donations/donor_{number}.wav" for number in range(1024)))
    with pytest.raises(ApiError, match=r"donor_11\.wav, 1012 others, alloy") as refused:
        find_voice(many, "nobody")
    assert len(str(refused.value)) < 800


@pytest.mark.parametrize("is_packed", [True, False])
async def test_opus_output_contains_the_complete_audio(start: Start, is_packed: bool) -> None:
    query = "format=OggOpusMessagePack" if is_packed else ""  # Ogg Opus by default
    _, found = await spoken_text(start, query, pack("Text", text="A cat"), pack("Eos"))
    if is_packed:
        messages = [msgpack.unpackb(each) for each in found]
        assert {each["type"] for each in messages} == {"Ready", "Text", "OggOpus"}
        found = [bytes(each["data"]) for each in messages if each["type"] == "OggOpus"]
    encoder = make_encoder("opus", RATE)
    expected = b"".join(encoder.encode(TONE[: RATE // 5]) for _ in range(2)) + encoder.close()
    np.testing.assert_allclose(decode(b"".join(found), 999), decode(expected, 999), atol=1e-3)


async def test_blank_text_sends_no_speech_request(start: Start) -> None:
    running, found = await spoken_text(start, "format=PcmMessagePack", pack("Text", text=" "), pack("Eos"))
    assert [msgpack.unpackb(each) for each in found] == [{"type": "Ready"}]
    assert not running.behind.requests


async def test_word_times_are_estimated_for_models_without_timestamps(start: Start) -> None:
    silent = PROFILE | {"times_words": False, "tasks": [task("tts", needs=["text"], speaks=True)]}
    steps = [Chunk(0, RATE // 2, is_16_bit=True, is_final=True, is_last=True)]
    running = await start(steps, silent)
    async with open_socket(running, f"{TTS}?format=PcmMessagePack") as opened:
        await opened.send(pack("Text", text="a cat"))
        await opened.send(pack("Eos"))
        found = [each for each in await unpacked(opened) if each["type"] == "Text"]
    assert found == [
        {"type": "Text", "text": "a", "start_s": 0.0, "stop_s": 0.125},
        {"type": "Text", "text": "cat", "start_s": 0.125, "stop_s": 0.5},
    ]


async def test_strict_gateway_refuses_unknown_voice(start: Start) -> None:
    running = await start(words("a"), strict=True)
    async with open_socket(running, f"{TTS}?format=PcmMessagePack&voice=nobody") as opened:
        (error,) = await unpacked(opened, "Error")
    assert error["message"].startswith("voice: expected one of slt, rms")


async def test_voice_embedding_message_is_refused(start: Start) -> None:
    running = await start(words("a"))
    async with open_socket(running, f"{TTS}?format=PcmMessagePack") as opened:
        await opened.send(pack("Voice", embeddings=[0.0] * 64_000, shape=[1, 512, 125]))
        assert "embeddings: expected no value" in (await unpacked(opened, "Error"))[-1]["message"]


# Limits that are shared with the other WebSockets


async def test_sessions_of_all_kinds_share_a_limit(start: Start) -> None:
    running = await start(Partner([]), LISTENS, limits=Limits(max_sessions=4, drain_s=1))
    async with open_socket(running, ASR) as first, open_socket(running, "/v1/audio/speech/stream"):
        await unpacked(first, "Ready")
        async with open_socket(running, ASR) as third:
            (error,) = await unpacked(third, "Error")
            assert "2 sessions are open already, 2 of them yours" in error["message"]
            assert (await closed(third))[0] == 1013
        assert await status(running, "/v1/realtime?intent=transcription") == 429
    await running.idle()


@pytest.mark.parametrize(("path", "profile"), [(ASR, LISTENS), (CHAT, DUPLEX)])
async def test_server_session_opens_only_after_slot_is_free(start: Start, path: str, profile: dict[str, Any]) -> None:
    partner = Partner([], last=(LAST,))
    running = await start(partner, profile, limits=Limits(max_active=1, drain_s=1))
    async with open_socket(running, path) as first:
        await received(first)
        async with open_socket(running, path) as second:
            await running.until(gateway_sessions=2)
            await second.send(pack("Audio", pcm=[0.0]))
            assert len(partner.begun) == 1
            partner.is_live.set()
            partner.is_over.set()  # ends the first session
            await received(second)
        assert len(partner.begun) == 2
    await running.idle()


async def test_empty_audio_occupies_no_memory() -> None:
    audio = ReceivedAudio(account := Held(Limits()))
    audio.add(np.zeros(0, np.float32))
    audio.add(b"")
    assert account.num_bytes == 0

    async def pieces() -> AsyncIterator[np.ndarray]:
        for size in (0, 1, 0, 2, 0):
            yield np.full(size, size, np.float32)

    async with UnreadAudio(pieces(), RATE) as unread:
        pcm, is_last = await unread.pop()
        assert (pcm.tolist(), is_last) == ([1.0, 2.0, 2.0], True)


async def test_words_after_the_text_limit_are_dropped() -> None:
    text = IncomingText(Limits(max_input_chars=5), Held(Limits()))
    assert [text.add(word) for word in ("one ", "more ", "x")] == [True, False, False]
    text.close()


async def test_two_sessions_do_not_share_their_audio(start: Start) -> None:
    heard: dict[str, list[float]] = {"s1": [], "s2": []}
    names = iter(heard)
    never = asyncio.Event()

    def script(request: Request) -> list[Step]:
        if "session" not in request:
            return [Chunk(0, None, session=next(names)), Until(never)]
        record = json.loads(request["session"])
        heard[record["id"]] += np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist()
        return [Taken(record["part"])]

    running = await start(script, LISTENS)
    async with open_socket(running, ASR) as first, open_socket(running, ASR) as second:
        for opened in (first, second):
            await unpacked(opened, "Ready")
        for _ in range(5):
            await first.send(pack("Audio", pcm=[0.25] * FRAME))
            await second.send(pack("Audio", pcm=[0.5] * FRAME))
        await until_async(lambda: all(len(each) == 5 * FRAME for each in heard.values()))
    assert {frozenset(each) for each in heard.values()} == {frozenset([0.25]), frozenset([0.5])}


async def test_shutdown_lets_speech_complete(start: Start) -> None:
    may_end = asyncio.Event()
    running = await start([words("a")[0], Until(may_end), *words("b")], limits=Limits(drain_s=30))
    async with open_socket(running, f"{TTS}?format=PcmMessagePack") as opened:
        await opened.send(pack("Text", text="A b."))
        await opened.send(pack("Eos"))
        await unpacked(opened, "Audio")
        running.app.state.gateway.sessions.draining.set()
        may_end.set()
        messages = await unpacked(opened)
    assert [each["text"] for each in messages if each["type"] == "Text"] == ["a", "b"]
