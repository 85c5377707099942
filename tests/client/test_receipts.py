"""Receipts: their signatures, refusals, and speech that is generated again and compared."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto_client import RecordedVoice, SpeechClient, SpeechEvent
from stretto_client.receipt import (
    MAX_RECEIPT_BYTES,
    CodeDigest,
    Receipt,
    ReceiptError,
    SpeechRecorder,
    read_receipt,
    write_receipt,
)
from stretto_client.receipt_command import DIFFERS, signing_key, verify
from stretto_client.repeated_speech import MIN_EQUAL_FRAMES, voice_of
from stretto_client.signature import (
    encoded,
    key_id,
    load_private_key,
    load_public_key,
    make_key,
    open_signed,
    public_jwk,
    sign,
)
from stretto_gateway.encoding import stretched
from tests.client.fake_server import PROFILE, Chunk, ErrorText, FakeServer, Request, Step

MODEL = {"model": "tiny", "configuration": "sha256:00", "weights": "sha256:01", "numerics": "an abacus"}
TEXT = "A cat sat."
CODES = np.arange(24, dtype=np.int32).reshape(2, 12)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def receipt(text: str = TEXT, **changes: Any) -> Receipt:
    """Return a receipt of speech with CODES."""
    recorder = SpeechRecorder(text, MODEL, "req_1")
    recorder.arguments = {"voice": "slt", "markup": "none", "check": "signals", "temperature": 0.7}
    report = {"finish_reason": "stop", "seed": 7}
    pcm = np.zeros(4800, np.int16)
    recorder.add(SpeechEvent(pcm, "u", 0, "audio", sample_rate=24_000, codes=CODES, is_final=True, report=report))
    made: Any = {**recorder.receipt(), **changes}
    return made


def signed(record: Any = None, key: Ed25519PrivateKey = KEY) -> bytes:
    return sign(write_receipt(receipt() if record is None else record), key)


def spoken(codes: np.ndarray = CODES) -> list[Step]:
    """Return the answer of a server whose speech has these codes, in two parts."""
    half = codes.shape[1] // 2
    return [
        Chunk(0, 640, is_16_bit=True, codes=codes[:, :half].tolist()),
        Chunk(1, 640, is_16_bit=True, codes=codes[:, half:].tolist(), is_final=True, is_last=True),
    ]


def test_receipt_survives_signing_and_reading() -> None:
    made = receipt()
    opened = open_signed(signed())
    assert (read_receipt(opened.payload), key_id(opened.key)) == (made, key_id(KEY.public_key()))
    assert made["arguments"] == {"markup": "none", "temperature": 0.7}
    assert TEXT not in json.dumps(made)


def test_another_library_verifies_the_signature() -> None:
    parts = json.loads(signed())
    compact = f"{parts['protected']}.{parts['payload']}.{parts['signature']}"
    decoded = jwt.api_jws.decode_complete(compact, key=jwt.PyJWK(public_jwk(KEY.public_key())), algorithms=["EdDSA"])
    assert json.loads(decoded["payload"]) == receipt()
    assert decoded["header"]["kid"] == key_id(KEY.public_key())


@given(st.lists(st.integers(1, 12), max_size=4))
def test_digest_does_not_depend_on_the_events(borders: list[int]) -> None:
    whole = CodeDigest()
    whole.add(CODES)
    divided = CodeDigest()
    for part in np.split(CODES, sorted(borders), axis=1):
        divided.add(part)
    assert divided.record() == whole.record()


def changed(**changes: Any) -> bytes:
    """Return a receipt with changed fields that was signed nevertheless."""
    return signed(receipt(**changes))


def resigned(**changes: Any) -> bytes:
    """Return a signature with a changed part."""
    return json.dumps(json.loads(signed()) | changes).encode()


def with_header(**changes: Any) -> bytes:
    """Return a signature whose header has changed."""
    header = {"alg": "EdDSA", "jwk": public_jwk(KEY.public_key()), "kid": key_id(KEY.public_key())}
    record = header | {"typ": "stretto-receipt"} | changes
    return resigned(protected=encoded(json.dumps(record).encode()))


OTHER_KEY = public_jwk(Ed25519PrivateKey.from_private_bytes(bytes([1] * 32)).public_key())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "invalid JSON"),
        (b"[]", "expected a JSON object"),
        (b"[" * 100_000, "invalid JSON"),
        (b"\xff", "invalid JSON"),
        (b" " * (MAX_RECEIPT_BYTES + 1), "at most 524288 bytes"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid JSON"),
        (b"{}", "expected the fields payload, protected, signature"),
        (resigned(signature="AAAA"), "changed after signing"),
        (resigned(signature="=="), "signature.signature: expected base64"),
        (resigned(signature="AB"), "signature.signature: expected base64"),  # with bits that have no meaning
        (resigned(payload=7), "signature.payload: expected base64"),
        (resigned(payload="\u2603"), "signature.payload: expected base64"),
        (resigned(payload=encoded(b"{}")), "changed after signing"),
        (resigned(more=1), "expected the fields"),
        (with_header(alg="none"), "alg: expected 'EdDSA', got 'none'"),
        (with_header(typ="JWT"), "typ: expected 'stretto-receipt'"),
        (with_header(crit=["b64"], b64=False), "expected alg, jwk, kid and typ"),
        (with_header(jwk={"kty": "oct", "k": "AAAA"}), "jwk: expected an Ed25519 public key"),
        (with_header(jwk={"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}), "jwk.x: expected 32 bytes"),
        (with_header(jwk=OTHER_KEY), "kid: expected"),
        (sign(b"{}", KEY), "receipt.format: expected 'stretto-receipt-1', got nothing"),
        (changed(format="stretto-receipt-2"), "receipt.format: expected"),
        (changed(seed=-1), "receipt.seed: expected"),
        (changed(seed=True), "receipt.seed: expected"),
        (changed(seed=1.0), "receipt.seed: expected"),
        (changed(id="a\nb"), "receipt.id: expected printable text"),
        (changed(model={"model": 1}), "receipt.model: expected"),
        (changed(arguments={"check_with": "http://169.254.169.254/v1"}), "receipt.arguments: expected"),
        (changed(voice=7), "receipt.voice: expected"),
        (changed(voice={"sha256": "aa"}), "receipt.voice: expected"),
        (changed(voice="\x1b[2J"), "receipt.voice: expected"),
        (changed(marked_voices=[]), "receipt.marked_voices: expected"),
        (changed(marked_voices={"slt": 7}), "receipt.marked_voices: expected"),
        (changed(marked_voices={"x" * 129: "slt"}), "receipt.marked_voices: expected"),
        (changed(marked_voices=dict.fromkeys(map(str, range(33)))), "receipt.marked_voices: expected"),
        (changed(redraws=[[1], ["2"]]), "receipt.redraws: expected"),
        (changed(redraws=[[]] * 9000), "receipt.redraws: expected"),
        (changed(codes={}), "receipt.codes.sha256: expected"),
        (changed(codes=receipt()["codes"] | {"checks": "AAA="}), "checks: expected 12 checks, got 1"),
        (changed(codes=receipt()["codes"] | {"checks": "A?=="}), "checks: expected base64"),
        (changed(file={"sha256": "0" * 64}), "receipt.file.format: expected"),
        (changed(words="secret"), "expected no field 'words'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_receipts_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ReceiptError) as error:
        read_receipt(open_signed(data).payload)
    message = str(error.value)
    assert words in message
    assert message.isascii()
    assert len(message) < 400


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_byte_of_a_signed_receipt_can_be_changed(position: int, byte: int) -> None:
    data = bytearray(signed())
    position %= len(data)
    data[position] = byte
    try:
        opened = open_signed(bytes(data))
    except ReceiptError:
        return
    assert read_receipt(opened.payload) == receipt()


def test_private_keys_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_id(load_private_key(path).public_key()) == key_id(public)
    with pytest.raises(FileExistsError):
        make_key(path)
    path.chmod(0o640)
    with pytest.raises(ReceiptError, match=r"only its owner can read, got mode 640"):
        load_private_key(path)
    private = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    for content in (b"", b"A" * 100_000, generate_private_key(SECP256R1()).private_bytes(*private)):
        path.chmod(0o600)
        path.write_bytes(content)
        with pytest.raises(ReceiptError, match="an Ed25519 private key in PEM without a password"):
            load_private_key(path)
    with pytest.raises(ReceiptError, match="expected a file"):
        load_private_key(Path("/dev/null"))


def test_public_keys_are_read_in_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert signing_key([str(tmp_path / "key.pem")]) == 0
    public = tmp_path / "public"
    public.write_text(capsys.readouterr().out)
    by_pem = load_public_key(public)
    public.write_text(json.dumps(public_jwk(by_pem) | {"kid": "x"}))
    assert key_id(load_public_key(public)) == key_id(by_pem)
    for content in ("", "{}", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        public.write_text(content)
        with pytest.raises(ReceiptError, match="an Ed25519 public key"):
            load_public_key(public)
    assert signing_key([str(tmp_path / "key.pem")]) == 2


def test_recorded_voice_must_be_given_again(tmp_path: Path) -> None:
    recorder = SpeechRecorder(TEXT, MODEL)
    recorder.arguments = {"voice": RecordedVoice(b"sound", "words")}
    recorder.add(SpeechEvent(None, "u", 0, "audio", sample_rate=24_000, is_final=True, report={"seed": 1}))
    made = read_receipt(write_receipt(recorder.receipt()))
    file = tmp_path / "voice.wav"
    file.write_bytes(b"sound")
    assert voice_of(made, file, "words") == RecordedVoice(b"sound", "words") or voice_of(made, b"sound", "words")
    for recording, transcript, words in (
        (None, "words", "voice: expected the recording"),
        (b"noise", "words", "voice: expected a recording of SHA-256"),
        (b"sound", "others", "voice: expected the transcript"),
    ):
        with pytest.raises(ReceiptError, match=words):
            voice_of(made, recording, transcript)


def compared(clip: bytes, pcm: np.ndarray, sample_rate: int, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the generated samples, and the same, or others for the clip `other`."""
    noise = np.random.default_rng(0).normal(size=2 * rate).astype(np.float32)
    return (noise[::-1] if clip == b"other" else noise), noise


