"""VibeVoice through the real server (release, converter, repository, server, client), with two speakers."""

import json
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from transformers import VibeVoiceForConditionalGeneration

from plugins.vibevoice.tests.vibevoice_release import FRAME, HOP, OFFSET, SCALE, Reference, convert_release, model_of
from stretto.decoder.reply_end import ended_in_pause
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.server.conftest import ServedCheckpoint, serves

# By night: test_vibevoice.py of this plug-in compares frames; prompts and codec have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
MESSAGES = json.dumps(
    [
        {"role": "user", "audio": "audio"},
        {"role": "user", "audio": "audio"},
        {"role": "user", "text": "Speaker 1: Hello.\nSpeaker 2: Hi, you."},
    ]
)
OPTIONS = {"seed": 3, "guidance_scale": 1.5, "latents": {"steps": 5}, "audio": {"max_rows": 20}}


def wave_file(seed: int) -> bytes:
    file = BytesIO()
    pcm = (0.1 * np.random.default_rng(seed).standard_normal(4 * HOP)).astype(np.float32)
    soundfile.write(file, pcm, 24000, format="WAV", subtype="FLOAT")
    return file.getvalue()


served = serves(lambda folder: convert_release(folder, "long"))


def test_served_dialogue_matches_the_reference(served: ServedCheckpoint) -> None:
    """Samples equal the reference's latents decoded stretch by stretch, without the markers between them."""
    files, options = (wave_file(1), wave_file(2)), json.dumps(OPTIONS)
    prompt = Preprocessor(served.checkpoint).prepare(RawRequest(messages=MESSAGES, audio=files, options=options))
    model = model_of("long")
    ids, latents, _, _ = Reference(model).reply(prompt.rows, 3, 1.5, 5, 20)
    answer = served.server.ask(options, messages=MESSAGES, audio=files)
    assert answer.error is None
    pcm = answer.pcm
    assert len(pcm) == ids.count(FRAME) * HOP
    parts, stretch = list[np.ndarray](), list[np.ndarray]()
    frames = iter(latents)
    for token in ids:
        if token == FRAME:
            stretch.append(next(frames))
        elif stretch:
            parts.append(decoded(model, np.stack(stretch)))
            stretch = []
    whole = np.concatenate(parts)
    expected = ended_in_pause(whole, 3 * HOP, 24_000) if ids[-2] == FRAME else whole  # the last id ends the reply
    np.testing.assert_allclose(pcm, expected, atol=5e-3)
    assert answer.report["finish_reason"] == "length"


def decoded(model: VibeVoiceForConditionalGeneration, latents: np.ndarray) -> np.ndarray:
    """Decode a stretch of scaled latents [T, D] to samples [n]."""
    with torch.inference_mode():
        codes = (torch.from_numpy(latents) / SCALE - OFFSET).T[None]
        return model.model.audio_tower.decoder(codes).audio.clamp(-1, 1).flatten().numpy()
