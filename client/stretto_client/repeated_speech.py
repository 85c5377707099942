"""Speech that is generated again from a receipt, and the comparison of its codes with the receipt."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.client import SpeechClient
from stretto_client.receipt import CodeDigest, Receipt, ReceiptError, frame_checks, shown, text_digest
from stretto_client.voices import MarkedVoices, RecordedVoice

# Minimum share of equal frames, in the order of the receipt, at which codes of another numeric class count as the same
# speech. It is three times the largest share that speech with another seed has (docs/marking.md).
MIN_EQUAL_FRAMES = 0.25
NUMERICS = "numerics"
Stretch = Callable[[NDArray[np.int16], int, float], NDArray[np.int16]]
"""Function of samples [n], their rate in Hz and a speed, which changes their duration but not their pitch."""


@dataclass(frozen=True)
class CodeComparison:
    """Comparison of codes with those of a receipt.

    Attributes:
        is_same_class: True if both servers round in the same way, so that the codes must be equal.
        is_equal: True if all codes are equal.
        has_codes: False if neither speech has codes, because the model generates latents.
        share: Share of frames that are equal, of the longer speech.
        differs_from_s: Time of the first different frame in the generated speech; None if there is none.
        other: Fields of the server's model that differ from the receipt's, although its name is the same.
    """

    is_same_class: bool
    has_codes: bool
    is_equal: bool
    share: float
    differs_from_s: float | None
    other: tuple[str, ...]

    @property
    def is_accepted(self) -> bool:
        """True if the codes are similar enough to show that the model generates the receipt's speech."""
        return self.is_equal or (not self.is_same_class and self.share >= MIN_EQUAL_FRAMES)


@dataclass(frozen=True)
class RepeatedSpeech:
    """Speech generated from a receipt: samples, int16 [n], each with the speed at which they are played."""

    parts: tuple[tuple[float, NDArray[np.int16]], ...]
    sample_rate: int
    codes: CodeComparison

    def played(self, speed: float, stretch: Stretch) -> NDArray[np.float32]:
        """Return the samples as in a file of this speed, float32 [n]."""
        parts = [np.zeros(0, np.int16)]
        for rate, group in groupby(self.parts, itemgetter(0)):
            pcm = np.concatenate([samples for _, samples in group])
            parts.append(pcm if rate * speed == 1.0 else stretch(pcm, self.sample_rate, rate * speed))
        return (np.concatenate(parts) / -np.iinfo(np.int16).min).astype(np.float32)


def check_text(receipt: Receipt, text: str) -> None:
    """Raise ReceiptError unless `text` is the text of a receipt."""
    if text_digest(text) != receipt["text_sha256"]:
        raise ReceiptError(f"text: expected the receipt's, of SHA-256 {receipt['text_sha256']}, got another text")


def voice_of(receipt: Receipt, recording: Path | bytes | None, transcript: str) -> str | RecordedVoice | None:
    """Return a receipt's voice; raise ReceiptError unless its recording and transcript, if it has any, are given."""
    voice = receipt["voice"]
    if not isinstance(voice, dict):
        return voice
    if recording is None:
        raise ReceiptError("voice: expected the recording of the receipt (--clone FILE, --clone-text TEXT), got none")
    data = recording if isinstance(recording, bytes) else recording.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != voice["sha256"]:
        raise ReceiptError(f"voice: expected a recording of SHA-256 {voice['sha256']}, got {digest}")
    if text_digest(transcript) != voice["text_sha256"]:
        raise ReceiptError("voice: expected the transcript of the receipt (--clone-text TEXT), got another text")
    return RecordedVoice(data, transcript)


def check_marked_voices(receipt: Receipt) -> None:
    """Raise ReceiptError if a mark in the text selects a voice whose recording is not in the receipt."""
    for name, voice in receipt["marked_voices"].items():
        if isinstance(voice, dict):
            raise ReceiptError(
                f"text.voice: expected marks of the model's voices, got one of the uploaded voice {shown(name)}, "
                "whose recording a receipt does not have, so that the speech cannot be generated again"
            )