class Verified:
    """Result of `stretto verify`."""

    def __init__(self, status: int, out: str, err: str, requests: list[Request]):
        self.status = status
        self.out = out
        self.err = err
        self.requests = requests


async def verified(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    steps: list[Step] | None = None,
    *words: str,
    record: Any = None,
    model: dict[str, str] = MODEL,
    clip: bytes = b"mp3",
    has_receipt: bool = True,
) -> Verified:
    """Verify a clip by a receipt, in a file or in its manifest, against a scripted server."""
    script = spoken() if steps is None else steps
    server = FakeServer(lambda _: script, profile=PROFILE, name=json.dumps(model))
    (folder / "receipt.json").write_bytes(signed(record))
    (folder / "clip.mp3").write_bytes(clip)
    beside = ["--receipt", str(folder / "receipt.json")] if has_receipt else []
    arguments = [str(folder / "clip.mp3"), *beside, *words]
    address = await server.start()
    try:
        status = await asyncio.to_thread(verify, arguments, lambda: address, compared, stretched)
    finally:
        await server.stop()
    return Verified(status, *capsys.readouterr(), server.requests)


async def test_equal_codes_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = await verified(tmp_path, capsys, None, "--text", TEXT, "--json")
    findings = json.loads(result.out)
    assert findings["codes"] == {
        "is_equal": True,
        "is_same_class": True,
        "share": 1.0,
        "differs_from_s": None,
        "is_accepted": True,
    }
    (request,) = result.requests
    options = json.loads(request["options"])
    assert request["text"] == TEXT.encode()
    assert options["output"]["codes"]
    assert (options["seed"], options["voice"], options["temperature"]) == (7, "slt", 0.7)


