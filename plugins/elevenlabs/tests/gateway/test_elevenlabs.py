"""ElevenLabs' HTTP API: speech with the times of its characters, voices, models and errors."""

import base64
import io
import json
import wave
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from stretto_elevenlabs.errors import PATHS
from stretto_elevenlabs.fields import OUTPUT_FORMATS
from stretto_gateway.config import Limits
from tests.client.fake_server import PROFILE, Chunk, ErrorText, Request, Step
from tests.gateway.conftest import SPOKEN, Running, Start
from tests.gateway.test_openapi import check
from tests.gateway.test_voices import CLONES, added_voice
from tests.tiers import by_night

TEXT = "It is nine."
FOREIGN = "JBFqnCBsd6RMkjVDRZzb"  # id of one of ElevenLabs' own voices
KEY = "sk-0123456789abcdef"
WORD_S = 0.04
WORD_SAMPLES = 640  # of the scripted server, which speaks at 16 kHz
SPOKEN_WITHOUT_TIMES = [Chunk(0, WORD_SAMPLES, is_16_bit=True, is_final=True, is_last=True)]
SHOWN = ["mp3_44100_128", "opus_48000_64", "wav_24000", "ulaw_8000", "pcm_16000"]  # one of each encoder
OTHERS = [name for name in OUTPUT_FORMATS if name not in SHOWN]


def speaks(request: Request) -> list[Step]:
    """Speak each word of the text for WORD_S."""
    words = [word.strip(".,") for word in request["text"].decode().split()]
    ends = [{}] * (len(words) - 1) + [{"is_final": True, "is_last": True}]
    return [
        Chunk(index, WORD_SAMPLES, words=(word,), is_16_bit=True, **end)
        for index, (word, end) in enumerate(zip(words, ends, strict=True))
    ]


def path(voice: str = "slt", way: str = "", output_format: str = "pcm_16000") -> str:
    return f"/v1/text-to-speech/{voice}{way}?output_format={output_format}"


