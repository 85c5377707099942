"""Generate a test fixture with replies from two programs for small random Phonon releases.

    python -m plugins.pocket.lab.phonon_replies plugins/pocket/tests/data/phonon_replies.npz
    python -m plugins.pocket.lab.phonon_replies --check plugins/pocket/tests/data/phonon_replies.npz

The first command writes the fixture, the second compares it with new replies. transformers 5.23.0 and the authors'
runtime, ptts 0.4.2, must be importable. The class in transformers generates latents with the engine's noise, in
float64, so that they do not depend on the processor. The runtime cannot be given noise, so it speaks without any, from
the text to the samples, in float32.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lab.authors.reply_fixture import compute_in_float64, digest, run_arrays
from plugins.pocket.lab.random_phonon import (
    DURATION_WIDTH,
    KINDS,
    NUM_SPEAKER_ROWS,
    SPEAKER_WIDTH,
    SPOKEN_KINDS,
    config,
    inputs,
    voice_latents,
    write_release,
)
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys

SEEDS = (7, 8)
VOICE = "Toby"
NUM_FRAMES = 24
# of the samples without noise, every eighth is stored
NUM_SPOKEN_FRAMES = 8
FRAME = 1920
STRIDE = 8
PREPARED = "The garden door is open."
# Texts for the runtime: white space, capitals, ends, few words, characters without a token, and several pieces.
TEXTS = (
    "the garden door is open",
    " it\n rains",
    "one, two; three: and more —",
    "a  b\tc d e.f.",
    "élan is the “door”",
    "it is open at 3",
    "The door is open. " * 7,
    "a word without any mark " * 7,
    "the door is open, and it rains " * 16,
    "a word without any mark " * 45,
    "it is (open.) and here “too!” so " * 4 + "one more " * 30 + "x" * 700,
)
NUDGE = 1e-6
NUM_NUDGES = 3
NO_END = 1e9  # an end threshold that no logit exceeds
PLACEHOLDERS = {"audio_prompt_token_id": 197, "audio_latent_token_id": 198, "audio_bos_token_id": 199}
TOLERANCE = 1e-5  # permitted difference between processors, for `--check`


@contextmanager
def noise_of(seed: int, first: int) -> Iterator[None]:
    """Replace torch's normal noise with the engine's, for the rows from position `first` on."""
    randn = torch.randn
    position = [first]

    def own(batch: int, width: int, **options: Any) -> torch.Tensor:
        keys = stream_keys(np.array([seed_key(seed)], np.int32), np.array(position, np.int32), 1 + width)[:, 1:]
        position[0] += 1
        return torch.from_numpy(gaussian(keys)).to(options["dtype"])

    torch.randn = own  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn = randn


def load(kind: str, folder: Path) -> Any:
    """Return the class in transformers with a release's weights, in float64."""
    from transformers import GradiumPhononTTSConfig, GradiumPhononTTSForConditionalGeneration

    record = config(kind)
    lm = record["flow_lm"]
    write_release(folder, kind)
    flow_type = "drifting" if kind == "drifting" else "lsd"
    GradiumPhononTTSConfig(
        vocab_size=lm["n_bins"] + 1,
        hidden_size=lm["d_model"],
        num_hidden_layers=lm["num_layers"],
        num_attention_heads=lm["num_heads"],
        intermediate_size=lm["dim_feedforward"],
        rope_parameters={"rope_type": "default", "rope_theta": lm["max_period"]},
        latent_dim=lm["ldim"],
        audio_prompt_dim=record["mimi"]["dimension"],
        num_speakers_vocab_size=NUM_SPEAKER_ROWS + 1,
        num_speakers_embedding_dim=SPEAKER_WIDTH,
        duration_delta_embedding_dim=DURATION_WIDTH,
        flow_head_config={
            "hidden_size": lm["flow_dim"],
            "num_hidden_layers": lm["flow_depth"],
            "latent_dim": lm["ldim"],
            "condition_dim": lm["d_model"],
            "flow_type": flow_type,
        },
        **PLACEHOLDERS,
    ).save_pretrained(folder)
    model = GradiumPhononTTSForConditionalGeneration.from_pretrained(folder).double().eval()
    if not record["conditioners"]:
        for projection in (model.model.num_speakers_proj, model.model.duration_delta_proj):
            projection.weight.data.zero_()
    return model


