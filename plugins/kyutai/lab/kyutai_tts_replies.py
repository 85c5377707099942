"""Generate a test fixture with replies of Kyutai TTS's authors' code on small random releases: rows, and word times.

    python -m plugins.kyutai.lab.kyutai_tts_replies plugins/kyutai/tests/data/kyutai_tts_replies.npz
    python -m plugins.kyutai.lab.kyutai_tts_replies --check plugins/kyutai/tests/data/kyutai_tts_replies.npz

The first command writes the fixture, the second compares it with new replies. moshi 0.2.13 must be importable, with
einops and sphn. `TTSModel.generate` speaks texts after the codes of recordings, guided and unguided, and texts of one
and two speakers with the vectors of voices. Some replies are greedy. The others are sampled by the authors' rule with
this project's noise (`lab/moshi_replies.py`).
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from lab.authors.reply_fixture import run_arrays
from plugins.kyutai.lab import moshi_replies
from plugins.kyutai.lab.random_kyutai_tts import CONFIG, LARGE, VOICES, write_release
from stretto.testing.noise import uniform
from stretto_kyutai.kyutai_stt.family import FRAME_RATE
from stretto_kyutai.kyutai_tts.convert import vocabulary
from stretto_kyutai.kyutai_tts.family import INITIAL_PADDING, MAX_PADDING

TEXTS = ("the garden door is open who said that", 'come in <break time="0.8s"/> sit down by the fire my friend')
TURNS = ('who said <break time="0.4s"/> that', "the garden: door (is) open", "come in", "my friend")
# With characters that the tokenizer lacks, also at the beginning and the end of a word, and a word without tokens.
UNKNOWN = ("the 門 door é門門門s open \u200b who said", "門é come a門in sit門 down")
# Like the small release, but with a text head of five ids and low-rank tables of the depth transformer.
REDUCED: dict[str, Any] = {**CONFIG, "text_card_out": 5, "depformer_low_rank_embeddings": 8}
CONFIGS = {"small": CONFIG, "reduced": REDUCED, "large": LARGE, "cut": {**LARGE, "dep_q": 7}}


class Wanted(NamedTuple):
    """A reply to generate.

    Attributes:
        release: Name of the release, a key of CONFIGS.
        turns: Text of each turn.
        seed: Seed; 0 is greedy.
        scale: Guidance scale.
        size: Number of frames of the recording; in a release with conditions, number of voices.
    """

    release: str
    turns: tuple[str, ...]
    seed: int
    scale: float
    size: int


REPLIES = (
    Wanted("small", TEXTS[:1], 0, 2.0, 9),
    Wanted("small", TEXTS[1:], 0, 1.0, 6),
    Wanted("small", TEXTS[:1], 1001, 2.0, 9),
    Wanted("small", TEXTS[1:], 1002, 3.0, 14),
    Wanted("reduced", TEXTS[:1], 1003, 2.0, 7),
    Wanted("large", TEXTS[:1], 0, 1.0, 1),
    Wanted("large", TURNS, 0, 3.5, 2),
    Wanted("large", TEXTS[1:], 1004, 2.0, 1),
    Wanted("large", TURNS, 1005, 3.5, 2),
    Wanted("cut", TEXTS[1:], 1006, 1.5, 2),
    Wanted("small", UNKNOWN[:1], 1007, 2.0, 9),
    Wanted("large", UNKNOWN, 1008, 3.5, 2),
)
MAX_ROWS = 260
NOT_FOR_THE_MODEL = moshi_replies.NOT_FOR_THE_MODEL | {"tts_config", "model_id", "lm_gen_config"}

Sample = Callable[..., torch.Tensor]


def gumbel_sampling(seed: int, first_codes: Sequence[int], num_codes: int) -> Sample:
    """Return a replacement of `sample_token` with this project's noise.

    Args:
        seed: Seed of the reply.
        first_codes: First id of each codebook.
        num_codes: Number of codes of a codebook, which must differ from the number of text ids.
    """
    calls = 0
    row = 0
    stream = 0

    def sample(logits: torch.Tensor, use_sampling: bool, temperature: float, top_k: int) -> torch.Tensor:
        """Return ids of the shape of `logits` without the last dimension."""
        nonlocal calls, row, stream
        is_text = logits.shape[-1] != num_codes
        row, stream = (calls, 0) if is_text else (row, stream + 1)
        calls += is_text
        scaled = logits.flatten() / temperature
        kept = torch.softmax(scaled, -1).topk(min(top_k, len(scaled))).indices.tolist()
        first = 0 if is_text else first_codes[stream - 1]

        def score(token: int) -> float:
            return float(scaled[token]) - math.log(-math.log(uniform(seed, row + 1, stream, first + token)))

        return torch.tensor([max(kept, key=score)]).view(logits.shape[:-1])

    return sample


def load(folder: Path, scale: float) -> Any:
    """Return the authors' model of a release, without Mimi, whose frame rate it needs.

    Args:
        folder: Folder of the release.
        scale: Guidance scale of CFG pairs.
    """
    from moshi.models import loaders
    from moshi.models.tts import StateMachine, TokenIds, TTSModel
    from sentencepiece import SentencePieceProcessor

    config = json.loads((folder / "config.json").read_text())
    settings = config["tts_config"]
    numbers = {key: value for key, value in config.items() if key not in NOT_FOR_THE_MODEL}
    numbers["dep_q"] = config["n_q"]  # loads the weights of all steps; `n_q` below limits the steps that run
    machine = (settings.get("second_stream_ahead", 0), MAX_PADDING, INITIAL_PADDING)
    return TTSModel(
        lm=loaders.get_moshi_lm(folder / config["moshi_name"], numbers, dtype=torch.float32),
        mimi=SimpleNamespace(frame_rate=FRAME_RATE),
        tokenizer=SentencePieceProcessor(str(folder / config["tokenizer_name"])),
        voice_suffix="",
        voice_repo="",
        machine=StateMachine(TokenIds(config["text_card"] + 1), *machine),
        delay_steps=int(settings["audio_delay"] * FRAME_RATE),
        temp=0.6,
        cfg_coef=scale,
        max_gen_length=MAX_ROWS,
        **dict.fromkeys(("n_q",), config["dep_q"]),
    )


def reply(folder: Path, wanted: Wanted, codes: np.ndarray | None) -> tuple[np.ndarray, list[int], int]:
    """Return the rows that the model read, [T, 1 + K], the steps in which words began, and the last step of the text.

    An empty stream is -1. With a second text stream, the text's id is (second + 1) * (text ids + 1) + main. Codebooks
    that are not generated have columns as well.

    Args:
        folder: Folder of the release.
        wanted: The reply.
        codes: Codes of the recording, [K, n]; None if the vectors of voices are conditions.
    """
    config = CONFIGS[wanted.release]
    model = load(folder, 1.0 if codes is None else wanted.scale)
    attributes = []
    prefixes = None
    if codes is None:
        model_id = config["model_id"]
        paths = [folder / f"voices/{name}.{model_id['sig']}@{model_id['epoch']}.safetensors" for name in VOICES]
        attributes.append(model.make_condition_attributes(paths[: wanted.size], cfg_coef=wanted.scale))
    else:
        prefixes = [torch.cat([torch.full((1, codes.shape[1]), -1), torch.from_numpy(codes)])]
    seen = []
    forward = model.lm.forward_text

    def noted(sequence: torch.Tensor, *rest: Any) -> Any:
        seen.append(sequence[0, :, 0].tolist())
        return forward(sequence, *rest)

    model.lm.forward_text = noted
    firsts = vocabulary(config).first_codes
    sample = gumbel_sampling(wanted.seed, firsts, config["card"]) if wanted.seed else None
    with moshi_replies.sampling_by(sample):
        entries = model.prepare_script(list(wanted.turns), padding_between=1)
        made = model.generate([entries], attributes, prefixes=prefixes, use_sampling=wanted.seed > 0)
    return np.array(seen), made.all_consumption_times[0], made.end_steps[0]


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    """Return the arrays of the fixture: `rows`, `times` and `end` of each reply, and `codes` of its recording."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    made: dict[str, np.ndarray] = {}
    random = np.random.default_rng(14)
    with tempfile.TemporaryDirectory() as root:
        folders = {name: write_release(Path(root) / name, base=base) for name, base in CONFIGS.items()}
        for index, wanted in enumerate(REPLIES):
            config = CONFIGS[wanted.release]
            codes = None
            if not config["conditioners"]:
                codes = random.integers(0, config["card"], (config["n_q"], wanted.size))
                made[f"codes{index}"] = codes.astype(np.int16)
            rows, times, end = reply(folders[wanted.release], wanted, codes)
            made |= {f"rows{index}": rows.astype(np.int16), f"times{index}": np.array(times, np.int16)}
            made[f"end{index}"] = np.array([end], np.int16)
    return made


if __name__ == "__main__":
    run_arrays(__doc__, make, tolerance=0.0)
