"""Fields of `/v1/audio/speech` become the options that the server gets, also those of other engines."""

import json
from typing import Any

import pytest

from stretto_gateway.fields import HEADER
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import SPOKEN, Start

TIMED = PROFILE | {
    "frame_rate": 25.0,
    "tasks": [task | {"max_speech_s": 20.0, "max_text_rows": 500} for task in PROFILE["tasks"]],
}
EVERY_OPTION = {
    "seed": 3,
    "guidance_scale": 1.5,
    "text": {"top_k": 2},
    "audio": {"top_k": 4},
    "chunking": {"deterministic": True},
    "depth": {"temperature": 0.5},
    "language": "english",
    "text_mode": "whole",
    "transliterate": True,
    "voice": "rms",
}
# What a model is, and the options for each request's fields; those of the sample rate are in test_speech.py.
SENT: dict[str, tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]] = {
    "two voices": (
        PROFILE,
        [
            *(({"voice": name}, {"voice": "rms"}) for name in ("RMS", "Ryan", "uncle_fu", "am_adam", {"id": "Onyx"})),
            *(({"voice": name}, {"voice": "slt"}) for name in ("slt", "Vivian", "Alloy", "af_heart")),
            (EVERY_OPTION, EVERY_OPTION),
            ({"instructions": "Whisper."}, {"instruct": "Whisper."}),
            ({"instructions": ""}, {}),
        ],
    ),
    "voices of other engines": (
        PROFILE | {"voices": ["eric", "ryan"]},
        [({"voice": name}, {"voice": "ryan"}) for name in ("ryan", "Ryan")],
    ),
    "voices in capitals": (PROFILE | {"voices": ["Ryan", "ryan"]}, [({"voice": "ryan"}, {"voice": "ryan"})]),
    "no voices": (PROFILE | {"voices": []}, [({"voice": "Ryan"}, {})]),
    "languages": (
        PROFILE | {"options": ["text_mode", "language"], "languages": ["english", "german"]},
        [
            ({"non_streaming_mode": True}, {"text_mode": "whole"}),
            ({"non_streaming_mode": False}, {"text_mode": "streaming"}),
            ({"non_streaming_mode": True, "text_mode": "streaming"}, {"text_mode": "streaming"}),
            ({"language": "Auto"}, {}),
            ({"language": "de"}, {"language": "german"}),
            ({"language": "de-AT"}, {"language": "german"}),
            ({"language": "English"}, {"language": "english"}),
        ],
    ),
    "frames": (
        TIMED,
        [
            ({"max_new_tokens": 50}, {"max_audio_s": 2.0}),
            ({"max_completion_tokens": 50}, {"max_audio_s": 2.0}),
            ({"max_completion_tokens": 50, "max_new_tokens": 25}, {"max_audio_s": 1.0}),
            ({"max_new_tokens": 50, "max_audio_s": 1.5}, {"max_audio_s": 1.5}),
            ({"max_new_tokens": 25, "max_audio_s": 1.5}, {"max_audio_s": 1.0}),
            ({"max_new_tokens": 4096}, {}),
        ],
    ),
}


@pytest.mark.parametrize("model", SENT)
async def test_fields_become_options(start: Start, model: str) -> None:
    profile, requests = SENT[model]
    running = await start(SPOKEN, profile)
    async with running.http() as http:
        for fields, expected in requests:
            body = {"input": "A cat.", "response_format": "pcm"} | fields
            answer = await http.post("/v1/audio/speech", json=body)
            assert (answer.status_code, HEADER in answer.headers) == (200, False), (fields, answer.text)
            request = running.behind.requests[-1]
            options = json.loads(request["options"])
            assert request["text"] == b"A cat."
            assert options.pop("output") == {"encoding": "pcm_s16le", "sample_rate": 24_000}
            assert options == expected, fields
