"""`/v1/audio/transcriptions` with OpenAI's own client."""

import json
import zlib
from typing import Any

import numpy as np
import pytest
from openai.types.audio import Transcription, TranscriptionSegment

from stretto_gateway.config import Limits
from stretto_gateway.encoding import wav_header
from stretto_gateway.transcription import Transcript, transcript_response
from tests.client.fake_server import PROFILE, REPORT, Chunk
from tests.gateway.conftest import Start
from tests.gateway.openai_types import SERVER_EVENTS, mismatch
from tests.gateway.test_chat import task

WRITTEN = [Chunk(0, None, text="a "), Chunk(1, None, text="cat "), Chunk(2, None, is_final=True, is_last=True)]
SECONDS = REPORT["input_audio_s"]  # as the server has decoded it, whatever the header of the file declares
PCM = np.zeros(8_000, np.int16).tobytes()
FILE = ("cat.wav", wav_header(16_000, len(PCM)) + PCM)
HINTED = task("asr", needs=["audio"], also=[], speaks=False, has_history=False, reads_language=True)
READS_HINTS = PROFILE | {"languages": ["english", "french"], "tasks": [HINTED]}
TRANSLATES = PROFILE | {"tasks": [*PROFILE["tasks"], task("translate", needs=["audio"], also=[], speaks=False)]}


async def test_transcription_is_returned_in_each_format(start: Start) -> None:
    running = await start(WRITTEN)
    create = running.openai().audio.transcriptions.create
    assert (await create(model="whisper-1", file=FILE, language="en", temperature=0.5)).text == "a cat"
    assert await create(model="tiny", file=FILE, response_format="text") == "a cat\n"
    verbose: Any = await create(
        model="tiny", file=FILE, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert (verbose.text, verbose.duration, verbose.segments[0].end) == ("a cat", SECONDS, SECONDS)
    assert verbose.segments[0].compression_ratio == 5 / len(zlib.compress(b"a cat"))
    assert verbose.segments[0].unmeasured == ["tokens", "avg_logprob", "no_speech_prob", "temperature"]
    warm: Any = await create(model="tiny", file=FILE, response_format="verbose_json", temperature=0.25)
    assert warm.segments[0].temperature == 0.25
    assert "temperature" not in warm.segments[0].unmeasured
    srt = await create(model="tiny", file=FILE, response_format="srt")
    assert srt == "1\n00:00:00,000 --> 00:00:01,250\na cat\n\n"
    vtt = await create(model="tiny", file=FILE, response_format="vtt")
    assert vtt == "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\na cat\n\n"
    first = running.behind.requests[0]
    assert (first["audio"], first["task"], first["options"]) == (FILE[1], b"asr", b'{"temperature": 0.5}')


async def test_transcription_text_is_streamed(start: Start) -> None:
    client = (await start(WRITTEN)).openai()
    stream = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=FILE, stream=True)
    events: list[Any] = [event async for event in stream]
    assert [event.delta for event in events[:-1]] == ["a ", "cat "]
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", "a cat")


@pytest.mark.parametrize(
    ("languages", "asked", "language"),
    [
        (["english", "en"], None, "english"),
        (["en"], "de", "english"),
        (["french", "english"], None, ""),
        (["french", "english"], "fr-CA", "french"),
        (["french", "english"], "German", ""),
        ([], "de", "german"),
        ([], "auto", ""),
        ([], None, ""),
    ],
)
async def test_verbose_transcript_has_the_known_language(
    start: Start, languages: list[str], asked: str | None, language: str
) -> None:
    client = (await start(WRITTEN, PROFILE | {"languages": languages})).openai()
    more: Any = {} if asked is None else {"language": asked}
    answer: Any = await client.audio.transcriptions.create(
        model="whisper-1", file=FILE, response_format="verbose_json", **more
    )
    assert answer.language == language


async def test_language_and_prompt_are_sent_to_a_model_that_reads_them(start: Start) -> None:
    running = await start(WRITTEN, READS_HINTS, strict=True)
    create = running.openai().audio.transcriptions.create
    hints: Any = {"language": "fr-CA", "prompt": "Seine", "response_format": "verbose_json"}
    answer: Any = await create(model="whisper-1", file=FILE, **hints)
    assert answer.language == "french"
    request = running.behind.requests[0]
    assert json.loads(request["options"]) == {"language": "french"}
    turns = [{"role": "system", "text": "Seine"}, {"role": "user", "audio": "audio"}]
    assert (json.loads(request["messages"]), request["audio"]) == (turns, FILE[1])
    async with running.http() as http:
        form = {"model": "whisper-1", "language": "klingon"}
        answer = await http.post("/v1/audio/transcriptions", files={"file": FILE}, data=form)
    assert (answer.status_code, answer.headers["stretto-ignored"]) == (200, "language")
    assert "options" not in running.behind.requests[1]


