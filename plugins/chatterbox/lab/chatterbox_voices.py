"""Generate a test fixture with recordings as Chatterbox's authors' code encodes them, with small random networks.

    CHATTERBOX_SRC=chatterbox python -m plugins.chatterbox.lab.chatterbox_voices \\
        plugins/chatterbox/tests/data/chatterbox_voices.npz

CHATTERBOX_SRC is the folder chatterbox in the wheel chatterbox-tts 0.1.7. The script runs in an environment with that
package's requirements (torch and torchaudio 2.6.0, librosa 0.11.0, s3tokenizer 0.3.0, pyloudnorm), except Perth. Only
the tokenizer is smaller than the published one. Recordings longer than 5 s are also encoded for Turbo.
"""

import ast
import math
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lab.authors.reply_fixture import run_arrays
from lab.releases.random_tensors import drawn_by_name

SOURCE = Path(os.environ.get("CHATTERBOX_SRC", "chatterbox"))
# sizes of the tokenizer; published: 1280, 20, 6
WIDTH = 128
NUM_HEADS = 2
NUM_LAYERS = 2
WITH_MEL = ("odd", "short")  # recordings whose mel spectrogram is stored
CODES_S = 6
SOUND_S = 10
TURBO_CODES_S = 15
TURBO_MIN_S = 5.0
Arrays = dict[str, np.ndarray]


def recordings() -> dict[str, tuple[np.ndarray, int]]:
    """Return tones and noise, some with silence, as recordings by name: float32 [n] or [n, 2], and the sample rate."""
    draw = np.random.default_rng(1)

    def tone(seconds: float, rate: int, quiet: float = 0.0) -> np.ndarray:
        time = np.arange(int(seconds * rate)) / rate
        pcm = 0.3 * np.sin(2 * np.pi * (140 * time + 30 * np.sin(3 * time))) * (1 + np.sin(9 * time)) / 2
        pcm = pcm + 0.02 * draw.standard_normal(len(time))
        still = 1e-4 * draw.standard_normal(int(quiet * rate))
        return np.concatenate([still, pcm, still]).astype(np.float32)

    stereo = tone(7.013, 44100, 0.4)
    return {
        "even": (tone(6.0, 24000), 24000),
        "odd": (tone(2.3171, 24000), 24000),
        "silence": (tone(4.1, 16000, 0.8), 16000),
        "long": (tone(12.4, 24000), 24000),
        "stereo": (np.stack([stereo, 0.5 * stereo], 1), 44100),
        "short": (tone(0.31, 24000), 24000),
    }


