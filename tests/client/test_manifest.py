"""C2PA manifests: read back by their library, bound to file and certificate, refused certificates, `stretto verify`."""

import io
import json
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificates

from stretto_client.manifest import LABEL, MEDIA_TYPES, FileSigner, read_manifest
from stretto_client.receipt import ReceiptError, read_receipt, write_receipt
from stretto_client.receipt_command import DIFFERS, manifest_record, verify
from stretto_client.signature import key_id, public_jwk
from stretto_client.sinks import wav_header
from stretto_gateway.encoding import SYNTHETIC, make_encoder, stretched
from tests.client.test_receipts import KEY, TEXT, compared, receipt, verified
from tests.signing_certificates import chain

RATE = 24_000
PCM = np.random.default_rng(0).integers(-8000, 8000, RATE).astype(np.int16)
FORMATS = sorted(MEDIA_TYPES)
SIGNER = FileSigner(chain(KEY), KEY)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))


def encoded(file_format: str) -> bytes:
    """Return a file of PCM, a wav file with its length."""
    encoder = make_encoder(file_format, RATE, SYNTHETIC)
    data = encoder.encode(PCM) + encoder.close()
    header = wav_header(RATE, 2 * len(PCM))
    return header + data[len(header) :] if file_format == "wav" else data


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])


def signed(file_format: str = "mp3", signer: FileSigner = SIGNER) -> bytes:
    """Return a file whose manifest has a receipt."""
    return signer.sign(encoded(file_format), file_format, write_receipt(receipt()))


def changed(data: bytes, position: int) -> bytes:
    copy = bytearray(data)
    copy[position] ^= 1
    return bytes(copy)


@pytest.mark.parametrize("file_format", FORMATS)
def test_library_of_the_standard_reads_the_manifest(file_format: str) -> None:
    data = signed(file_format)
    anchors = {"trust_kind": "manifest", "trust_anchors": chain(KEY).decode()}
    settings = {"verify": {"verify_trust": True}, "trust": {"anchors": [anchors]}}
    with c2pa.Reader(MEDIA_TYPES[file_format], io.BytesIO(data), context=c2pa.Context.from_dict(settings)) as reader:
        assert reader.get_validation_state() == "Trusted"
        manifest = reader.get_active_manifest()
    assertions = {each["label"]: each["data"] for each in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SYNTHETIC["DIGITALSOURCETYPE"])
    assert assertions[LABEL]["receipt"] == receipt() | {"time": assertions[LABEL]["receipt"]["time"]}
    np.testing.assert_array_equal(decoded(data), decoded(encoded(file_format)))