async def post(running: Running, url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    async with running.http() as http:
        return await http.post(url, json={"text": TEXT} | body, headers=headers)


@pytest.mark.parametrize("name", [*SHOWN, *by_night(*OTHERS)])
async def test_speech_has_the_format_and_rate_of_its_name(start: Start, name: str) -> None:
    running = await start(speaks)
    answers = [await post(running, path(way=way, output_format=name), model_id="eleven_v3") for way in ("", "/stream")]
    codec, rate, *_ = name.split("_")
    sent = json.loads(running.behind.requests[0]["options"])["output"]
    assert sent["sample_rate"] == int(rate)
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("audio/")
        if codec in ("pcm", "ulaw", "alaw"):
            assert len(answer.content) == 3 * WORD_SAMPLES * (2 if codec == "pcm" else 1)
        else:
            with av.open(io.BytesIO(answer.content)) as container:
                assert container.streams.audio[0].rate == int(rate)


async def test_bit_rate_is_that_of_the_name(start: Start) -> None:
    running = await start(speaks)
    sizes = [len((await post(running, path(output_format=f"mp3_44100_{kbps}"))).content) for kbps in (32, 192)]
    answer = await post(running, path(output_format="mp3_44100_192"))
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.streams.audio[0].bit_rate == 192_000
    assert sizes[0] < sizes[1]


async def test_fields_have_their_meaning_and_others_are_listed(start: Start) -> None:
    running = await start(speaks, PROFILE | {"languages": ["english", "german"], "options": ["language"]})
    settings = {"speed": 2.0, "stability": 0.5}
    answer = await post(running, path(), seed=7, language_code="de", voice_settings=settings, previous_text="Hi.")
    assert len(answer.content) == 3 * WORD_SAMPLES  # half of the samples
    assert answer.headers["stretto-ignored"] == "previous_text, voice_settings.stability"
    options = json.loads(running.behind.requests[0]["options"])
    assert (options["seed"], options["language"], options["voice"]) == (7, "german", "slt")
    answer = await post(running, path(FOREIGN), language_code="ja")
    assert answer.headers["stretto-ignored"] == "voice_id, language_code"
    assert "voice" not in json.loads(running.behind.requests[1]["options"])


def characters(times: dict[str, list[Any]]) -> list[tuple[str, float, float]]:
    return list(
        zip(
            times["characters"],
            times["character_start_times_seconds"],
            times["character_end_times_seconds"],
            strict=True,
        )
    )


@pytest.mark.parametrize("speed", [1.0, 2.0])
async def test_characters_share_the_times_of_words(start: Start, speed: float) -> None:
    running = await start(speaks)
    settings = {"voice_settings": {"speed": speed}}
    whole = (await post(running, path(way="/with-timestamps"), **settings)).json()
    streamed = await post(running, path(way="/stream/with-timestamps"), **settings)
    chunks = [json.loads(line) for line in streamed.text.splitlines()]
    expected = []
    for index, word in enumerate(("It", "is", "nine")):
        step_s = WORD_S / speed / len(word)
        begin_s = index * WORD_S / speed
        expected += [(letter, begin_s + step_s * n, begin_s + step_s * (n + 1)) for n, letter in enumerate(word)]
        end_s = begin_s + WORD_S / speed
        expected.append((" ."[word == "nine"], end_s, end_s))
    timed = characters(whole["alignment"])
    assert [letter for letter, _, _ in timed] == list(TEXT)
    np.testing.assert_allclose([times for _, *times in timed], [times for _, *times in expected], atol=5e-4)
    assert whole["alignment"] == whole["normalized_alignment"]
    assert [times for chunk in chunks if chunk["alignment"] for times in characters(chunk["alignment"])] == timed
    audio = b"".join(base64.b64decode(chunk["audio_base64"]) for chunk in chunks)
    assert audio == base64.b64decode(whole["audio_base64"])
    assert len(audio) == round(3 * WORD_SAMPLES / speed) * 2


async def test_aligned_words_come_after_their_audio(start: Start) -> None:
    words = (("It", 0.01, 0.03), ("nine", 0.07, 0.1))
    script = [
        Chunk(0, 3 * WORD_SAMPLES, is_16_bit=True),
        Chunk(3, None, aligned=words, is_final=True, is_last=True),
    ]
    running = await start(script, PROFILE | {"times_words": False, "options": ["words"]})
    answer = await post(running, path(way="/with-timestamps"))
    timed = characters(answer.json()["alignment"])
    assert json.loads(running.behind.requests[0]["options"])["words"] == "aligned"
    assert [letter for letter, _, _ in timed] == list(TEXT)
    assert (timed[0][1], timed[1][2], timed[6][1], timed[9][2], timed[10][2]) == (0.01, 0.03, 0.07, 0.1, 0.12)
    assert timed[2] == (" ", 0.03, 0.04)  # the untimed word and its spaces share the time between the others


async def test_file_with_times_has_its_length(start: Start) -> None:
    running = await start(speaks)
    text = "word " * 100
    answer = await post(running, path(way="/with-timestamps", output_format="wav_16000"), text=text)
    with wave.open(io.BytesIO(base64.b64decode(answer.json()["audio_base64"]))) as file:
        assert file.getnframes() == 100 * WORD_SAMPLES


async def test_file_with_times_is_limited(start: Start) -> None:
    running = await start(speaks, limits=Limits(max_batch_bytes=3 * WORD_SAMPLES, drain_s=1))
    answer = await post(running, path(way="/with-timestamps"))
    assert answer.status_code == 413
    assert answer.json()["detail"]["message"].startswith(f"text: expected a text of at most {3 * WORD_SAMPLES} bytes")


@pytest.mark.parametrize("is_strict", [False, True])
async def test_model_without_word_times_has_no_alignment(start: Start, is_strict: bool) -> None:
    running = await start(SPOKEN_WITHOUT_TIMES, PROFILE | {"times_words": False}, strict=is_strict)
    answer = await post(running, path(way="/with-timestamps"))
    if is_strict:
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "alignment"]
    else:
        assert answer.json()["alignment"] is None
        assert answer.headers["stretto-ignored"] == "alignment"


REFUSED = [
    ({"text": None}, path(), ["body", "text"]),
    ({"seed": -1}, path(), ["body", "seed"]),
    ({"voice_settings": {"speed": 9}}, path(), ["body", "voice_settings", "speed"]),
    ({}, path(output_format="flac_44100"), ["query", "output_format"]),
    (
        {"pronunciation_dictionary_locators": [{"pronunciation_dictionary_id": "a"}]},
        path(),
        ["body", "pronunciation_dictionary_locators"],
    ),
]


@pytest.mark.parametrize(("body", "url", "place"), REFUSED)
async def test_invalid_fields_are_listed_with_their_place(
    start: Start, body: dict[str, Any], url: str, place: list[str]
) -> None:
    answer = await post(await start(speaks), url, **body)
    assert answer.status_code == 422
    (violation,) = answer.json()["detail"]
    assert violation["loc"] == place
    assert ", got " in violation["msg"]


