"""Generate a test fixture with replies of the authors' code for small random VibeVoice Realtime releases.

    python -m plugins.vibevoice.lab.vibevoice_realtime_replies \\
        plugins/vibevoice/tests/data/vibevoice_realtime_replies.npz
    python -m plugins.vibevoice.lab.vibevoice_realtime_replies --check \\
        plugins/vibevoice/tests/data/vibevoice_realtime_replies.npz

The first command writes the fixture, the second compares it with new replies. The package vibevoice (commit e73d1e1 of
https://github.com/microsoft/VibeVoice), transformers 4.51.3 and diffusers 0.35.2 must be importable. The authors' code
gets the engine's noise. It computes in float64, so that the replies do not depend on the processor.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import compute_in_float64, digest, run_arrays
from plugins.vibevoice.lab.random_vibevoice_realtime import (
    KINDS,
    NUM_IDS,
    NUM_NUMBERS,
    VOICES,
    config,
    inputs,
    voice,
)
from plugins.vibevoice.lab.random_vibevoice_realtime import tensors as weights
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys

# Seed, voice, number of text tokens, guidance scale and solver steps of each reply.
REPLIES = (
    (7, "en-Ann_woman", 17, 1.5, 5),
    (8, "en-Bob_man", 10, 2.0, 10),
    (9, "en-Ann_woman", 3, 1.0, 5),
)
NUM_WORDS = 5
NUM_FRAMES = 6
# every 16th sample is stored
MAX_FRAMES = 40
STRIDE = 16
NUDGE = 1e-6
NUM_NUDGES = 3
TOLERANCE = 1e-5  # permitted difference between processors, for `--check`
TOKENIZER = SimpleNamespace(
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    speech_start_id=3,
    speech_end_id=4,
    speech_diffusion_id=5,
    convert_tokens_to_ids=lambda name: 6,
)


def text_of(seed: int, number: int) -> list[int]:
    """Return the token ids of a text."""
    return np.random.default_rng(seed).integers(0, NUM_IDS, number).tolist()


def load(kind: str) -> Any:
    """Return the authors' model with a release's weights, in float64."""
    from vibevoice import VibeVoiceStreamingConfig, VibeVoiceStreamingForConditionalGenerationInference

    record = config(kind) | {"torch_dtype": "float32", "_attn_implementation": "eager"}
    model = VibeVoiceStreamingForConditionalGenerationInference(VibeVoiceStreamingConfig(**record))
    found = {name: values.double() for name, values in weights(kind).items()}
    missing, unknown = model.double().load_state_dict(found, strict=False)
    assert not unknown, unknown
    assert all(name.startswith("model.acoustic_tokenizer.encoder.") for name in missing), missing
    return model.eval()


def prefilled(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the tensors of a voice as the authors' code takes them."""
    from transformers.cache_utils import DynamicCache
    from transformers.modeling_outputs import BaseModelOutputWithPast

    found = {name: values.double() for name, values in tensors.items()}
    made = {}
    for part in ("lm", "tts_lm", "neg_lm", "neg_tts_lm"):
        cache = DynamicCache()
        index = 0
        while f"{part}_key_{index}" in found:
            cache.update(found[f"{part}_key_{index}"].clone(), found[f"{part}_value_{index}"].clone(), index)
            index += 1
        made[part] = BaseModelOutputWithPast(last_hidden_state=found[f"{part}_hidden"], past_key_values=cache)
    return made


def positions(first: int, num_words: int) -> list[int]:
    """Return the positions of the frames of a reply whose first row is `first`."""
    found = list[int]()
    index = first
    while len(found) < MAX_FRAMES:
        index = index + min(NUM_WORDS, num_words)
        num_words = max(0, num_words - NUM_WORDS)
        found += range(index, index + NUM_FRAMES)
        index += NUM_FRAMES
    return found


@torch.no_grad()
def generate(
    model: Any, tensors: dict[str, torch.Tensor], ids: list[int], seed: int, scale: float, steps: int, nudge: Any = 0.0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the latents [T, D] and samples [n] of a reply, and its number of frames; 0 if it did not end.

    `nudge` is added to the first latent.
    """
    prompt = prefilled(tensors)
    latents = list[torch.Tensor]()
    num_text, num_rows = (prompt[part]["last_hidden_state"].shape[1] for part in ("lm", "tts_lm"))
    places = positions(num_rows, len(ids))
    randn = torch.randn
    sample = model.sample_speech_tokens

    def noise(*shape: int, **options: Any) -> torch.Tensor:
        position = np.array([places[len(latents)]], np.int32)
        keys = stream_keys(np.array([seed_key(seed)], np.int32), position, 2 + NUM_NUMBERS)[0, 1 : 1 + NUM_NUMBERS]
        return torch.from_numpy(gaussian(keys)).double().expand(2, -1)

    def sampled(*given: Any, **options: Any) -> torch.Tensor:
        torch.randn = noise  # type: ignore[assignment]
        try:
            latent = sample(*given, **options)
        finally:
            torch.randn = randn
        latents.append(latent + nudge if not latents else latent)
        return latents[-1]

    model.set_ddpm_inference_steps(steps)
    model.sample_speech_tokens = sampled
    stopped = lambda: len(latents) >= MAX_FRAMES  # noqa: E731
    try:
        made = model.generate(
            input_ids=torch.zeros(1, num_text, dtype=torch.long),
            attention_mask=torch.ones(1, num_text, dtype=torch.long),
            tts_lm_input_ids=torch.zeros(1, num_rows, dtype=torch.long),
            tts_lm_attention_mask=torch.ones(1, num_rows, dtype=torch.long),
            tts_text_ids=torch.tensor([ids]),
            max_new_tokens=None,
            cfg_scale=scale,
            tokenizer=TOKENIZER,
            generation_config={"do_sample": False},
            all_prefilled_outputs=prompt,
            stop_check_fn=stopped,
            show_progress_bar=False,
        )
    finally:
        del model.sample_speech_tokens
    pcm = made.speech_outputs[0].flatten()
    num_frames = len(pcm) // 3200
    return torch.cat(latents)[:num_frames].numpy(), pcm.numpy(), num_frames if num_frames < MAX_FRAMES else 0


def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    voices = {(kind, name): voice(name, kind) for kind in KINDS for name in VOICES}
    models = {kind: load(kind) for kind in KINDS}
    compute_in_float64()
    for kind, model in models.items():
        for seed, name, number, scale, steps in REPLIES:
            given = model, voices[kind, name], text_of(seed, number), seed, scale, steps
            latents, pcm, num_frames = generate(*given)
            nudged = np.zeros(len(latents))
            for index in range(NUM_NUDGES):
                nudge = torch.from_numpy(NUDGE * np.random.default_rng(index).standard_normal(NUM_NUMBERS))
                changed = generate(*given, nudge)[0]
                assert len(changed) == len(latents), (kind, seed)
                nudged = np.maximum(nudged, np.abs(changed - latents).max(1))
            found = {"latents": latents, "nudged": nudged, "pcm": pcm[::STRIDE]}
            values |= {f"{kind}.{seed}.{each}": array.astype(np.float32) for each, array in found.items()}
            values[f"{kind}.{seed}.num_frames"] = num_frames
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
