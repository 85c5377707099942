"""Audio in base64, as the command `base64`, browsers and other programs write it."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from stretto_gateway.answers import ApiError
from stretto_gateway.base64_data import PART_BYTES, read_base64
from stretto_gateway.config import Limits
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.realtime.caller import TALKS, call
from tests.gateway.test_chat import REPLY
from tests.gateway.test_voices import CLONES
from tests.tiers import by_night

AUDIO = bytes(range(256)) * 40 + b"\xff\xfb\xbf\xfe"  # has all characters of both alphabets, and needs padding


def wrapped(audio: bytes, end: str = "\n") -> str:
    """Return base64 in lines of 76 characters, as the command `base64` writes it."""
    return base64.encodebytes(audio).decode().replace("\n", end)


PLAIN = base64.b64encode(AUDIO).decode()
SAFE = base64.urlsafe_b64encode(AUDIO).decode()
FORMS: dict[str, Callable[[], str]] = {
    "plain": lambda: PLAIN,
    "lines": lambda: wrapped(AUDIO),
    "lines of Windows": lambda: wrapped(AUDIO, "\r\n"),
    "blanks around it": lambda: f"  {PLAIN}\n",
    "URL-safe": lambda: SAFE,
    "URL-safe without padding": lambda: SAFE.rstrip("="),
    "URL-safe in lines": lambda: SAFE[:64] + "\n" + SAFE[64:],
    "data URL": lambda: f"data:audio/wav;base64,{PLAIN}",
    "data URL with parameters": lambda: f"DATA:audio/ogg; codecs=opus;BASE64,{PLAIN}",
    "data URL with lines": lambda: f"data:;base64,{wrapped(AUDIO)}",
    "data URL with escapes": lambda: "data:audio/wav;base64," + PLAIN.replace("+", "%2B").replace("=", "%3d"),
}


BY_DAY = ("lines of Windows", "URL-safe without padding", "data URL with escapes")


@pytest.mark.parametrize("form", [*BY_DAY, *by_night(*(form for form in FORMS if form not in BY_DAY))])
async def test_every_field_with_audio_takes_all_forms_of_base64(start: Start, form: str) -> None:
    text = FORMS[form]()
    clones = await start(SPOKEN, CLONES)
    async with clones.http() as http:
        for path in ("/v1/audio/speech", "/v1/audio/speech/batch"):
            item = {"input": "A cat.", "ref_audio": text, "check": "off"}
            body = {"items": [item]} if path.endswith("batch") else item
            answer = await http.post(path, json=body)
            assert answer.json()["succeeded"] == 1 if "items" in body else answer.status_code == 200, answer.text[:300]
    assert [request["audio"] for request in clones.behind.requests] == [AUDIO, AUDIO]

    talks = await start(REPLY, TALKS)
    async with talks.http() as http:
        part = {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
        answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})
    assert (answer.status_code, talks.behind.requests[0]["audio"]) == (200, AUDIO), answer.text[:300]

    async with call(talks) as caller:
        await caller.update()
        await caller.send("input_audio_buffer.append", audio=text)
        committed = await caller.ask("input_audio_buffer.commit")
        item = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": text}]}
        await caller.until("conversation.item.done")
        added = await caller.put(item)
        for item_id in (committed.item_id, added.item.id):
            event = await caller.ask("conversation.item.retrieve", item_id=item_id)
            assert base64.b64decode(event.item.content[0].audio) == AUDIO


def test_all_forms_of_base64_are_read() -> None:
    for form, write in FORMS.items():
        assert read_base64("x", write()) == AUDIO, form


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("?", "expected base64, got"),
        ("AAA", None),  # as the URL-safe alphabet may be written
        ("AAAAA", "expected base64"),
        ("AA=", "expected base64"),
        ("A+A", "expected base64"),
        ("/etc/passwd", "expected base64"),
        ("AA-A/AAA", "expected base64"),
        ("AAAA=AAA", "expected base64"),
        ("AAAA\u00a0", "expected base64"),
        ("data:audio/wav,AAAA", "expected a data: URL whose data is base64"),
        ("data:audio/wav;base64,AAAA%ZZ", "expected base64"),
        ("https://example.com/me.wav", "the gateway opens no URLs or files"),
        ("file:AAAA", "the gateway opens no URLs or files"),
    ],
)
def test_text_that_is_not_base64_is_refused_by_field(text: str, told: str | None) -> None:
    if told is None:
        assert read_base64("x", text) == b"\0\0"
        return
    with pytest.raises(ApiError) as raised:
        read_base64("items.0.ref_audio", text)
    assert (raised.value.status, raised.value.param) == (400, "items.0.ref_audio")
    assert told in raised.value.message


async def test_bytes_of_wrapped_base64_count_as_audio(start: Start) -> None:
    running = await start(REPLY, TALKS, limits=Limits(max_json_bytes=110_000, drain_s=1))
    audio = AUDIO * 280  # 2.9 MB
    for text in (wrapped(audio, "\r\n"), base64.urlsafe_b64encode(audio).decode()):
        part: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": text}}
        async with running.http() as http:
            answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})
        assert answer.status_code == 200, answer.text
        assert running.behind.requests[-1]["audio"] == audio


@pytest.mark.parametrize("extra", range(-2, 3))
def test_files_of_several_parts_are_decoded_as_a_whole(extra: int) -> None:
    data = (AUDIO * 80)[: PART_BYTES // 4 * 3 + extra]
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("="), wrapped(data)):
        assert read_base64("audio", text) == data


@pytest.mark.parametrize("text", ["QUJD" * (PART_BYTES // 4 - 1) + "QUI=" + "QUJD", "QQ==QUJD", "A===", "A"])
def test_padding_is_only_accepted_at_the_end(text: str) -> None:
    with pytest.raises(ApiError, match="audio: expected base64"):
        read_base64("audio", text)