@torch.no_grad()
def generate(
    model: Any, kind: str, ids: list[int], seed: int, nudge: torch.Tensor | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return latents [T, D] before the codec's scaling, and end logits [T].

    Args:
        model: The class in transformers.
        kind: Kind of the release.
        ids: Token ids of the text.
        seed: Seed of the noise.
        nudge: Value added to the first latent.
    """
    record = config(kind)
    latents = list[torch.Tensor]()
    sample = model.sample_latent

    def sampled(*call: Any) -> torch.Tensor:
        latent = sample(*call)
        latents.append(latent + nudge if not latents else latent)
        return latents[-1]

    voice = voice_latents(VOICE).T[None].double()
    prompt = [PLACEHOLDERS["audio_prompt_token_id"]] * voice.shape[1] + ids + [PLACEHOLDERS["audio_bos_token_id"]]
    model.sample_latent = sampled
    try:
        with noise_of(seed, len(prompt)):
            made = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                audio_prompt_latents=voice,
                audio_prompt_latents_mask=torch.ones(voice.shape[:2], dtype=torch.long),
                do_sample=True,
                temperature=record["temp"],
                num_flow_steps=record["lsd_decode_steps"],
                eos_threshold=NO_END,
                frames_after_eos=0,
                max_new_tokens=NUM_FRAMES,
                return_dict_in_generate=True,
                output_scores=True,
            )
    finally:
        del model.sample_latent
    return torch.cat(latents).numpy(), torch.stack(made.scores)[:, 0].numpy()


def reply(model: Any, kind: str, ids: list[int], seed: int) -> dict[str, Any]:
    """Return the latents, the end logits, and the largest effect of small changes of the first latent, by frame."""
    latents, logits = generate(model, kind, ids, seed)
    nudged = np.zeros(NUM_FRAMES)
    for number in range(NUM_NUDGES):
        nudge = torch.from_numpy(NUDGE * np.random.default_rng(number).standard_normal(latents.shape[1]))
        nudged = np.maximum(nudged, np.abs(generate(model, kind, ids, seed, nudge)[0] - latents).max(1))
    return {
        "latents": latents.astype(np.float32),
        "end_logits": logits.astype(np.float32),
        "nudged": nudged.astype(np.float32),
    }


def spoken(folder: Path, kind: str) -> dict[str, Any]:
    """Return the numbers of samples and the first samples of TEXTS without noise, by the authors' runtime.

    One threshold ends each piece of a text in its first frame, so that the number of samples depends on the pieces.
    """
    import ptts

    record = config(kind)
    release = write_release(folder, kind)
    found = dict[str, Any]()
    for name, threshold in (("all", -NO_END), ("first", NO_END)):
        (release / "config.json").write_text(json.dumps(record | {"eos_threshold": threshold}))
        model = ptts.TTS(str(release), lang="none", temperature=0.0, voice=VOICE)
        pcm = [model.synth(text) for text in TEXTS]
        found[f"{name}_numbers"] = [len(each) for each in pcm]
        if name == "first":
            found["pcm"] = np.stack([each[: NUM_SPOKEN_FRAMES * FRAME : STRIDE] for each in pcm])
    return found


def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    with tempfile.TemporaryDirectory() as root:
        for kind in SPOKEN_KINDS:
            values |= {f"{kind}.{name}": found for name, found in spoken(Path(root, "spoken", kind), kind).items()}
        models = {kind: load(kind, Path(root, kind)) for kind in KINDS}
        ids = Tokenizer.from_file(str(Path(root, KINDS[0], "tokenizer.json"))).encode(PREPARED).ids
        compute_in_float64()
        for kind, model in models.items():
            for seed in SEEDS:
                found = reply(model, kind, ids, seed)
                values |= {f"{kind}.{seed}.{name}": value for name, value in found.items()}
    return values | {"ids": ids}


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