@pytest.mark.parametrize("name", ["page_size", "next_page_token"])
async def test_invalid_query_is_named(start: Start, name: str) -> None:
    async with (await start(speaks)).http() as http:
        (violation,) = (await http.get("/v2/voices", params={name: -1})).json()["detail"]
    assert violation["loc"] == ["query", name]
    assert violation["msg"].endswith(", got '-1'")


async def test_other_errors_have_a_code_and_the_id_of_the_request(start: Start) -> None:
    full = await start([ErrorText("full: 9 utterances are already in flight")], limits=Limits(full_s=0.0, drain_s=1))
    keyed = await start(speaks, keys=(KEY,))
    answers = [
        (await post(full, path()), 429, "server_full"),
        (await post(full, path("nobody")), 404, "voice_not_found"),
        (await post(keyed, path()), 401, "invalid_api_key"),
        (await post(keyed, path(), {"xi-api-key": "sk-other"}), 401, "invalid_api_key"),
    ]
    for answer, status, code in answers:
        detail = answer.json()["detail"]
        assert (answer.status_code, detail["code"], detail["status"]) == (status, code, code)
        assert detail["request_id"] == answer.headers["x-request-id"]
        assert status != 401 or detail["message"] == "no valid key: expected the header xi-api-key"
    assert (await post(keyed, path(), {"xi-api-key": KEY})).status_code == 200
    async with keyed.http() as http:
        other = await http.post("/v1/audio/speech", json={"input": TEXT}, headers={"xi-api-key": KEY})
    assert other.json()["error"]["code"] == "invalid_api_key"  # the header is that of ElevenLabs' paths only


async def test_voices_are_those_of_the_gateway_page_by_page(start: Start, tmp_path: Path) -> None:
    details = {"slt": {"language": "en-US", "gender": "female", "description": "bright"}}
    running = await start(SPOKEN, CLONES | {"voice_details": details}, voices=tmp_path)
    own = await added_voice(running, language="English", description="calm")
    async with running.http() as http:
        voices = (await http.get("/v1/voices")).json()["voices"]
        pages = [(await http.get("/v2/voices", params={"page_size": 1})).json()]
        while pages[-1]["has_more"]:
            token = pages[-1]["next_page_token"]
            pages.append((await http.get("/v2/voices", params={"page_size": 1, "next_page_token": token})).json())
        one = (await http.get(f"/v1/voices/{own}")).json()
        sought = (await http.get("/v2/voices", params={"search": one["name"].upper()})).json()
        unknown = await http.get("/v1/voices/nobody")
        answer = await http.post(path(own), json={"text": TEXT})
        previews = [await http.get(voice["preview_url"]) for voice in voices]
    assert [voice for page in pages for voice in page["voices"]] == voices
    assert {page["total_count"] for page in pages} == {len(voices)}
    assert one in voices
    assert (one["category"], one["description"], one["labels"]) == ("cloned", "calm", {"language": "English"})
    labels = {"language": "en-US", "gender": "female"}
    assert (voices[0]["category"], voices[0]["description"], voices[0]["labels"]) == ("premade", "bright", labels)
    assert (voices[1]["description"], voices[1]["labels"]) == (None, {})
    assert {preview.headers["content-type"] for preview in previews} == {"audio/mpeg"}
    assert one in sought["voices"]
    assert (unknown.status_code, unknown.json()["detail"]["status"]) == (404, "voice_not_found")
    assert answer.status_code == 200


async def test_path_of_models_answers_both_apis(start: Start) -> None:
    running = await start(speaks, PROFILE | {"languages": ["english"]})
    async with running.http() as http:
        theirs = (await http.get("/v1/models", headers={"xi-api-key": "unused"})).json()
        ours = (await http.get("/v1/models")).json()
    assert [model["model_id"] for model in theirs] == [model["id"] for model in ours["data"]]
    assert theirs[0]["languages"] == [{"language_id": "en", "name": "English"}]
    assert theirs[0]["can_do_text_to_speech"] is True


async def test_responses_match_the_openapi_schema(start: Start) -> None:
    running = await start(speaks)
    async with running.http() as http:
        schema = (await http.get("/openapi.json")).json()
        for url, described in schema["paths"].items():
            if not url.startswith(PATHS):
                continue
            for method in described:
                for voice in ("slt", "nobody"):
                    known = {"json": {"text": TEXT}} if method == "post" else {}
                    answer = await http.request(method, url.format(voice_id=voice), **known)
                    check(schema, method, url, answer)
                    assert answer.status_code == (404 if voice == "nobody" and "{voice_id}" in url else 200)
        answer = await http.post(path(), json={})
    check(schema, "post", "/v1/text-to-speech/{voice_id}", answer)