@pytest.mark.parametrize("file_format", FORMATS)
def test_changed_byte_of_the_sound_is_named_and_the_receipt_remains(file_format: str) -> None:
    data = signed(file_format)
    manifest = read_manifest(changed(data, len(data) // 2 if file_format == "wav" else len(data) - 20))
    assert manifest is not None
    assert manifest.failures == ("assertion.dataHash.mismatch",)
    assert manifest.receipt is not None
    assert key_id(manifest.receipt.key) == key_id(KEY.public_key())
    assert read_receipt(manifest.receipt.payload)["seed"] == 7


def receipt_in(data: bytes) -> Any:
    """Return the receipt in a file; None if there is none, or an invalid one."""
    try:
        manifest = read_manifest(data)
    except ReceiptError:
        return None
    return manifest and manifest.receipt


def test_no_byte_of_the_receipt_can_be_changed() -> None:
    data = signed()
    begin = data.index(b'"receipt":')
    assert receipt_in(data) is not None
    assert not [position for position in range(begin, begin + 400, 7) if receipt_in(changed(data, position))]


def test_receipt_of_another_signer_is_refused() -> None:
    """A signer with the certificate of another one in the assertion does not pass for the other one."""
    forger = FileSigner(chain(OTHER_KEY), OTHER_KEY)
    forger._certificate = SIGNER._certificate
    with pytest.raises(ReceiptError, match="expected a valid signature of the certificate beside the receipt"):
        read_manifest(signed(signer=forger))


def test_files_without_a_manifest_have_none() -> None:
    for data in (b"", b"words", encoded("mp3"), encoded("wav"), encoded("opus")):
        assert read_manifest(data) is None
        assert manifest_record(data) is None


def of_unknown_algorithm(certificates: bytes) -> bytes:
    """Return the first certificate with an algorithm that does not exist in place of Ed25519 (1.3.101.112)."""
    data = load_pem_x509_certificates(certificates)[0].public_bytes(Encoding.DER)
    other = data.replace(b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x7f")
    return load_der_x509_certificate(other).public_bytes(Encoding.PEM)


def test_receipt_with_a_certificate_of_an_unknown_algorithm_is_refused() -> None:
    forger = FileSigner(chain(KEY), KEY)
    forger._certificate = of_unknown_algorithm(chain(KEY)).decode()
    with pytest.raises(ReceiptError, match="certificate: expected one of an Ed25519 key"):
        read_manifest(signed(signer=forger))


@pytest.mark.parametrize(
    ("certificates", "words"),
    [
        (b"words", "expected certificates in PEM"),
        (chain(OTHER_KEY), "expected one of the signing key"),
        (chain(generate_private_key(65_537, 2048)), "expected one of the signing key"),
        (of_unknown_algorithm(chain(KEY)), "expected one of the signing key"),
        (chain(KEY, days=(-30, -1)), "valid now, .* not valid at time of signing"),
        (chain(KEY, days=(1, 30)), "valid now, .* not valid at time of signing"),
        (chain(KEY, usage="key_agreement"), "keyUsage digitalSignature, .*got keyUsage without digitalSignature"),
        (chain(KEY, usage="content_commitment"), "got keyUsage without digitalSignature"),
        (chain(KEY, has_extended_usage=False), "extendedKeyUsage emailProtection, .*certificate is invalid"),
        (chain(KEY, is_authority=True), "not of an authority, .*certificate is invalid"),
    ],
    ids=(
        "text another-key rsa unknown-algorithm expired future no-signing non-repudiation no-extended-usage authority"
    ).split(),
)
def test_wrong_certificates_are_refused(certificates: bytes, words: str) -> None:
    with pytest.raises(ReceiptError, match=f"^certificate: .*{words}"):
        FileSigner(certificates, KEY)


async def test_clip_is_verified_by_the_receipt_in_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(public_jwk(KEY.public_key())))
    words = ["--text", TEXT, "--key", str(tmp_path / "key.json"), "--json"]
    result = await verified(tmp_path, capsys, None, *words, clip=signed(), has_receipt=False)
    findings = json.loads(result.out)
    assert (result.status, findings["is_sent_file"], findings["codes"]["is_equal"]) == (0, True, True)
    assert findings["manifest"] == {"signer": "Speech server, Readers", "failures": []}
    assert findings["signature"] == {"key": key_id(KEY.public_key()), "is_trusted": True}


def test_changed_clip_is_not_the_signed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status_of(data: bytes, *words: str) -> int:
        (tmp_path / "clip").write_bytes(data)
        return verify([str(tmp_path / "clip"), *words], str, compared, stretched)

    data = signed()
    assert status_of(data) == 0
    assert "manifest: valid, signed by 'Speech server, Readers'" in capsys.readouterr().out
    assert status_of(changed(data, len(data) - 20)) == DIFFERS
    assert "manifest: not valid (assertion.dataHash.mismatch)" in capsys.readouterr().out
    assert status_of(encoded("mp3")) == 2
    assert "receipt: expected --receipt FILE, or one in a manifest of the clip, got none" in capsys.readouterr().err
    (tmp_path / "key.json").write_text(json.dumps(public_jwk(OTHER_KEY.public_key())))
    assert status_of(data, "--key", str(tmp_path / "key.json")) == 2
    assert "signature: expected one of the key" in capsys.readouterr().err


def test_record_names_signer_key_and_failures() -> None:
    data = signed()
    record: Any = {"signer": "Speech server, Readers", "key": key_id(KEY.public_key()), "failures": []}
    assert manifest_record(data) == record
    assert manifest_record(changed(data, len(data) - 20)) == record | {"failures": ["assertion.dataHash.mismatch"]}
    (message,) = manifest_record(changed(data, data.index(b"seed")))["failures"]  # type: ignore[index]
    assert message.startswith("manifest: expected a valid signature")