@pytest.mark.parametrize(("numerics", "share"), [("an abacus", 0.75), ("two abacuses", 0.25), ("two abacuses", 1 / 6)])
async def test_different_codes_are_located(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numerics: str, share: float
) -> None:
    """On another numeric class, a share of equal frames is enough."""
    codes = CODES.copy()
    first = round(share * codes.shape[1])
    codes[:, first:] += 1
    model = MODEL | {"numerics": numerics}
    result = await verified(tmp_path, capsys, spoken(codes), "--text", TEXT, "--json", model=model)
    findings = json.loads(result.out)["codes"]
    is_accepted = numerics != MODEL["numerics"] and share >= MIN_EQUAL_FRAMES
    assert (findings["is_equal"], findings["is_accepted"]) == (False, is_accepted)
    assert findings["share"] == pytest.approx(share, abs=1e-6)
    assert findings["differs_from_s"] == pytest.approx(share * 0.08)
    assert result.status == (DIFFERS if not is_accepted else result.status)


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["--text", "A dog sat."], {}, "text: expected the receipt's, of SHA-256"),
        (["--text", TEXT], {"model": {"model": "other"}}, "model: expected a server with 'other', got 'tiny'"),
        (["--text", TEXT], {"model": MODEL | {"revision": "c0ffee"}}, "revision: expected a server with 'c0ffee'"),
    ],
)
async def test_wrong_text_or_model_is_refused_before_speaking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], changes: Any, message: str
) -> None:
    result = await verified(tmp_path, capsys, None, *words, record=receipt(**changes))
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert not result.requests


