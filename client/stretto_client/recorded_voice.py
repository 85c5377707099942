"""Voice given by a recording that is sent with the request."""

import json
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import InferInput

from stretto_client.inputs import Audio, audio_inputs, options_json, strings
from stretto_client.sharing import Sharing


@dataclass(frozen=True, slots=True, eq=False)
class RecordedVoice:
    """Voice of a recording, for models that accept one in a system turn (`docs/families.md`).

    Attributes:
        audio: Path or bytes of a file, or (samples [n], rate in Hz).
        text: Transcript of the recording. Higgs Audio needs it. Qwen3-TTS's Base continues from it, and without it
            takes only the sound of the voice from the recording. Other models take none.
    """

    audio: Audio
    text: str = ""

    def inputs(self, text: str, sharing: Sharing | None) -> list[InferInput]:
        """Return the tensors of a request for `text` in this voice."""
        system = {"role": "system", "audio": "pcm_in" if isinstance(self.audio, tuple) else "audio"}
        said = {"text": self.text} if self.text else {}
        turns = [system | said, {"role": "user", "text": text}]
        return [*audio_inputs(self.audio, sharing=sharing), *strings(messages=json.dumps(turns))]


def speech_inputs(text: str, task: str, options: dict[str, Any], sharing: Sharing | None) -> list[InferInput]:
    """Return the tensors of a request for `text`; `options` has a voice's name or a RecordedVoice."""
    if not isinstance(options["voice"], RecordedVoice):
        return strings(text=text, task=task, options=options_json(options))
    named = options | {"voice": None}
    return [*options["voice"].inputs(text, sharing), *strings(task=task, options=options_json(named))]