def networks() -> SimpleNamespace:
    """Return the authors' networks with random weights that depend on the weight names."""
    for name in ("", ".models", ".models.t3", ".models.t3.modules", ".models.s3gen"):  # skips these packages' code
        module: Any = ModuleType(f"chatterbox{name}")
        module.__path__ = [str(SOURCE.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module
    import torch
    from s3tokenizer import model_v2

    config = model_v2.S3TokenizerV2.__init__.__defaults__[0]
    config.n_audio_state = WIDTH
    config.n_audio_head = NUM_HEADS
    config.n_audio_layer = NUM_LAYERS
    from chatterbox.models.s3gen.xvector import CAMPPlus
    from chatterbox.models.s3tokenizer import S3Tokenizer
    from chatterbox.models.voice_encoder import VoiceEncoder

    parts = {"tokenizer": S3Tokenizer(), "speaker_encoder": CAMPPlus(memory_efficient=False), "ve": VoiceEncoder()}
    with torch.no_grad():
        for part, network in parts.items():
            for name, tensor in [*network.eval().named_parameters(), *network.named_buffers()]:
                if name not in ("_mel_filters", "window") and tensor.is_floating_point():
                    tensor.copy_(torch.from_numpy(drawn_by_name(f"{part}.{name}", tuple(tensor.shape))))
    return SimpleNamespace(**parts)


def method(file: str, name: str, scope: dict[str, Any]) -> Any:
    """Return a method of the package's class in `file`, without running that file's imports."""
    tree = ast.parse((SOURCE / file).read_text())
    named = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    (found,) = (node for node in named if node.name == name)
    exec(compile(ast.Module([found], []), file, "exec"), scope)
    return scope[name]


def encodings() -> Arrays:
    """Encode all recordings; return arrays under keys "recording.array"."""
    parts = networks()
    import librosa
    import pyloudnorm
    import soundfile
    import torch
    from chatterbox.models.s3gen.s3gen import S3Token2Mel, mel_spectrogram

    torch.set_num_threads(1)
    constants = {"mel_extractor": mel_spectrogram, "device": torch.device("cpu"), "dtype": torch.float32}
    s3gen = SimpleNamespace(tokenizer=parts.tokenizer, speaker_encoder=parts.speaker_encoder, **constants)
    s3gen.embed_ref = S3Token2Mel.embed_ref.__get__(s3gen)
    condition = lambda **values: SimpleNamespace(**values, to=lambda device: SimpleNamespace(**values))  # noqa: E731
    scope: dict[str, Any] = {"librosa": librosa, "torch": torch, "S3GEN_SR": 24_000, "S3_SR": 16_000}
    scope |= {"T3Cond": condition, "Conditionals": lambda t3, gen: SimpleNamespace(t3=t3, gen=gen)}
    prepare = method("tts.py", "prepare_conditionals", scope)
    hyperparameters = SimpleNamespace(speech_cond_prompt_len=150)
    lengths = {"ENC_COND_LEN": CODES_S * 16_000, "DEC_COND_LEN": SOUND_S * 24_000}
    owner = SimpleNamespace(s3gen=s3gen, ve=parts.ve, device="cpu", t3=SimpleNamespace(hp=hyperparameters), **lengths)
    turbo_scope = {**scope, "ln": pyloudnorm, "math": math}
    level = method("tts_turbo.py", "norm_loudness", turbo_scope)
    prepare_turbo = method("tts_turbo.py", "prepare_conditionals", turbo_scope)
    lengths = {"ENC_COND_LEN": TURBO_CODES_S * 16_000, "DEC_COND_LEN": SOUND_S * 24_000}
    turbo = SimpleNamespace(s3gen=s3gen, ve=parts.ve, device="cpu", **lengths)
    turbo.t3 = SimpleNamespace(hp=SimpleNamespace(speech_cond_prompt_len=375))
    turbo.norm_loudness = lambda *given: level(turbo, *given)
    found: Arrays = {}
    for name, (pcm, rate) in recordings().items():
        with tempfile.NamedTemporaryFile(suffix=".wav") as file, torch.inference_mode():
            soundfile.write(file.name, pcm, rate, subtype="FLOAT")
            prepare(owner, file.name)
            if len(pcm) > TURBO_MIN_S * rate:
                prepare_turbo(turbo, file.name)
                found |= turbo_arrays(name, turbo.conds)
        t3 = owner.conds.t3
        gen = owner.conds.gen
        tokens = {"t3_tokens": t3.cond_prompt_speech_tokens, "prompt_token": gen["prompt_token"]}
        found |= {f"{name}.{key}": each[0].numpy().astype(np.int16) for key, each in tokens.items()}
        vectors = {"speaker_emb": t3.speaker_emb, "embedding": gen["embedding"]}
        found |= {f"{name}.{key}": each[0].numpy() for key, each in vectors.items()}
        mel = gen["prompt_feat"][0].numpy()
        found[f"{name}.num_frames"] = np.array(len(mel))
        if name in WITH_MEL:
            found[f"{name}.prompt_feat"] = mel
    return found


def turbo_arrays(name: str, conditions: Any) -> Arrays:
    """Return a recording's arrays for Turbo under keys "turbo.recording.array"."""
    arrays = {
        "t3_tokens": conditions.t3.cond_prompt_speech_tokens[0].numpy().astype(np.int16),
        "prompt_token": conditions.gen["prompt_token"][0].numpy().astype(np.int16),
        "speaker_emb": conditions.t3.speaker_emb[0].numpy(),
        "embedding": conditions.gen["embedding"][0].numpy(),
        "mel_mean": conditions.gen["prompt_feat"][0].numpy().mean(0),
    }
    return {f"turbo.{name}.{key}": each for key, each in arrays.items()}


if __name__ == "__main__":
    run_arrays(__doc__, encodings, tolerance=1e-4)
