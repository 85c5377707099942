"""`GET /v1/audio/speech/ID/receipt`: receipts of the gateway's speech, and whose they are."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import c2pa
import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from stretto_client.manifest import FileSigner, read_manifest
from stretto_client.receipt import CodeDigest, Receipt, frame_checks, read_receipt, text_digest
from stretto_client.signature import from_jwk, key_id, open_signed
from stretto_gateway.caller_records import CallerRecords
from stretto_gateway.config import MIB, CacheSettings
from stretto_gateway.voice_store import VoiceStore
from tests.client.fake_server import PROFILE, Chunk, Request, Step, Until
from tests.gateway.conftest import Running, Start
from tests.gateway.test_speech_cache import MODEL, noise
from tests.gateway.test_voices import CLONES
from tests.patience import until_async
from tests.signing_certificates import chain

PATH = "/v1/audio/speech"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PRIVATE_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
FILE_SIGNER = FileSigner(chain(KEY), KEY)
KEYS = ("the-key-of-the-first", "the-key-of-the-other")
BODY = {"model": "tts-1", "voice": "rms", "input": "A cat sat.", "response_format": "pcm", "seed": 1}
SAMPLES = 4800
WITHOUT_HAS_CODES = {name: value for name, value in PROFILE.items() if name != "has_codes"}
CODES = np.arange(20, dtype=np.int32).reshape(2, 10)
SILENT = np.zeros(6 * 24_000, np.int16)


def spoken(request: Request) -> list[Step]:
    """Speak with CODES; an attempt that is not drawn anew is silent."""
    options = json.loads(request["options"])
    assert options["output"]["codes"]
    is_faulty = request.get("text") == b"A dog." and "redraw_from" not in options
    pcm = SILENT if is_faulty else noise(1, SAMPLES)
    return [
        Chunk(0, len(pcm), is_16_bit=True, pcm=pcm, codes=CODES[:, :6].tolist()),
        Chunk(1, None, codes=CODES[:, 6:].tolist(), is_final=True, is_last=True),
    ]


async def started(start: Start, script: Any = spoken, **settings: Any) -> Running:
    """Start a gateway that signs receipts."""
    running = await start(script, signing_key=KEY, **settings)
    running.behind.name = json.dumps(MODEL)
    return running


def of_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def receipt_of(http: httpx.AsyncClient, answer: httpx.Response) -> Receipt:
    """Return the receipt of a response, whose signature is checked with the published key."""
    assert answer.status_code == 200, answer.text
    signed = await http.get(f"{PATH}/{answer.headers['x-request-id']}/receipt")
    assert (signed.status_code, signed.headers["content-type"]) == (200, "application/jose+json"), signed.text
    opened = open_signed(signed.content)
    published = (await http.get("/v1/audio/receipts/key")).json()
    assert published["kid"] == key_id(opened.key) == key_id(from_jwk(published, "key"))
    return read_receipt(opened.payload)


FIELDS = [{}, {"response_format": "mp3"}, {"response_format": "wav", "stream": False}]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
async def test_receipt_describes_the_speech_and_the_file(start: Start, fields: dict[str, Any]) -> None:
    running = await started(start)
    body = BODY | fields | {"temperature": 0.5, "speed": 1.25}
    async with running.http() as http:
        answer = await http.post(PATH, json=body)
        receipt = await receipt_of(http, answer)
    digest = CodeDigest()
    digest.add(CODES)
    assert receipt["codes"] == digest.record()
    assert receipt["text_sha256"] == text_digest("A cat sat.")
    assert receipt["file"] == {
        "format": body["response_format"],
        "bytes": len(answer.content),
        "sha256": hashlib.sha256(answer.content).hexdigest(),
        "speed": 1.25,
    }
    assert (receipt["id"], receipt["model"]) == (answer.headers["x-request-id"], MODEL)
    assert (receipt["voice"], receipt["seed"], receipt["redraws"]) == ("rms", 7, [])
    arguments = {"join": "independent", "markup": "auto", "sample_rate": 24_000, "temperature": 0.5}
    assert receipt["arguments"] == arguments
    assert (receipt["samples"], receipt["finish_reason"]) == (SAMPLES, "stop")


async def test_receipt_has_the_draws_of_a_clause_that_was_faulty(start: Start) -> None:
    running = await started(start)
    async with running.http() as http:
        receipt = await receipt_of(http, await http.post(PATH, json=BODY | {"input": "A dog.", "hold_s": 60}))
    assert receipt["redraws"] == [[0]]
    assert len(frame_checks(receipt["codes"])) == CODES.shape[1]


async def test_receipt_has_the_voices_of_marks(start: Start, tmp_path: Path) -> None:
    running = await started(start, profile=CLONES, voices=tmp_path / "voices")
    VoiceStore(tmp_path / "voices", 100).add("everybody", "mine", "Me.", "yes", b"RIFF")
    async with running.http() as http:
        text = "A cat. [voice:mine]A cow. [voice:SLT]A rat. [voice:echo]A bat."
        receipt = await receipt_of(http, await http.post(PATH, json=BODY | {"input": text, "check": "off"}))
    digests = {"sha256": hashlib.sha256(b"RIFF").hexdigest(), "text_sha256": text_digest("Me.")}
    expected = json.loads(running.behind.requests[-1]["options"])["voice"]
    assert receipt["marked_voices"] == {"mine": digests, "SLT": "slt", "echo": expected}


@pytest.mark.parametrize("profile", [PROFILE | {"has_codes": False}, WITHOUT_HAS_CODES], ids=["has-none", "older"])
async def test_model_without_codes_has_receipts(start: Start, profile: dict[str, Any]) -> None:
    """Its server refuses requests for codes, and a model repository of an older version does not report it."""

    def script(request: Request) -> list[Step]:
        assert "codes" not in json.loads(request["options"]).get("output", {})
        return [Chunk(0, SAMPLES, is_16_bit=True, pcm=noise(1, SAMPLES), is_final=True, is_last=True)]

    running = await started(start, script, profile=profile)
    async with running.http() as http:
        receipt = await receipt_of(http, await http.post(PATH, json=BODY))
    assert (receipt["codes"]["frames"], receipt["samples"]) == (0, SAMPLES)


async def test_cached_speech_has_a_receipt_of_its_own(start: Start) -> None:
    running = await started(start, cache=CacheSettings(16 * MIB))
    async with running.http() as http:
        answers = [await http.post(PATH, json=BODY) for _ in range(2)]
        first, second = [await receipt_of(http, answer) for answer in answers]
    assert [answer.headers["stretto-cache"] for answer in answers] == ["miss", "hit"]
    assert len(running.behind.requests) == 1
    assert first["id"] != second["id"]
    assert {**first, "id": "", "time": ""} == {**second, "id": "", "time": ""}


@pytest.mark.parametrize("file_format", ["wav", "mp3", "flac"])
async def test_whole_file_has_a_manifest_with_its_receipt(start: Start, file_format: str) -> None:
    running = await started(start, file_signer=FILE_SIGNER, cache=CacheSettings(16 * MIB))
    body = BODY | {"response_format": file_format, "stream": False, "speed": 1.25}
    async with running.http() as http:
        answers = [await http.post(PATH, json=body) for _ in range(2)]
        receipts = [await receipt_of(http, answer) for answer in answers]
    assert [answer.headers["stretto-cache"] for answer in answers] == ["miss", "hit"]
    for answer, receipt in zip(answers, receipts, strict=True):
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert receipt["file"]["sha256"] == hashlib.sha256(answer.content).hexdigest()
        manifest = read_manifest(answer.content)
        assert manifest is not None
        assert manifest.receipt is not None
        assert (manifest.failures, key_id(manifest.receipt.key)) == ((), key_id(KEY.public_key()))
        inner = read_receipt(manifest.receipt.payload)
        assert inner["file"]["speed"] == 1.25
        assert {**inner, "file": None, "time": ""} == {**receipt, "file": None, "time": ""}


async def test_items_of_a_batch_have_receipts(start: Start) -> None:
    running = await started(start, file_signer=FILE_SIGNER)
    items = [{"input": "A cat sat.", "response_format": "mp3"}, {"input": "A cow sat.", "response_format": "opus"}]
    async with running.http() as http:
        answer = await http.post(f"{PATH}/batch", json={"items": items, "voice": "rms", "seed": 1, "speed": 1.25})
    for index, (item, result) in enumerate(zip(items, answer.json()["results"], strict=True)):
        audio = base64.b64decode(result["audio_data"])
        receipt = read_receipt(open_signed(json.dumps(result["receipt"]).encode()).payload)
        assert receipt["id"] == f"{answer.headers['x-request-id']}.{index}"
        assert receipt["text_sha256"] == text_digest(item["input"])
        assert receipt["file"]["sha256"] == hashlib.sha256(audio).hexdigest()
        assert (receipt["file"]["format"], receipt["file"]["speed"]) == (item["response_format"], 1.25)
        assert (read_manifest(audio) is not None) == (item["response_format"] == "mp3")


@pytest.mark.parametrize("fields", [{"stream": True}, {"response_format": "opus", "stream": False}], ids=str)
async def test_streamed_files_and_other_formats_have_no_manifest(start: Start, fields: dict[str, Any]) -> None:
    running = await started(start, file_signer=FILE_SIGNER)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"response_format": "mp3"} | fields)
        await receipt_of(http, answer)
    assert read_manifest(answer.content) is None


async def test_expired_certificate_fails_the_request(start: Start) -> None:
    expired = FileSigner(chain(KEY), KEY)
    expired._signer_info = c2pa.C2paSignerInfo("ed25519", chain(KEY, days=(-30, -1)), PRIVATE_PEM, None)
    running = await started(start, file_signer=expired)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"response_format": "mp3", "stream": False})
        streamed = await http.post(PATH, json=BODY | {"response_format": "mp3"})
    assert (answer.status_code, streamed.status_code) == (500, 200)
    error = answer.json()["error"]
    assert error["code"] == "signing_failed"
    assert "not valid at time of signing" in error["message"]


async def test_only_the_caller_finds_a_receipt_and_anyone_the_key(start: Start) -> None:
    running = await started(start, keys=KEYS)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY, headers=of_key(KEYS[0]))
        path = f"{PATH}/{answer.headers['x-request-id']}/receipt"
        found = [await http.get(path, headers=of_key(key)) for key in KEYS]
        without = await http.get(path)
        key = await http.get("/v1/audio/receipts/key")
    assert [one.status_code for one in (*found, without, key)] == [200, 404, 401, 200]
    assert found[1].json()["error"]["param"] == "id"


async def test_receipt_is_complete_when_the_stream_has_ended(start: Start) -> None:
    goes_on = asyncio.Event()

    def script(request: Request) -> list[Step]:
        first, last = spoken(request)
        return [first, Until(goes_on), last]

    running = await started(start, script)
    async with running.http() as http:
        async with http.stream("POST", PATH, json=BODY | {"check": "off"}) as answer:
            path = f"{PATH}/{answer.headers['x-request-id']}/receipt"
            early = await http.get(path)
            goes_on.set()
            await answer.aread()
        late = await http.get(path)
    assert (early.status_code, early.json()["error"]["code"]) == (409, "in_progress")
    assert late.status_code == 200


async def test_failed_speech_has_no_receipt(start: Start) -> None:
    running = await started(start, lambda request: spoken(request)[:1])
    async with running.http() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            async with http.stream("POST", PATH, json=BODY | {"check": "off"}) as answer:
                await answer.aread()
        outcomes = running.app.state.gateway.outcomes
        await until_async(lambda: "in_progress" not in str(outcomes._outcomes._records))
        missing = await http.get(f"{PATH}/{answer.headers['x-request-id']}/receipt")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].endswith("got one without (it is failed)")


async def test_gateway_without_a_key_requests_no_codes(start: Start) -> None:
    def script(request: Request) -> list[Step]:
        assert "codes" not in json.loads(request["options"]).get("output", {})
        return [Chunk(0, SAMPLES, is_16_bit=True, pcm=noise(1, SAMPLES)), Chunk(1, None, is_final=True, is_last=True)]

    running = await start(script)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY)
        paths = (f"{PATH}/{answer.headers['x-request-id']}/receipt", "/v1/audio/receipts/key")
        missing = [await http.get(path) for path in paths]
    assert [(one.status_code, one.json()["error"]["code"]) for one in missing] == [(404, "no_receipts")] * 2


def test_records_are_bounded_in_size_and_age() -> None:
    now_s = [0.0]
    records = CallerRecords[str](10, max_age_s=60, clock=lambda: now_s[0])
    records.add("a", "1", "one", 4)
    records.add("a", "2", "two", 4)
    records.add("b", "3", "three", 2)
    records.add("c", "4", "too large", 11)
    assert records.find("a", "1") == "one"
    records.add("c", "5", "five", 3)  # the oldest of `a`, which has most
    kept = {name: records.find(owner, name) for owner, name in zip("aabcc", "12345", strict=True)}
    assert kept == {"1": None, "2": "two", "3": "three", "4": None, "5": "five"}
    assert records.find("b", "2") is None
    now_s[0] = 61.0
    assert records.find("a", "2") is None
    records.add("a", "6", "six", 4)
    assert records._sizes == {"a": 4, "b": 2, "c": 3}
