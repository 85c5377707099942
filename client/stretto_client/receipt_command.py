"""Commands `stretto verify CLIP --receipt FILE`, `stretto verify CLIP --text TEXT` and `stretto signing-key FILE`.

`verify` checks a receipt's signature, generates the speech again with a server that has the same model, and compares
it with the clip. Without --text, which the receipt does not contain, only the signature and the file are checked.
Without --receipt, the receipt is that of the clip's C2PA manifest.

The exit status is 0 if the clip is the receipt's speech, 5 if it is not, 2 for invalid arguments, files or receipts,
and 1, 3 or 4 if the server failed, is missing or did not answer in time.
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from stretto_client.altered_passages import RATE, altered_passages
from stretto_client.arguments import Parser
from stretto_client.client import SpeechClient
from stretto_client.console import TextDecoder, argument_path, argument_text, described
from stretto_client.errors import Timeouts, exit_status
from stretto_client.receipt import MAX_RECEIPT_BYTES, Receipt, ReceiptError, read_receipt, shown
from stretto_client.repeated_speech import (
    CodeComparison,
    RepeatedSpeech,
    Stretch,
    check_marked_voices,
    check_text,
    repeat,
    voice_of,
)
from stretto_client.signature import key_id, load_public_key, make_key, open_signed, public_pem

if TYPE_CHECKING:
    from stretto_client.manifest import Manifest

DIFFERS = 5  # exit status
MAX_TEXT_BYTES = 1 << 20
MAX_CLIP_BYTES = 20_000_000


def verify_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line of `verify` with a receipt."""
    parser = Parser(prog="stretto verify", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("clip", type=argument_path, metavar="CLIP", help="audio file")
    add("--receipt", type=argument_path, metavar="FILE", help="its receipt; default: that in its C2PA manifest")
    add("--text", type=argument_text, help="text of the speech; - reads standard input")
    add("--key", type=argument_path, metavar="FILE", help="public key of the signer, in PEM or as a JSON Web Key")
    add("--clone", type=argument_path, metavar="FILE", help="recording of the voice, if the receipt has one")
    add("--clone-text", type=argument_text, default="", metavar="TEXT", help="transcript of that recording")
    add("--server", metavar="HOST:PORT", help="gRPC port of a server with the model; default: this machine's server")
    add("--timeout", type=float, default=300.0, metavar="S", help="for the speech")
    add("--json", action="store_true", help="print the findings as JSON")
    args = parser.parse_args(words)
    if not args.timeout > 0:  # also refuses nan
        parser.error(f"--timeout must be > 0 s, got {args.timeout:g}")
    return args


Compared = Callable[[bytes, NDArray[np.float32], int, int], tuple[NDArray[Any], NDArray[Any]]]
"""Function of a file, samples [n], their rate and a target rate, which returns both at the target rate."""


def verify(words: list[str], default_server: Callable[[], str], compared: Compared, stretch: Stretch) -> int:
    """Verify a clip by its receipt, and return the exit status."""
    args = verify_arguments(words)

    def command() -> int:
        findings = Findings(args, default_server)
        findings.check(compared, stretch)
        print(json.dumps(findings.record) if args.json else "\n".join(findings.lines))
        return 0 if findings.record["is_verified"] else DIFFERS

    return exit_status(command)


def read_bounded(path: Path, max_bytes: int, name: str) -> bytes:
    """Return the contents of a file; raise ReceiptError if it has more than `max_bytes` bytes."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ReceiptError(f"{name}: expected at most {max_bytes} bytes, got more")
    return data


def read_manifest(clip: bytes) -> "Manifest | None":
    """Return the C2PA manifest of a clip; None if it has none, or if the library for manifests is not installed."""
    if find_spec("c2pa") is None:
        return None
    from stretto_client import manifest

    return manifest.read_manifest(clip)


def manifest_record(clip: bytes) -> dict[str, Any] | None:
    """Return signer, key and failed checks of a clip's C2PA manifest; None if it has none."""
    try:
        manifest = read_manifest(clip)
    except ReceiptError as error:
        return {"signer": None, "key": None, "failures": [str(error)]}
    if manifest is None:
        return None
    key = None if manifest.receipt is None else key_id(manifest.receipt.key)
    return {"signer": manifest.signer, "key": key, "failures": list(manifest.failures)}


class Findings:
    """Results of the checks of a clip, as text and as a record for JSON."""

    def __init__(self, args: argparse.Namespace, default_server: Callable[[], str]):
        self._args = args
        self._default_server = default_server
        self.lines = list[str]()
        self.record: dict[str, Any] = {"file": str(args.clip), "is_verified": False}

    def check(self, compared: Compared, stretch: Stretch) -> None:
        """Check the signature, the file and, with a text, the speech; the arguments are those of `verify`."""
        args = self._args
        clip = read_bounded(args.clip, MAX_CLIP_BYTES, "clip")
        receipt = self._receipt_in(clip) if args.receipt is None else self._receipt_of(clip)
        text = self._text()
        if text is None:
            self.lines.append("speech: not generated again, which needs the text (--text)")
            return
        check_text(receipt, text)
        check_marked_voices(receipt)
        voice = voice_of(receipt, args.clone, args.clone_text)
        server = args.server or self._default_server()
        speech = asyncio.run(self._repeat(server, receipt, text, voice))
        self._check_codes(speech.codes)
        is_told_by_codes = speech.codes.has_codes and (self.record["is_sent_file"] or not speech.codes.is_accepted)
        if not is_told_by_codes:
            speed = receipt["file"]["speed"] if "file" in receipt else 1.0
            self._check_passages(*compared(clip, speech.played(speed, stretch), speech.sample_rate, RATE))

    def _receipt_of(self, clip: bytes) -> Receipt:
        """Return the receipt of --receipt, and compare the clip with its digest."""
        signed = open_signed(read_bounded(self._args.receipt, MAX_RECEIPT_BYTES, "receipt"))
        self._check_key(signed.key)
        receipt = read_receipt(signed.payload)
        self._describe(receipt)
        sent = receipt.get("file")
        self._note_file(sent is not None and hashlib.sha256(clip).hexdigest() == sent["sha256"])
        return receipt

    def _receipt_in(self, clip: bytes) -> Receipt:
        """Return the receipt of the clip's manifest, which also has the digest of the clip."""
        manifest = read_manifest(clip)
        failures = () if manifest is None else manifest.failures
        validity = f"not valid ({', '.join(failures)})" if failures else "valid"
        if manifest is None or manifest.receipt is None:
            needed = "" if find_spec("c2pa") else ", for which the package c2pa-python is needed"
            got = f"a manifest that is {validity}" if failures else "none"
            raise ReceiptError(f"receipt: expected --receipt FILE, or one in a manifest of the clip{needed}, got {got}")
        self.lines.append(f"manifest: {validity}, signed by {shown(manifest.signer)}")
        self.record["manifest"] = {"signer": manifest.signer, "failures": manifest.failures}
        self._check_key(manifest.receipt.key)
        receipt = read_receipt(manifest.receipt.payload)
        self._describe(receipt)
        self._note_file(not manifest.failures)
        return receipt

    def _text(self) -> str | None:
        if self._args.text != "-":
            text: str | None = self._args.text
            return text
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ReceiptError(f"text: expected at most {MAX_TEXT_BYTES} bytes, got more")
        return TextDecoder("standard input").decode(data, is_last=True)

    async def _repeat(self, server: str, receipt: Receipt, text: str, voice: Any) -> RepeatedSpeech:
        async with SpeechClient(server, Timeouts(total_s=self._args.timeout)) as client:
            return await repeat(client, receipt, text, voice)

    def _check_key(self, key: Ed25519PublicKey) -> None:
        name = key_id(key)
        trusted = None if self._args.key is None else key_id(load_public_key(self._args.key))
        if trusted not in (None, name):
            raise ReceiptError(f"signature: expected one of the key {trusted} (--key), got one of {name}")
        note = "the key of --key" if trusted else "not compared with a key that you trust (--key)"
        self.lines.append(f"signature: valid, of the key {name}, {note}")
        self.record["signature"] = {"key": name, "is_trusted": trusted is not None}

    def _describe(self, receipt: Receipt) -> None:
        seconds = receipt["samples"] / receipt["sample_rate"]
        voice = receipt["voice"]
        name = "a recorded voice" if isinstance(voice, dict) else voice or "the default voice"
        model = receipt["model"].get("model", "an unnamed model")
        self.lines.append(
            f"receipt: {seconds:.2f} s by {model}, {name}, seed {receipt['seed']}, {receipt['time']}, {receipt['id']}"
        )
        self.record["receipt"] = receipt

    def _note_file(self, is_same: bool) -> None:
        self.record["is_sent_file"] = self.record["is_verified"] = is_same
        self.lines.append(
            "file: the one that was sent, byte for byte" if is_same else "file: not the one that was sent"
        )

    def _check_codes(self, codes: CodeComparison) -> None:
        numerics = "the same numeric class" if codes.is_same_class else "another numeric class"
        if not codes.has_codes:
            line = f"codes: this model has none, only samples are compared ({numerics})"
        elif codes.is_equal:
            line = f"codes: all equal to those generated again ({numerics})"
        else:
            extent = f"{codes.share:.1%} of the frames equal, different from {codes.differs_from_s:.2f} s on"
            line = f"codes: {extent} ({numerics})"
        self.lines.append(line)
        if codes.other:
            self.lines.append(f"model: the server's {' and '.join(codes.other)} differ from the receipt's")
        self.record["codes"] = None
        if codes.has_codes:
            self.record["codes"] = {
                "is_equal": codes.is_equal,
                "is_same_class": codes.is_same_class,
                "share": round(codes.share, 6),
                "differs_from_s": codes.differs_from_s,
                "is_accepted": codes.is_accepted,
            }
        if not codes.is_accepted:
            self.record["is_verified"] = False

    def _check_passages(self, clip: NDArray[Any], generated: NDArray[Any]) -> None:
        passages = altered_passages(clip, generated)
        seconds = len(generated) / RATE
        self.lines += [f"passage: {passage}" for passage in passages]
        if not passages:
            self.lines.append(
                f"samples: those of the {seconds:.2f} s generated again, nothing replaced, inserted or cut"
            )
        self.record["passages"] = [asdict(passage) for passage in passages]
        self.record["is_verified"] = not passages


def key_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line of `signing-key`."""
    parser = Parser(prog="stretto signing-key", description="Make an Ed25519 key for receipts; print its public key.")
    parser.add_argument("file", type=argument_path, metavar="FILE", help="new file for the private key, in PEM")
    return parser.parse_args(words)


def signing_key(words: list[str]) -> int:
    """Make a key that signs receipts, print its public key, and return the exit status."""
    args = key_arguments(words)
    try:
        key = make_key(args.file)
    except OSError as error:
        print(f"error: {described(error)}", file=sys.stderr)
        return 2
    print(public_pem(key), end="")
    print(f"key id {key_id(key)}", file=sys.stderr)
    return 0