async def test_verbose_transcript_has_the_language_that_the_model_names(start: Start) -> None:
    named = Chunk(1, None, is_final=True, is_last=True, more={"report": REPORT | {"language": "french"}})
    running = await start([WRITTEN[0], named], READS_HINTS)
    create = running.openai().audio.transcriptions.create
    answer: Any = await create(model="whisper-1", file=FILE, response_format="verbose_json")
    assert answer.language == "french"


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_urlencoded_form_obeys_the_json_size_limit(start: Start, path: str) -> None:
    async with (await start(WRITTEN, TRANSLATES, limits=Limits(max_json_bytes=1000, drain_s=1))).http() as http:
        answer = await http.post(path, files={"file": FILE}, data={"model": "whisper-1"})
        assert answer.status_code == 200
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = await http.post(path, content=b"&" * 2000, headers=form)
        assert answer.status_code == 413


async def test_translations_are_returned_in_each_format(start: Start) -> None:
    running = await start(WRITTEN, TRANSLATES, strict=True)
    create = running.openai().audio.translations.create
    assert (await create(model="whisper-1", file=FILE, temperature=2.5)).text == "a cat"
    assert await create(model="tiny", file=FILE, response_format="text") == "a cat\n"
    assert await create(model="tiny", file=FILE, response_format="srt") == "1\n00:00:00,000 --> 00:00:01,250\na cat\n\n"
    verbose: Any = await create(model="tiny", file=FILE, response_format="verbose_json")
    assert (verbose.text, verbose.language, verbose.duration) == ("a cat", "english", SECONDS)
    first = running.behind.requests[0]
    assert (first["audio"], first["task"], first["options"]) == (FILE[1], b"translate", b'{"temperature": 2.5}')


ALIGNS = PROFILE | {"options": ["words"]}
WORDS: dict[str, Any] = {"model": "tiny", "file": FILE, "response_format": "verbose_json"}


async def test_transcription_word_times_come_from_the_aligner(start: Start) -> None:
    timed = Chunk(2, None, aligned=(("a", 0.02, 0.1), ("cat", 0.16, 0.22)), is_final=True, is_last=True)
    running = await start([*WRITTEN[:2], timed], ALIGNS)
    create = running.openai().audio.transcriptions.create
    verbose: Any = await create(**WORDS, timestamp_granularities=["word"])
    assert [(word.word, word.start, word.end) for word in verbose.words] == [("a", 0.02, 0.1), ("cat", 0.16, 0.22)]
    assert (verbose.text, len(verbose.segments)) == ("a cat", 1)
    await create(**WORDS, timestamp_granularities=["segment"])
    assert [each.get("options") for each in running.behind.requests] == [b'{"words": "aligned"}', None]