async def marked_voice(receipt: Receipt, name: str) -> str | None:
    """Return the voice that a mark in the text of a receipt selects; raise ReceiptError for an unknown mark."""
    if name not in receipt["marked_voices"]:
        raise ReceiptError(f"text.voice: expected marks that the receipt has, got {shown(name)}")
    voice = receipt["marked_voices"][name]
    assert not isinstance(voice, dict), "check_marked_voices has refused it"
    return voice


async def served_model(client: SpeechClient, receipt: Receipt) -> dict[str, str]:
    """Return the server's description of its model; raise ReceiptError if it differs from the receipt's."""
    try:
        model = json.loads(await client.server_name())
    except ValueError:
        model = None
    model = model if isinstance(model, dict) else {}
    for name in ("model", "revision"):
        expected = receipt["model"].get(name)
        if model.get(name) != expected:
            raise ReceiptError(f"{name}: expected a server with {shown(expected)}, got {shown(model.get(name))}")
    return {name: value for name, value in model.items() if isinstance(value, str)}


async def repeat(
    client: SpeechClient, receipt: Receipt, text: str, voice: str | RecordedVoice | None
) -> RepeatedSpeech:
    """Generate the speech of a receipt again; raise ReceiptError if the server has another model."""
    model = await served_model(client, receipt)
    arguments: dict[str, Any] = receipt["arguments"] | {
        "voice": voice,
        "seed": receipt["seed"],
        "redraws": receipt["redraws"] or None,
        "check": "off",
        "encoding": "pcm_s16le",
        "rates": True,
        "voices": MarkedVoices(partial(marked_voice, receipt)),
    }
    if receipt["codes"]["frames"]:
        arguments["output"] = {"codes": True}
    digest = CodeDigest()
    parts = list[tuple[float, NDArray[np.int16]]]()
    starts = [(0, 0.0)]  # numbers of frames, and the times at which they begin
    sample_rate = receipt["sample_rate"]
    async with client.speak(text, **arguments) as events:
        async for event in events:
            if event.pcm is not None and len(event.pcm):
                parts.append((event.speed, event.pcm))
                sample_rate = event.sample_rate
            if event.codes is not None and event.codes.size:
                digest.add(event.codes)
                starts.append((digest.num_frames, event.start_s + event.duration_s))
    comparison = compare_codes(receipt, digest, model, starts)
    return RepeatedSpeech(tuple(parts), sample_rate, comparison)


def compare_codes(
    receipt: Receipt, digest: CodeDigest, model: Mapping[str, str], starts: list[tuple[int, float]]
) -> CodeComparison:
    """Compare generated codes with a receipt's.

    Args:
        starts: Numbers of generated frames, and the times at which they begin, in seconds.
    """
    record = digest.record()
    expected = frame_checks(receipt["codes"])
    actual = frame_checks(record)
    num_both = min(len(expected), len(actual))
    is_different = expected[:num_both] != actual[:num_both]
    num_most = max(len(expected), len(actual))
    is_equal = record == receipt["codes"]
    differs_from = next(iter(np.flatnonzero(is_different).tolist()), num_both)
    others = ("configuration", "weights")
    return CodeComparison(
        model.get(NUMERICS) == receipt["model"].get(NUMERICS),
        num_most > 0,
        is_equal,
        float(num_both - is_different.sum()) / num_most if num_most else 0.0,
        None if is_equal else time_of(differs_from, starts),
        tuple(name for name in others if model.get(name) != receipt["model"].get(name)),
    )


def time_of(frame: int, starts: list[tuple[int, float]]) -> float:
    """Return the time at which a frame begins, in seconds; the end of the speech if the frame is after it."""
    for (first, start_s), (last, end_s) in pairwise(starts):
        if first <= frame < last:
            return start_s + (end_s - start_s) * (frame - first) / (last - first)
    return starts[-1][1]
