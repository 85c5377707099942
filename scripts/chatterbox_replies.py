"""Generate a test fixture with replies of Chatterbox's reference T3, greedy and sampled with our noise.

    CHATTERBOX_SRC=chatterbox python -m scripts.chatterbox_replies tests/data/chatterbox_replies.json

CHATTERBOX_SRC is the folder of that name in the wheel chatterbox-tts 0.1.7. Generating codes needs nothing else of the
package, so it is imported in this environment, in which vLLM provides einops. `torch.multinomial`, which samples after
the logits warpers, is replaced by the most probable id, or by the largest logit with the engine's noise.
"""

import ast
import functools
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints.random_chatterbox import KNOWN, SMALL, VOICES, tensors, voice, write_tokenizer
from scripts.reply_fixture import Replies, equal_in, run
from stretto.families.chatterbox.family import END_OF_SPEECH, END_OF_TEXT, START_OF_TEXT
from stretto.sampling import gumbel, seed_key, stream_keys

SOURCE = Path(os.environ.get("CHATTERBOX_SRC", "chatterbox"))
NUM_CODES = 48
# text, voice, cfg_weight, penalty, temperature (0: the likeliest id), min_p, top_p
CASES = (
    ("hello the answer", "default", 0.5, 1.2, 0.0, 0.05, 1.0),
    ("no... well: maybe — “later” - or not", "anna", 1.0, 2.0, 0.0, 0.05, 1.0),
    ("Rain, again;  and   over there", "default", 0.5, 1.2, 0.8, 0.05, 1.0),
    ("The door!", "anna", 0.5, 1.2, 0.8, 0.05, 1.0),
    ("x", "anna", 0.3, 1.0, 1.0, 0.0, 0.9),
    ("An owl in the tower ?", "default", 0.8, 1.3, 0.8, 0.05, 0.7),
)
NAMES = ("text", "voice", "weight", "penalty", "temperature", "min_p", "top_p")


def empty_packages() -> None:
    """Replace the packages of the reference code by empty modules, whose own modules can be imported."""
    for name in ("", ".models", ".models.t3", ".models.t3.modules", ".models.t3.inference"):
        module = ModuleType(f"chatterbox{name}")
        module.__path__ = [str(SOURCE.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module


def load_t3() -> Any:
    """Return the reference T3 with the small release's weights."""
    empty_packages()
    from chatterbox.models.t3 import llama_configs
    from chatterbox.models.t3.modules import cond_enc, perceiver
    from chatterbox.models.t3.modules.t3_config import T3Config

    rope = dict(SMALL["rope_parameters"])
    theta = rope.pop("rope_theta")
    numbers = {name: value for name, value in SMALL.items() if name != "rope_parameters"}
    more = {"rope_theta": theta, "rope_scaling": rope, "torch_dtype": "float32", "attn_implementation": "eager"}
    llama_configs.LLAMA_CONFIGS["small"] = llama_configs.LLAMA_520M_CONFIG_DICT | numbers | more
    sizes = {"pre_attention_query_token": KNOWN.num_voice_rows - 2}
    width = SMALL["hidden_size"]
    cond_enc.Perceiver = functools.partial(
        perceiver.Perceiver, pre_attention_query_size=width, embedding_dim=width, **sizes
    )
    from chatterbox.models.t3.t3 import T3

    config = T3Config(KNOWN.num_text_ids)
    config.llama_config_name = "small"
    config.max_text_tokens = KNOWN.num_text_positions - 2
    config.max_speech_tokens = KNOWN.num_speech_positions - 4
    t3 = T3(config)
    t3.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors().items()})
    return t3.eval()


def even(text: str) -> str:
    """Return the reference `punc_norm` of a text, without importing the rest of its file."""
    tree = ast.parse((SOURCE / "tts.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "punc_norm")
    found: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), "tts.py", "exec"), found)
    return found["punc_norm"](text)


def text_ids(text: str) -> list[int]:
    """Tokenize as `EnTokenizer.encode`: spaces become markers in a single string."""
    from tempfile import TemporaryDirectory

    from tokenizers import Tokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    return [START_OF_TEXT, *tokenizer.encode(even(text).replace(" ", "[SPACE]")).ids, END_OF_TEXT]


class Draws:
    """Replacement of `torch.multinomial` for the rows of one reply after `num_rows` rows.

    Attributes:
        lead: Smallest lead of a sampled id over the next, in logits or in logits with noise.
    """

    def __init__(self, num_rows: int, case: dict[str, Any]):
        self._position, self._seed, self._is_random = num_rows, case["seed"], case["temperature"] > 0
        first = KNOWN.speech.start
        order = [*range(END_OF_SPEECH), *range(END_OF_SPEECH + 1, KNOWN.num_speech_ids), END_OF_SPEECH]
        self._ids = np.empty(KNOWN.num_speech_ids, np.int64)
        self._ids[order] = np.arange(first, first + KNOWN.num_speech_ids)
        self.lead = float("inf")

    def __call__(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        scores = probabilities.log()[0].numpy().astype(np.float64)
        if self._is_random:
            key = stream_keys(np.array([seed_key(self._seed)], np.int32), np.array([self._position], np.int32), 1)
            scores = scores + gumbel(key[0], self._ids)
        second, best = np.argsort(scores)[-2:]
        self.lead = min(self.lead, float(scores[best] - scores[second]))
        self._position += 1
        return torch.tensor([[best]])


@torch.inference_mode()
def replies() -> Replies:
    """Return each case with its text ids, codes and lead."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    t3, drawn = load_t3(), list[dict[str, Any]]()
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    for seed, values in enumerate(CASES):
        case: dict[str, Any] = {**dict(zip(NAMES, values, strict=True)), "seed": seed}
        ids = text_ids(case["text"])
        text = torch.tensor([ids, ids])
        torch.multinomial = draws = Draws(KNOWN.num_voice_rows + len(ids) + 2, case)  # type: ignore[assignment]
        condition = T3Cond(**voice(VOICES[case["voice"]])["t3"])
        codes = t3.inference(
            t3_cond=condition,
            text_tokens=text,
            max_new_tokens=NUM_CODES,
            temperature=case["temperature"] or 1.0,
            repetition_penalty=case["penalty"],
            min_p=case["min_p"],
            top_p=case["top_p"],
            cfg_weight=case["weight"],
        )[0].tolist()
        rows = t3.prepare_conditioning(condition)[0]
        sums = [round(float(row), 5) for row in rows.abs().sum(1)]
        drawn.append({**case, "ids": ids, "codes": codes, "lead": round(draws.lead, 6), "voice_rows": sums})
    return drawn


def write(fixture: Path, made: Replies) -> None:
    """Write the fixture; print each reply's length, whether it ends by itself, and its lead."""
    fixture.write_text(json.dumps({"num_codes": NUM_CODES, "replies": made}) + "\n")
    for reply in made:
        print(len(reply["codes"]), reply["codes"][-1] == END_OF_SPEECH, reply["lead"], reply["codes"][:8])


def main() -> None:
    """Write the fixture, or check the cases, text ids and codes of an existing one."""
    run(__doc__, replies, write, equal_in(*NAMES, "seed", "ids", "codes"))


if __name__ == "__main__":
    main()
