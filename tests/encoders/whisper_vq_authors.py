"""Write `tokens.json` for the tests: results of the authors' tokenizer on the random checkpoint.

git clone https://github.com/THUDM/GLM-4-Voice
pip install torch transformers==4.44.1 "numpy<2" safetensors
PYTHONPATH=.:python_backend:GLM-4-Voice python -m tests.encoders.whisper_vq_authors
"""

import json
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BatchFeature, WhisperFeatureExtractor

from lab.releases.random_glm4_voice import RECORD, write_glm4_tokenizer
from tests.encoders.recordings import HEARD, recordings


class OnHost(WhisperFeatureExtractor):
    """Features that stay on the host, whatever device is requested."""

    def __call__(self, *args: Any, device: str | None = None, **kwargs: Any) -> BatchFeature:
        made = super().__call__(*args, **kwargs)
        made.to = lambda **_: made
        return made


def main() -> None:
    torchaudio = ModuleType("torchaudio")
    torchaudio.__spec__ = ModuleSpec("torchaudio", None)
    torchaudio.transforms = ModuleType("torchaudio.transforms")
    torchaudio.transforms.Resample = object
    sys.modules["torchaudio"] = torchaudio
    from speech_tokenizer.configuration_whisper import WhisperVQConfig
    from speech_tokenizer.modeling_whisper import WhisperVQEncoder
    from speech_tokenizer.utils import extract_speech_token

    torch.Tensor.cuda = lambda self: self
    with tempfile.TemporaryDirectory() as name:
        folder = write_glm4_tokenizer(Path(name))
        encoder = WhisperVQEncoder(WhisperVQConfig(**RECORD))
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
        features = OnHost.from_pretrained(folder)
    heard = {
        name: extract_speech_token(encoder.eval(), features, [(torch.from_numpy(pcm)[None], 16_000)])[0]
        for name, pcm in recordings().items()
    }
    HEARD.write_text(json.dumps(heard) + "\n")


if __name__ == "__main__":
    main()