async def test_transcript_without_timely_alignment_has_no_words(start: Start) -> None:
    late = Chunk(2, None, aligned=(), is_final=True, is_last=True)
    async with (await start([*WRITTEN[:2], late], ALIGNS)).http() as http:
        form = {"model": "tiny", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        answer = await http.post("/v1/audio/transcriptions", files={"file": FILE}, data=form)
    assert answer.status_code == 200
    assert "stretto-ignored" not in answer.headers
    assert "words" not in answer.json()
    assert answer.json()["untimed_words"] == ["a", "cat"]


@pytest.mark.parametrize(
    ("response_format", "body"),
    [
        ("json", b'{"text":""}'),
        ("text", b"\n"),
        ("srt", b""),
        ("vtt", b"WEBVTT\n\n"),
        ("verbose_json", b'{"duration":2.0,"text":"","segments":[]}'),
    ],
)
def test_empty_transcript_has_no_segment(response_format: str, body: bytes) -> None:
    assert transcript_response(response_format, Transcript("", {"input_audio_s": 2.0}), {}).body == body


PASSAGES = [
    {"text": "Good morning.", "start_s": 0.0, "end_s": 1.25, "speaker": "0"},
    {"text": "Hello --> you.\n\n", "start_s": 1.25, "end_s": 3661.5, "speaker": ""},
]
SAID = [
    Chunk(0, None, text="Good morning.", more={"passages": PASSAGES[:1]}),
    Chunk(1, None, text=" Hello --> you.", more={"passages": PASSAGES[1:]}),
    Chunk(2, None, is_final=True, is_last=True),
]


async def test_passages_are_segments_with_speakers(start: Start) -> None:
    client = (await start(SAID)).openai()
    create = client.audio.transcriptions.create
    diarized: Any = await create(model="tiny", file=FILE, response_format="diarized_json")
    expected = [(passage["text"], passage["start_s"], passage["end_s"], passage["speaker"]) for passage in PASSAGES]
    assert [(part.text, part.start, part.end, part.speaker) for part in diarized.segments] == expected
    assert (diarized.text, diarized.duration) == ("Good morning. Hello --> you.", SECONDS)
    verbose: Any = await create(model="tiny", file=FILE, response_format="verbose_json")
    assert [(part.id, part.text, part.start, part.end) for part in verbose.segments] == [
        (number, *entry[:3]) for number, entry in enumerate(expected)
    ]
    srt = await create(model="tiny", file=FILE, response_format="srt")
    first = "1\n00:00:00,000 --> 00:00:01,250\nGood morning.\n\n"
    assert srt == f"{first}2\n00:00:01,250 --> 01:01:01,500\nHello -> you.\n\n"
    vtt = await create(model="tiny", file=FILE, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nGood morning.\n\n00:00:01.250 --> 01:01:01.500\n")


async def test_passages_are_streamed(start: Start) -> None:
    client = (await start(SAID)).openai()
    stream = await client.audio.transcriptions.create(
        model="tiny", file=FILE, response_format="diarized_json", stream=True
    )
    events: list[Any] = [event async for event in stream]
    names = ["delta", "segment", "delta", "segment", "done"]
    assert [event.type for event in events] == [f"transcript.text.{name}" for name in names]
    assert [event.speaker for event in events[1:4:2]] == ["0", ""]


async def test_transcript_without_speakers_is_one_segment_of_an_unknown_speaker(start: Start) -> None:
    create = (await start(WRITTEN)).openai().audio.transcriptions.create
    whole: Any = await create(model="tiny", file=FILE, response_format="diarized_json")
    stream = await create(model="tiny", file=FILE, response_format="diarized_json", stream=True)
    events: list[Any] = [event async for event in stream]
    for (segment,) in (whole.segments, [event for event in events if event.type == "transcript.text.segment"]):
        assert (segment.text, segment.start, segment.end, segment.speaker) == ("a cat", 0.0, SECONDS, "")


async def test_every_segment_has_the_fields_of_openais_type(start: Start) -> None:
    """Fields that no model reports are numbers, because strictly typed clients accept no null."""
    async with (await start(WRITTEN, TRANSLATES)).http() as http:
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            form = {"model": "tiny", "response_format": "verbose_json"}
            body = (await http.post(path, files={"file": FILE}, data=form)).json()
            (segment,) = body["segments"]
            assert TranscriptionSegment.model_validate(segment, strict=True).text == "a cat"
            assert segment["unmeasured"] == ["tokens", "avg_logprob", "no_speech_prob", "temperature"]


def test_strict_comparison_finds_missing_and_mistyped_fields() -> None:
    verbose = (
        b'{"text": "a", "duration": 1.5, "language": "", "segments": [{"id": 0, "start": 0, "end": 1, "text": "a"}]}'
    )
    assert "avg_logprob" in mismatch(Transcription, verbose)
    assert "usage" in mismatch(Transcription, b'{"text": "a", "usage": {"type": "tokens", "input_tokens": "5"}}')
    assert mismatch(Transcription, b'{"text": "a"}') == ""
    assert "item_id" in mismatch(SERVER_EVENTS["conversation.item.deleted"], b'{"type": "conversation.item.deleted"}')


@pytest.mark.parametrize(
    "name", ["filename*=UTF-8''%C3%A4.wav", "filename*=utf-8''a.wav; filename=a.wav", 'filename="a.wav"', 'filename=""']
)
async def test_file_is_uploaded_under_every_form_of_its_name(start: Start, name: str) -> None:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; {name}\r\nContent-Type: audio/wav\r\n\r\n'
    model = '\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--B--\r\n'
    running = await start(WRITTEN)
    async with running.http() as http:
        answer = await http.post(
            "/v1/audio/transcriptions",
            content=head.encode() + FILE[1] + model.encode(),
            headers={"content-type": "multipart/form-data; boundary=B"},
        )
    assert answer.json()["text"] == "a cat"
    assert running.behind.requests[0]["audio"] == FILE[1]
