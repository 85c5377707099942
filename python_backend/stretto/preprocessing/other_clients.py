"""Conversion of requests from clients of other Triton servers that clone voices (`reference_wav`, …).

Such a request contains a voice recording, its words and a text. The clients fix both sample rates.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.preprocessing.request import RawRequest
from stretto.records.json_record import string

REFERENCE_RATE = 16_000  # Hz, of `reference_wav`
WAVEFORM_RATE = 24_000  # Hz, at which these clients write the reply to a file
OPTIONS = json.dumps({"output": {"sample_rate": WAVEFORM_RATE}})
# Names of our inputs, as in error messages of later checks, and the client's inputs from which they are made.
FIELDS = {
    "pcm_in": "reference_wav",
    "messages[0]": "reference_wav",
    "messages[0].audio": "reference_wav",
    "messages[0].text": "reference_text",
    "messages": "target_text",
    "messages[1]": "target_text",
    "messages[1].text": "target_text",
}
TEXT_FIELDS = {"text": "target_text", "text, audio or messages": "target_text", "messages": "reference_wav"}


@dataclass(frozen=True, slots=True, eq=False)
class CloningRequest:
    """Inputs of a client that clones a voice; None for absent ones. Strings are UTF-8 bytes.

    Attributes:
        reference_wav: Mono samples of the voice at REFERENCE_RATE, float32 [1, n]; absent for the default voice.
        reference_wav_len: Number of samples at the beginning of `reference_wav` that are the recording.
        reference_text: Words of the recording; empty if unknown.
    """

    reference_wav: np.ndarray | None = None
    reference_wav_len: int | None = None
    reference_text: bytes | None = None
    target_text: bytes | None = None

    @classmethod
    def from_inputs(cls, inputs: dict[str, Any]) -> "CloningRequest | None":
        """Return the request with these inputs by name; None if all of them are None."""
        return None if all(value is None for value in inputs.values()) else cls(**inputs)

    def to_raw(self, family: Family) -> RawRequest:
        """Convert the request to inputs of this server, which the preprocessor checks further.

        A family that makes no use of the words of a recording does not get them.
        """
        task = family.cloning_task
        if task is None:
            raise InvalidRequest("reference_wav", "no value (this model does not clone voices)", "a value")
        words = string("reference_text", self.reference_text)
        text = string("target_text", self.target_text)
        if text is None:
            raise InvalidRequest("target_text", "the text to speak", "none")
        if self.reference_wav is None:
            for name in ("reference_wav_len", "reference_text"):
                if getattr(self, name) is not None:
                    raise InvalidRequest("reference_wav", f"a recording, because {name} is given", "none")
            return RawRequest(text=text, task=task.name, options=OPTIONS, field_names=TEXT_FIELDS)
        voice = {"role": "system", "audio": "pcm_in"}
        if words and "text" in task.system:
            voice["text"] = words
        turns = json.dumps([voice, {"role": "user", "text": text}])
        pcm = self.reference_wav[0, : self._num_samples(self.reference_wav)]
        return RawRequest(None, None, pcm, REFERENCE_RATE, turns, task.name, OPTIONS, field_names=FIELDS)

    def _num_samples(self, wav: np.ndarray) -> int:
        length = self.reference_wav_len
        most = wav.shape[1]
        if length is None:
            return most
        if not 1 <= length <= most:
            expected = f"a number of samples in [1, {most}], the length of reference_wav"
            raise InvalidRequest("reference_wav_len", expected, length)
        return length
