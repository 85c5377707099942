"""Recognisers of speech: models of a Stretto server, or models with OpenAI's API for transcriptions."""

import json
import os
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from stretto_client.errors import ServerFailed, ServerUnavailable
from stretto_client.long_speech import Speech
from stretto_client.model_profile import ModelProfile
from stretto_client.sinks import pcm16, wav_header
from stretto_client.voices import Audio
from stretto_contract.languages import CODES, code_name
from stretto_contract.schema import OptionsRecord

SELF = "self"
TASK = "asr"
KEY = "STRETTO_CHECK_KEY"
FORMS = "'self', grpc://HOST:PORT or http://HOST:PORT/v1?model=NAME, with languages=en,fr if the model knows only these"
FIELDS = {"grpc": {"languages"}, "http": {"languages", "model"}, "https": {"languages", "model"}}
MAX_ANSWER_BYTES = 65_536


@dataclass(frozen=True)
class Address:
    """Address of a recogniser.

    Attributes:
        url: URL without its query; empty for the server that speaks.
        model: Name of the model in requests to OpenAI's API.
        languages: English names of the languages that the model understands; empty if the model itself reports them.
    """

    url: SplitResult
    model: str = "whisper-1"
    languages: frozenset[str] = frozenset()

    @classmethod
    def from_text(cls, text: str) -> "Address":
        """Parse an address in one of FORMS; raise ValueError if it is invalid."""
        if text == SELF:
            return cls(urlsplit(""))
        try:
            url = urlsplit(text)
            query = dict(parse_qsl(url.query, strict_parsing=True)) if url.query else {}
            is_valid = bool(url.hostname) and not url.fragment and query.keys() <= FIELDS[url.scheme]
            has_port = url.port is not None  # raises ValueError if the port is not a number
            is_valid &= url.scheme != "grpc" or (has_port and url.path in ("", "/"))
        except (ValueError, KeyError):
            is_valid = False
        if not is_valid or "@" in url.netloc:
            raise ValueError(f"expected {FORMS}, got {text!r}")
        if url.scheme != "grpc" and find_spec("aiohttp") is None:
            raise ValueError(f"expected the package aiohttp to be installed for {text!r}")
        languages = frozenset(map(code_name, filter(None, query.get("languages", "").split(","))))
        return cls(url._replace(query=""), query.get("model", cls.model), languages)


class Client(Protocol):
    """Client of a Stretto server."""

    async def profile(self) -> ModelProfile: ...

    def transcribe(self, audio: Audio, /, *, task: str, **options: Unpack[OptionsRecord]) -> Speech: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Ability:
    """Languages and maximum duration that a recogniser supports.

    Attributes:
        languages: English names of languages, in lower case; empty if they are unknown.
        longest_s: Maximum duration of speech in seconds; 0 if it is unknown.
    """

    languages: frozenset[str] = frozenset()
    longest_s: float = 0.0


class Recogniser(Protocol):
    """Model that transcribes speech."""

    async def ability(self) -> Ability:
        """Return the limits of the model; raises the same as `transcribe`."""
        ...

    async def transcribe(self, pcm: NDArray[np.float32], sample_rate: int, language: str) -> str:
        """Return the transcript of samples [n]; `language` is the English name, or empty.

        Raises:
            ClientError: The model does not transcribe or is not available, or its answer is invalid.
            ValueError: The server's profile is invalid.
        """
        ...


class ServerRecogniser:
    """Model with a task for transcription on a Stretto server."""

    def __init__(self, client: Client):
        self._client = client

    async def ability(self) -> Ability:
        profile = await self._client.profile()
        if profile.task(TASK) is None:
            raise ServerFailed(f"expected a model that transcribes, got {profile.family!r}")
        return Ability(frozenset(map(code_name, profile.languages)), profile.max_audio_s)

    async def transcribe(self, pcm: NDArray[np.float32], sample_rate: int, language: str) -> str:
        text = ""
        profile = await self._client.profile()
        name = next((name for name in profile.languages if code_name(name) == language), None)
        options: OptionsRecord = {} if name is None else {"language": name}
        async with aclosing(self._client.transcribe((pcm, sample_rate), task=TASK, **options)) as events:
            async for event in events:
                text += event.text
                if len(text) > MAX_ANSWER_BYTES:
                    raise ServerFailed(f"expected a transcript of at most {MAX_ANSWER_BYTES} characters, got more")
        return text


class WebRecogniser:
    """Model with OpenAI's endpoint `POST /v1/audio/transcriptions`. The environment may contain its API key."""

    def __init__(self, address: Address):
        path = address.url.path.rstrip("/") or "/v1"
        self._url = address.url._replace(path=f"{path}/audio/transcriptions").geturl()
        self._model = address.model
        key = os.environ.get(KEY, "").strip()
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def ability(self) -> Ability:
        return Ability()

    async def transcribe(self, pcm: NDArray[np.float32], sample_rate: int, language: str) -> str:
        from aiohttp import ClientError as WebError
        from aiohttp import ClientSession, DummyCookieJar, FormData, InvalidURL

        samples = pcm16(pcm)
        form = FormData({"model": self._model, "response_format": "json", "temperature": "0"})
        form.add_field("file", wav_header(sample_rate, len(samples)) + samples, filename="speech.wav")
        if code := next((code for code, name in CODES.items() if name == language), ""):
            form.add_field("language", code)
        # without compression, which could hide a large answer
        session = ClientSession(headers=self._headers, cookie_jar=DummyCookieJar(), auto_decompress=False)
        try:
            async with session, session.post(self._url, data=form, allow_redirects=False) as response:
                if response.status != 200:
                    raise ServerFailed(f"expected status 200, got {response.status}")
                content = b""
                async for received in response.content.iter_any():
                    content += received
                    if len(content) > MAX_ANSWER_BYTES:
                        raise ServerFailed(f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, got more")
        except (WebError, InvalidURL) as error:
            raise ServerUnavailable(str(error) or type(error).__name__) from None
        return _text_of(content)


def _text_of(content: bytes) -> str:
    try:
        answer: Any = json.loads(content)
        text = answer["text"]
    except (ValueError, RecursionError, TypeError, KeyError):
        text = None
    if not isinstance(text, str):
        raise ServerFailed(f"expected JSON with a string `text`, got {content[:100]!r}")
    return text
