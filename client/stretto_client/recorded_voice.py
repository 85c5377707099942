"""A voice that a model has not learned: it hears a recording of it with the request."""

import json
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import InferInput

from stretto_client.inputs import Audio, audio_inputs, options_json, strings
from stretto_client.sharing import Sharing


@dataclass(frozen=True, slots=True, eq=False)
class RecordedVoice:
    """The voice of a recording, for models that take one in a system turn (`docs/families.md`).

    audio: a file's path or bytes, or (samples [n], rate in Hz). text: what is said there. Higgs
    Audio needs it; Qwen3-TTS's Base goes on from it, and without takes from the recording how the voice sounds; others
    take none.
    """

    audio: Audio
    text: str = ""

    def inputs(self, text: str, sharing: Sharing | None) -> list[InferInput]:
        """The tensors of a request for `text` in this voice."""
        system = {"role": "system", "audio": "pcm_in" if isinstance(self.audio, tuple) else "audio"}
        said = {"text": self.text} if self.text else {}
        turns = [system | said, {"role": "user", "text": text}]
        return [*audio_inputs(self.audio, sharing=sharing), *strings(messages=json.dumps(turns))]


def speech_inputs(text: str, task: str, options: dict[str, Any], sharing: Sharing | None) -> list[InferInput]:
    """The tensors of a request for `text`, in the voice that `options` name, or hold as a RecordedVoice."""
    if not isinstance(options["voice"], RecordedVoice):
        return strings(text=text, task=task, options=options_json(options))
    named = options | {"voice": None}
    return [*options["voice"].inputs(text, sharing), *strings(task=task, options=options_json(named))]
