"""Generate a test fixture with replies from Pocket TTS's authors' code for small random releases, with our noise.

    python -m plugins.pocket.lab.pocket_tts_replies plugins/pocket/tests/data/pocket_tts_replies.npz
    python -m plugins.pocket.lab.pocket_tts_replies --check plugins/pocket/tests/data/pocket_tts_replies.npz

The first command writes the fixture, the second compares it with new replies. pocket-tts 4.0.1 must be importable, with
scipy, requests, beartype and sentencepiece. The authors' code draws noise with `torch.nn.init.normal_`. The script
replaces this function with the engine's noise for the position of the row that carries the latent. It computes in
float64, so that the fixture does not depend on the processor, and rounds results to float32.
"""

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lab.authors.reply_fixture import compute_in_float64, digest, run_arrays
from plugins.pocket.lab.random_pocket import config, inputs, recording, write_release
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys

SEED = 7
VOICE = "alba"
MAX_FRAMES = 40
FRAME = 1920
TEXTS = {
    "english": "the garden door is open",
    "english_2m": "Hi — it’s me",
    "english_18m": "a bird sang; then it rained.",
}
# Texts whose pieces are stored: with and without spaces, numbers, unknown characters, quotes, and long sentences.
CUT_TEXTS = (
    "Stop!Now e.g. this",
    "it costs 3.14 now. And 2.5.Then 7",
    'he said “yes” — she said "no"; then é門門 came',
    "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.",
    "The door is open. " * 9,
    "one, two; three: " * 12 + "and 1,000,000 more",
    "\n two lines\nof text\r\n",
    "words without any punctuation mark " * 6,
)
NUDGE = 1e-6
NUM_NUDGES = 3
NO_END = 1e9  # an end threshold that no logit exceeds
NUM_PCM_FRAMES = 5
NUM_LAST_SAMPLES = 480
NUM_CLONED_FRAMES = 16
TOLERANCE = 1e-5  # permitted difference between processors, for `--check`: results are rounded to float32


@contextmanager
def noise_at(position: list[int]) -> Iterator[None]:
    """Replace torch's normal noise with the engine's noise for the row at `position[0]`."""
    normal = torch.nn.init.normal_

    def own(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, generator: object = None) -> torch.Tensor:
        seeds = np.array([seed_key(SEED)], np.int32)
        positions = np.array(position, np.int32)
        keys = stream_keys(seeds, positions, 1 + tensor.shape[-1])[:, 1:]
        return tensor.copy_(torch.from_numpy(gaussian(keys)).double() * std)

    torch.nn.init.normal_ = own
    try:
        yield
    finally:
        torch.nn.init.normal_ = normal


