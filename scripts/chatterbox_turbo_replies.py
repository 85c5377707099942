"""Generate a test fixture with replies of Chatterbox Turbo's reference T3, greedy and sampled with our noise.

    CHATTERBOX_SRC=chatterbox python -m scripts.chatterbox_turbo_replies tests/data/chatterbox_turbo_replies.json

CHATTERBOX_SRC is as in `scripts.chatterbox_replies`, whose environment and replacement of `torch.multinomial` are used.
For a greedy reply the authors' loop gets neither top-k nor top-p, and the likeliest id after the penalty is taken.
"""

import ast
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints.random_chatterbox import (
    HEAD_WIDTH,
    TURBO_LAYERS,
    TURBO_POSITIONS,
    TURBO_VOICES,
    TURBO_WIDTH,
    turbo_shapes,
    turbo_tensors,
    voice,
    write_turbo_tokenizer,
)
from scripts.chatterbox_replies import SOURCE, empty_packages
from scripts.reply_fixture import Replies, equal_in, run
from stretto.families.chatterbox.family import END_OF_SPEECH, TurboVocabulary
from stretto.families.chatterbox.turbo import gpt2_tokenizer
from stretto.sampling import gumbel, seed_key, stream_keys

NUM_CODES = 40
KNOWN = TurboVocabulary(num_text_ids=turbo_shapes()["text_emb.weight"][0])
# text, voice, penalty, temperature (0: the likeliest id), top_k, top_p
CASES = (
    ("hello the answer", "default", 1.2, 0.0, 0, 1.0),
    ("Oh [laugh] no... well: maybe \u2014 \u201clater\u201d - or not; yes", "anna", 2.0, 0.0, 0, 1.0),
    ("Rain, again;  and   over there", "default", 1.2, 0.8, 1000, 0.95),
    ("[clear throat] The door!", "anna", 1.5, 0.8, 40, 0.6),
    ("x", "anna", 1.0, 1.0, 0, 0.9),
    ("[sigh]", "default", 2.0, 0.8, 12, 1.0),
)
NAMES = ("text", "voice", "penalty", "temperature", "top_k", "top_p")


def load_t3() -> Any:
    """Return the reference T3 with the small release's weights."""
    empty_packages()
    from chatterbox.models.t3 import llama_configs
    from chatterbox.models.t3.modules.t3_config import T3Config

    numbers = {"n_embd": TURBO_WIDTH, "hidden_size": TURBO_WIDTH, "n_head": TURBO_WIDTH // HEAD_WIDTH}
    numbers |= {"n_layer": TURBO_LAYERS, "n_positions": TURBO_POSITIONS, "n_ctx": TURBO_POSITIONS}
    numbers |= {"vocab_size": KNOWN.num_text_ids}
    llama_configs.LLAMA_CONFIGS["small"] = llama_configs.GPT2_MEDIUM_CONFIG | numbers
    from chatterbox.models.t3.t3 import T3

    config = T3Config(KNOWN.num_text_ids)
    config.llama_config_name, config.input_pos_emb = "small", None
    config.speech_tokens_dict_size, config.speech_cond_prompt_len = END_OF_SPEECH + 1, 375
    config.use_perceiver_resampler = config.emotion_adv = False
    t3 = T3(config)
    t3.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in turbo_tensors().items()})
    return t3.eval()


def even(text: str) -> str:
    """Return the reference `punc_norm` of a text, without importing the rest of its file."""
    tree = ast.parse((SOURCE / "tts_turbo.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "punc_norm")
    found: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), "tts_turbo.py", "exec"), found)
    return found["punc_norm"](text)


class Draws:
    """Replacement of `torch.multinomial` for one reply after a prompt of `num_rows` rows.

    Attributes:
        lead: Smallest lead of a sampled id over the next, in logits or in logits with noise.
    """

    def __init__(self, num_rows: int, seed: int, is_random: bool):
        self._position, self._seed, self._is_random = num_rows, seed, is_random
        self._ids = np.arange(KNOWN.codes.start, KNOWN.end + 1)
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
    """Return each case with its text ids, codes, first row and lead."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    t3, drawn = load_t3(), list[dict[str, Any]]()
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    with TemporaryDirectory() as folder:
        write_turbo_tokenizer(Path(folder))
        tokenizer = gpt2_tokenizer(Path(folder))
    for seed, values in enumerate(CASES):
        case: dict[str, Any] = {**dict(zip(NAMES, values, strict=True)), "seed": seed}
        ids = tokenizer.encode(even(case["text"])).ids
        condition = T3Cond(**voice(TURBO_VOICES[case["voice"]])["t3"])
        num_rows = 1 + condition.cond_prompt_speech_tokens.shape[1] + len(ids) + 1
        torch.multinomial = draws = Draws(num_rows, seed, case["temperature"] > 0)  # type: ignore[assignment]
        codes = t3.inference_turbo(
            t3_cond=condition,
            text_tokens=torch.tensor([ids]),
            temperature=case["temperature"],
            top_k=case["top_k"],
            top_p=case["top_p"],
            repetition_penalty=case["penalty"],
            max_gen_len=NUM_CODES - 1,
        )[0].tolist()
        if len(codes) < NUM_CODES:
            codes.append(END_OF_SPEECH)  # which the loop removes
        sums = round(float(t3.prepare_conditioning(condition)[0, 0].abs().sum()), 5)
        drawn.append({**case, "ids": ids, "codes": codes, "lead": round(draws.lead, 6), "speaker_row": sums})
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
