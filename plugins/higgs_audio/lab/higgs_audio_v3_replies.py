"""Generate a test fixture with replies from mlx-audio for small random Higgs Audio v3 releases.

    python -m plugins.higgs_audio.lab.higgs_audio_v3_replies plugins/higgs_audio/tests/data/higgs_audio_v3_replies.npz
    python -m plugins.higgs_audio.lab.higgs_audio_v3_replies --check \\
        plugins/higgs_audio/tests/data/higgs_audio_v3_replies.npz

The first command writes the fixture, the second compares it with new replies. mlx-audio 0.6.2 and mlx (for CPUs) must
be importable. The model of mlx-audio builds the prompts, computes the logits in float32, and samples with its own
rules; only its noise is replaced by the engine's. Its own codec is not used: recordings are given as codes.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest, run_arrays, stored_arrays
from plugins.higgs_audio.lab.random_higgs_audio_v3 import KINDS, NUM_TEXT_IDS, config, language_model, write_release
from stretto.engine.sampling.noise import gumbel, seed_key, stream_keys

SEEDS = (7, 8)
TEXTS = {7: "the garden door is open", 8: "<|emotion:elation|>it rains, <|prosody:pause|> a well."}
WORDS = "how are you?"
# limit of a reply, and length of a recording
NUM_ROWS = 48
NUM_FRAMES = 5
SAMPLED = {"temperature": 0.8, "top_k": 9, "top_p": 0.95}
CASES = {
    "greedy": ({"temperature": 0.0}, False),
    "cloned": ({"temperature": 0.0}, True),
    "sampled": (SAMPLED, False),
    "sampled_cloned": (SAMPLED, True),
}
LEAST_LEAD = 1e-4  # of the best id over the second, far above rounding errors


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture."""
    return stored_arrays(Path(__file__).parents[1] / "tests" / "data" / "higgs_audio_v3_replies.npz", inputs())


def recording(kind: str) -> np.ndarray:
    """Return the codes of a recording, [K, T]."""
    sizes = KINDS[kind]
    return np.random.default_rng(3).integers(sizes["num_codes"], size=(sizes["num_codebooks"], NUM_FRAMES))


@contextmanager
def noise_of(seed: int, first: int, kind: str, leads: list[float]) -> Iterator[None]:
    """Replace mlx's draws with the engine's, for the rows from position `first` on.

    The lead of the best id is appended to `leads`, for each row as one number per codebook.
    """
    import mlx.core as mx
    from mlx_audio.tts.models.higgs_audio_v3 import generation

    categorical = mx.random.categorical
    independent = generation.sample_independent
    position = [first]
    width = KINDS[kind]["num_codes"] + 2
    number = KINDS[kind]["num_codebooks"]
    ids = NUM_TEXT_IDS + width * np.arange(number)[:, None] + np.arange(width)

    def drawn(logits: Any, axis: int) -> Any:
        keys = stream_keys(np.array([seed_key(seed)], np.int32), np.array(position, np.int32), number)
        noise = gumbel(keys[0][:, None], ids.astype(np.int32))
        scores = np.array(logits) + noise
        note(scores)
        return mx.array(scores.argmax(axis))

    def sampled(logits: Any, *, temperature: float, **others: Any) -> Any:
        if temperature == 0:
            note(np.array(logits))
        found = independent(logits, temperature=temperature, **others)
        position[0] += 1
        return found

    def note(scores: np.ndarray) -> None:
        best = np.sort(scores, -1)[:, -2:]
        begun = position[0] - first + 1  # other codebooks get their begin id
        leads.extend((best[:, 1] - best[:, 0])[:begun].tolist())

    mx.random.categorical = drawn
    generation.sample_independent = sampled
    try:
        yield
    finally:
        mx.random.categorical = categorical
        generation.sample_independent = independent


