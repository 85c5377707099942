"""Write `reference.npz` for the tests: results of the authors' code on the random checkpoint.

    python3.11 -m venv authors && authors/bin/pip install torch transformers==4.57.3 accelerate==1.12.0 librosa einops
    authors/bin/pip install --no-deps qwen-tts==0.1.1
    PYTHONPATH=.:python_backend authors/bin/python -m tests.codecs.qwen3_12hz.authors

The decoder runs in float64, including its norms, which would round to float32. `whole` is a one-shot decode.
`chunked` is the authors' decode in chunks of 300 frames, which overlap by 25. The encoders run in float32, through
the wrapper that resamples.
"""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lab.releases.random_qwen3_codec import write_qwen3_codec, write_speaker_encoder
from tests.codecs.qwen3_12hz.reference import EVERY, HEARD_S, REFERENCE, SPEAKER, codes, speech

MISSING = ("sox", "onnxruntime", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")


def stand_in() -> None:
    """Register empty modules that the authors' 25 Hz tokenizer imports."""
    for name in MISSING:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)


def exact_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the authors' norm in the precision of its input."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def decoded(folder: Path) -> dict[str, np.ndarray]:
    """Return every n-th sample of both decodes and the level."""
    from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as theirs

    theirs.Qwen3TTSTokenizerV2DecoderRMSNorm.forward = exact_norm
    model = theirs.Qwen3TTSTokenizerV2Model.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    with torch.inference_mode():
        whole, chunked = model.decoder(codes())[0, 0], model.decoder.chunked_decode(codes())[0, 0]
    return {
        "whole": whole[::EVERY].numpy(),
        "chunked": chunked[::EVERY].numpy(),
        "level": whole.square().mean().sqrt().numpy(),
    }


def heard(folder: Path) -> dict[str, np.ndarray]:
    """Return the codes of the recordings at 24 kHz, and of the last recording at 16 kHz."""
    from qwen_tts.inference.qwen3_tts_tokenizer import Qwen3TTSTokenizer

    wrapper = Qwen3TTSTokenizer.from_pretrained(str(folder), dtype=torch.float32)
    asked = [(f"heard_{seconds}", speech(seconds), 24_000) for seconds in HEARD_S]
    asked.append(("heard_16khz", speech(HEARD_S[-1], 16_000), 16_000))
    return {name: wrapper.encode(pcm, sr=rate).audio_codes[0].T.numpy().astype(np.uint8) for name, pcm, rate in asked}


def speakers(folder: Path) -> dict[str, np.ndarray]:
    """Return x-vectors, float32 [H], of the longer recordings."""
    from qwen_tts.core.models import Qwen3TTSForConditionalGeneration as Theirs
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSSpeakerEncoderConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSSpeakerEncoder

    encoder = Qwen3TTSSpeakerEncoder(Qwen3TTSSpeakerEncoderConfig(**SPEAKER)).eval()
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    model = ModuleType("model")  # the input of `extract_speaker_embedding`
    model.speaker_encoder, model.device, model.dtype = encoder, torch.device("cpu"), torch.float32
    return {
        f"speaker_{seconds}": Theirs.extract_speaker_embedding(model, speech(seconds), 24_000).numpy()
        for seconds in HEARD_S[1:]
    }


def main() -> None:
    stand_in()
    with tempfile.TemporaryDirectory() as name:
        codec = write_qwen3_codec(Path(name) / "codec")
        speaker = write_speaker_encoder(Path(name) / "speaker", SPEAKER)
        np.savez_compressed(REFERENCE, **decoded(codec), **heard(codec), **speakers(speaker))


if __name__ == "__main__":
    main()
