"""Generate a test fixture with greedy replies from ESPnet's reference VALL-E, with small random weights.

    ESPNET_SRC=espnet python -m scripts.valle_replies tests/data/valle_replies.json

ESPNET_SRC is the folder that contains `espnet2/` from the wheel espnet 202412. The released code generates the first
codebook but fails for the others. It needs two fixes from commit 07d20880 of https://github.com/espnet/espnet:

    espnet2/speechlm/module/valle.py          take the commit's file; the released one reads a mask that its base
                                              class does not have
    espnet2/speechlm/core_lm/valle.py         in the second loop, `prev_tok` is `generated["token"][-1]`: the codes of
                                              the frames only

The script runs only `ValleLM` and its imports, in this environment, one reply at a time. Therefore no mask is needed:
every row attends to all others, including the end, as in training. Replies that do not end by themselves raise an error
and are left out.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.checkpoints.random_espnet import KNOWN, NUMBERS, tensors, write_tokenizer
from scripts.reply_fixture import Replies, equal_in, run
from stretto.families.valle.family import PAD, SOS_EOS

SOURCE = Path(os.environ.get("ESPNET_SRC", "espnet"))
MOST = 120  # frames per reply
# text, frames in the voice, seed of the voice
CASES = (
    ("the birch canoe slid on the smooth planks", 6, 0),
    ("what do you hear?", 3, 2),
    ("how are you today? i am fine, thank you!", 7, 4),
    ("someone answers", 6, 6),
    ("the garden door was open", 9, 7),
    ("it is easy to tell the depth of a well", 2, 8),
    ("a man says hello", 6, 9),
    ("planks", 7, 10),
    ("dark blue", 5, 11),
    ("the birch canoe", 6, 12),
)


class Leads:
    """Wrapper around `logits_to_tokens` that records leads.

    Attributes:
        found: For each codebook, the smallest margin of the best logit over the runner-up, at rows that become codes.
    """

    def __init__(self, choose: Callable[..., Any], num_prefix: int):
        self._choose = choose
        self._first = num_prefix
        self.found = dict[int, float]()

    def __call__(self, logits: torch.Tensor, opts: Any, allow_eos: bool, nq_level: int) -> Any:
        chosen = self._choose(logits, opts, allow_eos=allow_eos, nq_level=nq_level)
        rows = logits[0, :, 0] if nq_level == 0 else logits[0, self._first :, 0]
        best = rows.topk(2).values  # masked already
        lead = float((best[:, 0] - best[:, 1]).min())
        self.found[nq_level] = min(lead, self.found.get(nq_level, lead))
        return chosen


def prefix(text: str, voice: np.ndarray) -> list[list[int]]:
    """Return the prompt rows [P, K] in the layout of ESPnet's preprocessor: [sos][task][text] words [spk] frames."""
    with TemporaryDirectory() as folder:
        path = write_tokenizer(Path(folder), len(range(*KNOWN.text)))
        words = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    ids = [SOS_EOS, KNOWN.task, KNOWN.text_marker, *(KNOWN.text[0] + word for word in words), KNOWN.voice_marker]
    rows = [[token, *[PAD] * (KNOWN.num_codebooks - 1)] for token in ids]
    for frame in range(KNOWN.voice_frames):
        row = [PAD] * KNOWN.num_codebooks
        if frame < voice.shape[1]:
            row = [KNOWN.codec + k * KNOWN.codebook_size + int(voice[k, frame]) for k in range(KNOWN.num_codebooks)]
        rows.append(row)
    return rows


def masks() -> torch.Tensor:
    """Return a mask [K, V] that is True for ids that a codebook may not generate."""
    found = torch.ones(KNOWN.num_codebooks, KNOWN.vocab_size, dtype=torch.bool)
    for k in range(KNOWN.num_codebooks):
        found[k, KNOWN.codec + k * KNOWN.codebook_size : KNOWN.codec + (k + 1) * KNOWN.codebook_size] = False
    return found


@torch.inference_mode()
def replies() -> Replies:
    """Return each case with its prefix, codes [K][T] and leads."""
    sys.path.insert(0, str(SOURCE))
    from espnet2.speechlm.core_lm import valle
    from espnet2.speechlm.core_lm.abs_core_lm import SpeechLMInferenceOptions

    torch.set_num_threads(1)  # steps are too small to parallelise
    numbers = {name: value for name, value in NUMBERS.items() if name != "qk_norm"}
    stored = {name.removeprefix("corelm."): tensor for name, tensor in tensors().items()}
    choose = valle.logits_to_tokens
    drawn = list[dict[str, Any]]()
    for text, num_frames, seed in CASES:
        model = valle.ValleLM(KNOWN.vocab_size, KNOWN.num_codebooks, **numbers).eval()
        model.load_state_dict(stored)
        voice = np.random.default_rng(seed).integers(KNOWN.codebook_size, size=(KNOWN.num_codebooks, num_frames))
        rows = prefix(text, voice)
        options = SpeechLMInferenceOptions(
            search_algo="greedy_search",
            maxlenratio=MOST / len(rows),
            eos=SOS_EOS,
            start=KNOWN.codec_marker,
            masks=masks(),
            nq=KNOWN.num_codebooks,
        )
        valle.logits_to_tokens = leads = Leads(choose, len(rows))
        try:
            found, _ = model.inference(
                torch.tensor([rows]), options, suffix=torch.zeros(1, 1, KNOWN.num_codebooks).long()
            )
        except (IndexError, RuntimeError) as error:  # raised if no reply has ended
            print(f"{text}: {error}")
            continue
        codes = found[0].T - KNOWN.codec - KNOWN.codebook_size * torch.arange(KNOWN.num_codebooks)[:, None]
        drawn.append(
            {
                "text": text,
                "voice": voice.tolist(),
                "prefix": rows,
                "codes": codes.tolist(),
                "drawn_lead": round(leads.found.pop(0), 6),
                "filled_lead": round(min(leads.found.values()), 6),
            }
        )
    return drawn


def write(fixture: Path, made: Replies) -> None:
    """Write the fixture; for each reply, print the number of rows and frames, and the leads."""
    fixture.write_text(json.dumps({"replies": made}) + "\n")
    for reply in made:
        print(len(reply["prefix"]), len(reply["codes"][0]), reply["drawn_lead"], reply["filled_lead"])


def main() -> None:
    """Write the fixture, or check the cases, prefixes and codes of an existing one."""
    run(__doc__, replies, write, equal_in("text", "voice", "prefix", "codes"))


if __name__ == "__main__":
    main()
