"""A small random release of Moshi, its conversion, and the replies of the authors' code."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.kyutai.lab.random_moshi import write_release
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto_kyutai.moshi.family import MoshiVocabulary
from stretto_kyutai.moshi.prompt import first_row, user_ids

if TYPE_CHECKING:  # imports vLLM
    from stretto.testing.conformance import Answer

DATA = Path(__file__).parent / "data"
# Fields of config.json that Kyutai's models have in common, and what is said of a value that is not served.
REFUSED_CONFIGS: list[tuple[dict[str, object], str]] = [
    ({"norm": "layer_norm"}, "config.json: norm: expected 'rms_norm_f32', got 'layer_norm'"),
    ({"kv_repeat": 2}, "config.json: kv_repeat: expected 1, got 2"),
    ({"quantize": True}, "config.json: quantize: expected False, got True"),
    ({"text_card": 95}, "expected a tokenizer of 95 tokens, got 96"),
]
# The same for a config.json that names the other files.
REFUSED_NAMES: list[tuple[dict[str, object], str]] = [
    ({"tokenizer_name": "../tokenizer.model"}, "expected a file name without a folder, got '../tokenizer.model'"),
]
SEEDS = (0, 1001, 1002)  # of the stored replies; the first is greedy


def make_checkpoint(folder: Path, **changed: Any) -> Path:
    """Write a release and convert it."""
    release = write_release(folder / "release", **changed)
    assert main(["moshi", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def name_if_missing(name: str) -> str:
    """Return the name of a tensor that newer releases have for it; those of the depth transformer have one name."""
    if name.startswith("depformer"):
        return name
    return name.replace(".in_proj_weight", ".in_projs.0.weight").replace(".out_proj.weight", ".out_projs.0.weight")


def replies() -> dict[str, np.ndarray]:
    """Return the authors' replies: `user` [3, 8, T] and `frames` [3, T, 9], and `long_user`, `long_frames`."""
    with np.load(DATA / "moshi_replies.npz") as found:
        return {name: found[name] for name in found.files}


def vocabulary(checkpoint: Path) -> MoshiVocabulary:
    """Return the vocabulary of a checkpoint."""
    return MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


def make_prompt(checkpoint: Path, user: np.ndarray, seed: int, **limits: int) -> Prompt:
    """Return the prompt of a recording with the codes `user` [8, T]; seed 0 is greedy."""
    known, sampling = vocabulary(checkpoint), family_at(checkpoint).tasks[0].sampling
    assert sampling.depth is not None
    if seed == 0:
        greedy = replace(sampling.depth, temperature=0.0)
        sampling = replace(sampling, audio=replace(sampling.audio, temperature=0.0), depth=greedy)
    sampling = replace(sampling, audio=replace(sampling.audio, **limits), seed=seed)
    written = first_row(known, tuple(user_ids(known).push(user).reshape(-1).tolist()))
    return Prompt("duplex", written.rows, sampling, delayed_tail=written.delayed_tail, track=written.track)


def frames_of(rows: list[list[int]], checkpoint: Path) -> np.ndarray:
    """Return the complete frames of a reply's rows without the last, [T, 9]: text, then codes."""
    ids = np.array(rows[:-1]) - np.array([each.start for each in family_at(checkpoint).layout.audio])
    return np.concatenate([ids[:-1, :2], ids[1:, 2:]], 1)


def check_frames(answer: "Answer", wanted: np.ndarray, checkpoint: Path, name: str = "") -> None:
    """Assert that the frames of a reply are the authors', and that it ended with the user's audio."""
    found = frames_of(answer.rows, checkpoint)
    assert found.shape == wanted.shape, name
    first = next((at for at, (own, other) in enumerate(zip(found, wanted, strict=True)) if (own != other).any()), None)
    assert first is None, f"{name}: frame {first}: expected {wanted[first]}, got {found[first]}"
    assert answer.rows[-1][0] == family_at(checkpoint).end_of_reply
    assert answer.trailer is not None
    assert not answer.trailer.was_cut