async def test_signer_is_compared_with_a_trusted_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_key(tmp_path / "other.pem")
    trusted = tmp_path / "key.json"
    trusted.write_text(json.dumps(OTHER_KEY))
    result = await verified(tmp_path, capsys, None, "--key", str(trusted))
    assert result.status == 2
    assert result.err.startswith("error: signature: expected one of the key")
    trusted.write_text(json.dumps(public_jwk(KEY.public_key())))
    result = await verified(tmp_path, capsys, None, "--key", str(trusted))
    assert "the key of --key" in result.out


async def test_sent_file_is_recognised_without_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, status in ((b"mp3", 0), (b"MP3", DIFFERS)):
        file = {"format": "mp3", "bytes": 3, "sha256": hashlib.sha256(content).hexdigest(), "speed": 1.0}
        result = await verified(tmp_path, capsys, None, "--json", record=receipt(file=file))
        assert (result.status, json.loads(result.out)["is_sent_file"]) == (status, status == 0)
        assert not result.requests


@pytest.mark.parametrize(("clip", "status"), [(b"encoded again", 0), (b"other", DIFFERS)])
async def test_altered_clip_is_not_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clip: bytes, status: int
) -> None:
    result = await verified(tmp_path, capsys, None, "--json", "--text", TEXT, clip=clip)
    findings = json.loads(result.out)
    assert (result.status, findings["is_verified"]) == (status, status == 0)
    assert [passage["change"] for passage in findings["passages"]] == ([] if status == 0 else ["replaced"])


async def test_model_without_codes_is_compared_by_its_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for the sent file, about which no codes say anything."""
    record = receipt(codes=CodeDigest().record())
    speech = [Chunk(0, 640, is_16_bit=True), Chunk(1, 640, is_16_bit=True, is_final=True, is_last=True)]
    file = {"format": "mp3", "bytes": 5, "sha256": hashlib.sha256(b"other").hexdigest(), "speed": 1.0}
    of_sent_file = record | {"file": file}
    for signed_record, clip, status in ((record, b"mp3", 0), (record, b"other", 5), (of_sent_file, b"other", 5)):
        words = ("--text", TEXT)
        result = await verified(tmp_path, capsys, speech, *words, record=signed_record, clip=clip)
        assert result.status == status, result.out
        assert "codes: this model has none, only samples are compared (the same numeric class)" in result.out
        assert ("passage: replaced" in result.out) == (status == DIFFERS)
        assert "codes" not in json.loads(result.requests[0]["options"])["output"]


MARKED = "One. [voice:echo]Two. [voice:SLT]Three."


async def test_marks_of_the_models_voices_are_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by names that only the gateway knew."""
    record = receipt(MARKED, arguments={"markup": "auto"}, marked_voices={"echo": None, "SLT": "slt"}, voice="rms")
    result = await verified(tmp_path, capsys, None, "--text", MARKED, record=record)
    voices = [json.loads(request["options"]).get("voice") for request in result.requests]
    assert voices == ["rms", None, "slt"]
    assert "codes: " in result.out


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ({"echo": {"sha256": "0" * 64, "text_sha256": "1" * 64}}, "one of the uploaded voice 'echo', whose"),
        ({"SLT": "slt"}, "expected marks that the receipt has, got 'echo'"),
    ],
    ids=["uploaded", "missing"],
)
async def test_marks_without_a_voice_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], marked: dict[str, Any], message: str
) -> None:
    record = receipt(MARKED, arguments={"markup": "auto"}, marked_voices=marked)
    result = await verified(tmp_path, capsys, None, "--text", MARKED, record=record)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: text.voice: ")
    assert message in result.err


async def test_redrawn_clauses_are_repeated() -> None:
    """Also if the server refuses a clause for its length, so that its halves are spoken."""
    text = "one two three four five six seven eight nine ten eleven"

    def answer(request: Request) -> list[Step]:
        is_long = len(request["text"]) > 30
        return [ErrorText("invalid request: text: expected at most 30 characters")] if is_long else spoken()

    server = FakeServer(answer)
    async with SpeechClient(await server.start()) as client:
        events = [event async for event in client.speak(text, seed=7, redraws=[[], [3, 5]], check="off")]
    await server.stop()
    assert events[-1].is_final
    drawn = [json.loads(request["options"]).get("redraw_from") for request in server.requests]
    assert drawn == [None, None, [3, 5]]
