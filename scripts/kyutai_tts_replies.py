"""Generate a test fixture with replies of Kyutai TTS's authors' code on a small random release: rows, and word times.

    python -m scripts.kyutai_tts_replies tests/data/kyutai_tts_replies.npz
    python -m scripts.kyutai_tts_replies --check tests/data/kyutai_tts_replies.npz

The first command writes the fixture, the second compares it with new replies. moshi 0.2.13 must be importable, with
einops and sphn. `TTSModel.generate` speaks two texts after the codes of recordings, guided and unguided. Some replies
are greedy. The others are sampled by the authors' rule with this project's noise (`scripts/moshi_replies.py`).
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints.random_kyutai_tts import CONFIG, write_release
from scripts import moshi_replies
from scripts.reply_fixture import run_arrays
from stretto.families.kyutai_stt.family import FRAME_RATE
from stretto.families.kyutai_tts.convert import vocabulary
from stretto.families.kyutai_tts.family import INITIAL_PADDING, MAX_PADDING
from stretto.testing.reference import uniform

TEXTS = ("the garden door is open who said that", 'come in <break time="0.8s"/> sit down by the fire my friend')
# Seed (0 is greedy), guidance scale, and number of frames of the recording of each reply.
REPLIES = ((0, 2.0, 9), (0, 1.0, 6), (1001, 2.0, 9), (1002, 3.0, 14))
FIRST_CODES = vocabulary(CONFIG).first_codes
MAX_ROWS = 260
NOT_FOR_THE_MODEL = moshi_replies.NOT_FOR_THE_MODEL | {"tts_config", "model_id"}

Sample = Callable[..., torch.Tensor]


def gumbel_sampling(seed: int, num_frames: int) -> Sample:
    """Return a replacement of `sample_token` with this project's noise.

    Args:
        seed: Seed of the reply.
        num_frames: Number of frames of the recording. In their rows, no text id is sampled here.
    """
    calls, row, stream = 0, 0, 0

    def sample(logits: torch.Tensor, use_sampling: bool, temperature: float, top_k: int) -> torch.Tensor:
        """Return ids of the shape of `logits` without the last dimension."""
        nonlocal calls, row, stream
        is_text = logits.shape[-1] == CONFIG["text_card"]
        row, stream = (calls, 0) if is_text else (row, stream + 1)
        calls += is_text
        scaled = logits.flatten() / temperature
        kept = torch.softmax(scaled, -1).topk(min(top_k, len(scaled))).indices.tolist()
        first = 0 if is_text else FIRST_CODES[stream - 1]

        def score(token: int) -> float:
            return float(scaled[token]) - math.log(-math.log(uniform(seed, row + 1, stream, first + token)))

        return torch.tensor([max(kept, key=score)]).view(logits.shape[:-1])

    return sample


def load(folder: Path, scale: float) -> Any:
    """Return the authors' model of a release, without Mimi, whose frame rate it needs."""
    from moshi.models import loaders
    from moshi.models.tts import StateMachine, TokenIds, TTSModel
    from sentencepiece import SentencePieceProcessor

    numbers = {key: value for key, value in CONFIG.items() if key not in NOT_FOR_THE_MODEL}
    return TTSModel(
        lm=loaders.get_moshi_lm(folder / "model.safetensors", numbers, dtype=torch.float32),
        mimi=SimpleNamespace(frame_rate=FRAME_RATE),
        tokenizer=SentencePieceProcessor(str(folder / CONFIG["tokenizer_name"])),
        voice_suffix="",
        voice_repo="",
        machine=StateMachine(TokenIds(CONFIG["text_card"] + 1), 0, MAX_PADDING, INITIAL_PADDING),
        delay_steps=int(CONFIG["tts_config"]["audio_delay"] * FRAME_RATE),
        temp=0.6,
        cfg_coef=scale,
        max_gen_length=MAX_ROWS,
        **{key: CONFIG[key] for key in ("n_q",)},
    )


def reply(folder: Path, text: str, codes: np.ndarray, seed: int, scale: float) -> tuple[np.ndarray, list[int], int]:
    """Return the rows that the model read, [T, 1 + K], the steps in which words began, and the last step of the text.

    An empty stream is -1.

    Args:
        folder: Folder of the release.
        text: Text to speak.
        codes: Codes of the recording, [K, n].
        seed: Seed; 0 is greedy.
        scale: Guidance scale.
    """
    model = load(folder, scale)
    prefix = torch.cat([torch.full((1, codes.shape[1]), -1), torch.from_numpy(codes)])
    seen, forward = [], model.lm.forward_text

    def noted(sequence: torch.Tensor, *rest: Any) -> Any:
        seen.append(sequence[0, :, 0].tolist())
        return forward(sequence, *rest)

    model.lm.forward_text = noted
    sample = gumbel_sampling(seed, codes.shape[1]) if seed else None
    with moshi_replies.sampling_by(sample):
        entries = model.prepare_script([text], padding_between=1)
        made = model.generate([entries], [], prefixes=[prefix], use_sampling=seed > 0)
    return np.array(seen), made.all_consumption_times[0], made.end_steps[0]


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    """Return the arrays of the fixture: `codes`, `rows`, `times` and `end` of each reply."""
    made: dict[str, np.ndarray] = {}
    random = np.random.default_rng(14)
    with tempfile.TemporaryDirectory() as name:
        folder = write_release(Path(name) / "release")
        for index, (seed, scale, num_frames) in enumerate(REPLIES):
            codes = random.integers(0, CONFIG["card"], (CONFIG["n_q"], num_frames))
            rows, times, end = reply(folder, TEXTS[index % 2], codes, seed, scale)
            made |= {f"codes{index}": codes.astype(np.int16), f"rows{index}": rows.astype(np.int16)}
            made |= {f"times{index}": np.array(times, np.int16), f"end{index}": np.array([end], np.int16)}
    return made


if __name__ == "__main__":
    run_arrays(__doc__, make, tolerance=0.0)