@torch.no_grad()
def generate(
    model: Any, state: Any, tokens: torch.Tensor, threshold: float, tail: int, nudge: torch.Tensor | float = 0.0
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Generate latents [T, D] as `_autoregressive_generation` does; also return end logits [T] and the end frame.

    Args:
        model: The authors' `TTSModel`.
        state: The model's state after it has read a voice.
        tokens: Token ids of the text, [1, n].
        threshold: Logit above which speech ends.
        tail: Number of frames to generate from the end frame on.
        nudge: Value added to the first latent.
    """
    state = copy.deepcopy(state)
    logits = list[float]()
    latents = list[torch.Tensor]()
    ended = None
    start = model._flow_lm_current_end(state) + tokens.shape[1]
    model._expand_kv_cache(state, start + MAX_FRAMES + 1)
    model.eos_threshold = threshold
    end = model.flow_lm.out_eos.register_forward_hook(lambda *call: logits.append(float(call[-1].flatten()[-1])))
    position = [0]
    with noise_at(position):
        model._run_flow_lm_and_increment_step(model_state=state, text_tokens=tokens)
        logits.clear()
        latent = torch.full((1, 1, model.flow_lm.ldim), float("nan"))
        for frame in range(MAX_FRAMES):
            position[0] = start + 1 + frame
            latent, is_end = model._run_flow_lm_and_increment_step(model_state=state, backbone_input_latents=latent)
            if bool(is_end) and ended is None and frame >= model._MIN_FRAMES_BEFORE_EOS:
                ended = frame
            if ended is not None and frame >= ended + tail:
                break
            latent = latent + nudge if frame == 0 else latent
            latents.append(latent[0, 0])
    end.remove()
    return torch.stack(latents).numpy(), np.array(logits[: len(latents)], np.float32), ended


def effect_of_nudges(model: Any, state: Any, tokens: torch.Tensor, latents: np.ndarray) -> np.ndarray:
    """Return how much small changes of the first latent change each latent [T, D] at most, float32 [T]."""
    largest = np.zeros(len(latents), np.float32)
    for number in range(NUM_NUDGES):
        nudge = torch.from_numpy(NUDGE * np.random.default_rng(number).standard_normal(latents.shape[1]))
        moved, _, _ = generate(model, state, tokens, NO_END, 0, nudge)
        largest = np.maximum(largest, np.abs(moved[: len(latents)] - latents).max(1))
    return largest


@torch.no_grad()
def samples(model: Any, latents: np.ndarray) -> np.ndarray:
    """Decode latents [T, D] to samples, with the fade-in of `_decode_audio_worker`."""
    from pocket_tts.modules.stateful_module import init_states

    steps = int(model.mimi.encoder_frame_rate / model.mimi.frame_rate)
    scaled = torch.from_numpy(latents)[None] * model.flow_lm.emb_std + model.flow_lm.emb_mean
    pcm = model.mimi.decode_from_latent(scaled, init_states(model.mimi, 1, steps * len(latents)))[0, 0]
    num_faded = model.config.mimi.sample_rate // 200
    pcm[:num_faded] *= torch.linspace(0, 1, num_faded)
    return pcm.numpy()


@dataclass(frozen=True)
class Loaded:
    """The authors' model of a release, and its state after it has read a voice, both in float64."""

    record: dict[str, Any]
    model: Any
    voice: Any


def load(kind: str, folder: Path) -> Loaded:
    """Write a release of the given kind and load it. Torch must be unchanged, because safetensors fails otherwise."""
    from pocket_tts.models.tts_model import TTSModel

    release = write_release(folder / kind, kind)
    record = config(kind) | {"weights_path": str(release / "model.safetensors")}
    table = record["flow_lm"]["lookup_table"]
    table["tokenizer_path"] = str(release / table["tokenizer_path"])
    (release / "theirs.yaml").write_text(yaml.safe_dump(record))
    model = TTSModel.load_model(config=release / "theirs.yaml", temp=record["default_temperature"])
    voice = model.get_state_for_audio_prompt(release / "embeddings" / f"{VOICE}.safetensors")
    return Loaded(record, model.double(), in_float64(voice))


def in_float64(state: Any) -> Any:
    """Return a dict of states with all its floats in float64."""
    if isinstance(state, dict):
        return {name: in_float64(value) for name, value in state.items()}
    return state.double() if state.is_floating_point() else state


def reply(loaded: Loaded, text: str) -> dict[str, Any]:
    """Speak a text with a release; return the values of `plugins.pocket.tests.pocket_release.Reply`."""
    from pocket_tts.data.audio_utils import end_on_pause
    from pocket_tts.models.text_chunking import prepare_text_prompt, split_into_best_sentences

    record = loaded.record
    model = loaded.model
    state = loaded.voice
    rules = {name: getattr(model, name) for name in ("pad_with_spaces_for_short_inputs", "remove_semicolons")}
    prepared, guess = prepare_text_prompt(text, *rules.values(), replace_characters=model.replace_characters)
    tokens = model.flow_lm.conditioner.prepare(prepared)
    tail = guess + 2
    pieces = list[list[tuple[list[int], int]]]()
    for cut_text in CUT_TEXTS:
        cut = split_into_best_sentences(
            model.flow_lm.conditioner.tokenizer,
            cut_text,
            50,
            *rules.values(),
            replace_characters=model.replace_characters,
        )
        made = [prepare_text_prompt(one, *rules.values(), replace_characters=model.replace_characters) for one in cut]
        pieces.append([(model.flow_lm.conditioner.prepare(one)[0].tolist(), guess + 2) for one, guess in made])
    latents, logits, ended = generate(model, state, tokens, record["default_eos_threshold"], tail)
    assert ended is not None, f"{text}: no end among {logits.round(3).tolist()}"
    pcm = samples(model, latents)
    sound = torch.from_numpy(recording()).double()[None]
    voice = model.mimi.encode_to_latent(end_on_pause(sound, model.sample_rate)[None])[0]
    in_voice = model.get_state_for_audio_prompt(sound)
    cloned = generate(model, in_voice, tokens, NO_END, tail)[0][:NUM_CLONED_FRAMES]
    return {
        "text": text,
        "prepared": prepared,
        "tokens": tokens[0].numpy(),
        "pieces": json.dumps(pieces),
        "latents": latents.astype(np.float32),
        "ended": ended,
        "tail": tail,
        "end_logits": logits,
        "nudged": effect_of_nudges(model, state, tokens, latents),
        "pcm": pcm[: NUM_PCM_FRAMES * FRAME].astype(np.float32),
        "pcm_last": pcm[-NUM_LAST_SAMPLES:].astype(np.float32),
        "voice": voice.detach().numpy().astype(np.float32),
        "cloned": cloned.astype(np.float32),
        "cloned_nudged": effect_of_nudges(model, in_voice, tokens, cloned),
        "seed": SEED,
    }


def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs(TEXTS))}
    with tempfile.TemporaryDirectory() as folder:
        all_loaded = {kind: load(kind, Path(folder)) for kind in TEXTS}
        compute_in_float64()
        for kind, text in TEXTS.items():
            found = reply(all_loaded[kind], text)
            values |= {f"{kind}.{name}": value for name, value in found.items()}
            lead = float(np.abs(found["end_logits"] - config(kind)["default_eos_threshold"]).min())
            levels = {name: float(found[name].std()) for name in ("latents", "pcm")}
            print(kind, "ends at", found["ended"], "of", len(found["latents"]), "margin", lead, levels, flush=True)
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