def load(kind: str, folder: Path) -> Any:
    """Return mlx-audio's model with the weights of a release, and with its tokenizer."""
    import mlx.core as mx
    from mlx_audio.tts.models.higgs_audio_v3 import HiggsAudioV3Config, HiggsAudioV3PromptBuilder, Model
    from transformers import PreTrainedTokenizerFast

    release = write_release(folder, kind)
    model = Model(HiggsAudioV3Config.from_dict(json.loads((release / "config.json").read_text())))
    found = {name: mx.array(values) for name, values in language_model(kind).items()}
    model.load_weights(list(model.sanitize(found).items()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(release / "tokenizer.json"))
    model._prompt_builder = HiggsAudioV3PromptBuilder(tokenizer)
    return model


def prompted(model: Any, kind: str, text: str, is_cloned: bool) -> np.ndarray:
    """Return the rows of a prompt, int32 [P, K]: text ids on stream 0 and -1 on the others, or codes."""
    import mlx.core as mx
    from mlx_audio.tts.models.higgs_audio_v3 import ReferenceCodes

    codes = delayed(kind)
    references = [ReferenceCodes(mx.array(codes), WORDS)] if is_cloned else []
    parts = model._prompt_builder.build_prompt(text, references=references)
    rows = np.full((len(parts.token_ids), codes.shape[1]), -1, np.int32)
    rows[:, 0] = parts.token_ids
    for start, found in parts.audio_segments:
        rows[start : start + len(found)] = np.array(found)
    return rows


def delayed(kind: str) -> np.ndarray:
    """Return the delayed rows of the recording, as mlx-audio makes them."""
    import mlx.core as mx
    from mlx_audio.tts.models.higgs_audio_v3 import apply_delay_pattern

    size = KINDS[kind]["num_codes"]
    return np.array(apply_delay_pattern(mx.array(recording(kind).T), boc_id=size, eoc_id=size + 1))


def generate(model: Any, kind: str, seed: int, name: str) -> dict[str, Any]:
    """Return the prompt and the rows of a reply, and True if the end id ended it."""
    import mlx.core as mx

    options, is_cloned = CASES[name]
    prompt = prompted(model, kind, TEXTS[seed], is_cloned)
    rows = list[Any]()
    leads = list[float]()

    def kept(delayed_rows: list[Any]) -> Any:
        rows.extend(np.array(row) for row in delayed_rows)
        return mx.zeros((0,))

    model._decode_audio = kept
    references = [{"codes": delayed(kind), "text": WORDS}] if is_cloned else None
    with noise_of(seed, len(prompt), kind, leads):
        list(model.generate(TEXTS[seed], references=references, max_tokens=NUM_ROWS, **options))
    reply = np.array(rows, np.int32)
    end = KINDS[kind]["num_codes"] + 1
    num_codebooks = KINDS[kind]["num_codebooks"]
    message = f"{kind}, seed {seed}, {name}: choose another seed of the weights"
    assert not (reply[:num_codebooks, 0] == end).any(), f"{message}: the end id is in the first rows"
    assert min(leads) > LEAST_LEAD, f"{message}: the best id leads by {min(leads)}"
    return {"prompt": prompt, "rows": reply, "ended": len(reply) < NUM_ROWS}


def inputs() -> dict[str, Any]:
    """Return everything that the replies depend on, for the digest."""
    found = {f"{kind}.{name}": each for kind in KINDS for name, each in language_model(kind).items()}
    texts = [json.dumps([config(kind)["text_config"] for kind in KINDS]), *TEXTS.values(), WORDS]
    return found | {"texts": np.frombuffer("\0".join(texts).encode(), np.uint8)}


def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    values: dict[str, Any] = {"inputs": digest(inputs())}
    with tempfile.TemporaryDirectory() as root:
        for kind in KINDS:
            model = load(kind, Path(root, kind))
            for seed in SEEDS:
                for name in CASES:
                    found = generate(model, kind, seed, name)
                    values |= {f"{kind}.{seed}.{name}.{part}": each for part, each in found.items()}
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, 0.0)
