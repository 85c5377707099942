"""Generate a test fixture with replies of IndexTTS-2's GPT-2 by the authors' code, greedy and sampled with our noise.

    INDEX_TTS_SRC=index-tts python -m plugins.indextts2.lab.indextts2_replies plugins/indextts2/tests/data/replies.json

INDEX_TTS_SRC is a clone of https://github.com/index-tts/index-tts at revision ee40fa7. Its `indextts.gpt.model_v2`
needs transformers 4.52.1. The voice is a random vector sequence instead of an encoded recording. The script replaces
`torch.multinomial`, which samples after the logits warpers: the replacement returns the id with the largest logit after
the engine's noise is added or, for greedy replies, the most probable one.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import Replies, equal_in, run
from plugins.indextts2.lab.random_gpt import CONFIG, NUM_CODES, NUM_VOICE_ROWS, WIDTH, language_model
from stretto.engine.sampling.noise import gumbel, seed_key, stream_keys
from stretto_indextts2.family import IndexVocabulary

MAX_CODES = 40
VOCABULARY = IndexVocabulary(CONFIG["gpt"]["number_text_tokens"] + 1, NUM_CODES)
CASES: tuple[dict[str, Any], ...] = (
    {"ids": [5, 9, 120, 33, 7], "penalty": 10.0, "temperature": 0.0, "top_k": 0, "top_p": 1.0},
    {"ids": [44, 3, 3, 81, 200, 17, 6, 8], "penalty": 1.2, "temperature": 0.0, "top_k": 0, "top_p": 1.0},
    {"ids": [30, 31, 32], "penalty": 10.0, "temperature": 0.8, "top_k": 30, "top_p": 0.8},
    {"ids": [12], "penalty": 10.0, "temperature": 0.8, "top_k": 30, "top_p": 0.8},
    {"ids": [77, 2, 15, 16, 300, 301], "penalty": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 0.9},
    {"ids": [60, 61, 62, 63, 64, 65, 66, 67], "penalty": 2.0, "temperature": 0.7, "top_k": 12, "top_p": 1.0},
    # Code 1 would be in the reply if the penalty did not count it from the beginning.
    {"ids": [293, 435], "penalty": 10.0, "temperature": 0.0, "top_k": 0, "top_p": 1.0},
)


def voice(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors of a voice [4, H] and that of its emotion [H]."""
    random = np.random.Generator(np.random.PCG64(seed))
    latents = random.standard_normal((NUM_VOICE_ROWS, WIDTH))
    emotion = random.standard_normal(WIDTH)
    return torch.from_numpy(latents.astype(np.float32)), torch.from_numpy(emotion.astype(np.float32))


class Draws:
    """Replacement for `torch.multinomial` during one reply to a prompt of `num_rows` rows.

    Attributes:
        lead: Smallest margin of a sampled id over the runner-up, in logits (with noise if the reply is sampled).
    """

    def __init__(self, num_rows: int, case: dict[str, Any]):
        self._position = num_rows
        self._seed = case["seed"]
        self._is_random = case["temperature"] > 0
        self.lead = float("inf")

    def __call__(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        scores = probabilities.log()[0].numpy().astype(np.float64)
        if self._is_random:
            ids = np.arange(VOCABULARY.codes.start, VOCABULARY.end + 1)
            key = stream_keys(np.array([seed_key(self._seed)], np.int32), np.array([self._position], np.int32), 1)
            scores = scores + gumbel(key[0], ids)
        second, best = np.argsort(scores)[-2:]
        self.lead = min(self.lead, float(scores[best] - scores[second]))
        self._position += 1
        return torch.tensor([[best]])


def load() -> Any:
    """Return the authors' model with the small random weights; the networks that encode recordings stay unused."""
    sys.path.insert(0, os.environ.get("INDEX_TTS_SRC", "index-tts"))
    for name in ("indextts.utils.typical_sampling", "indextts.utils.tokenizer", "indextts.utils.arch_util"):
        sys.modules[name] = ModuleType(name)
    sys.modules["indextts.utils.typical_sampling"].TypicalLogitsWarper = object  # type: ignore[attr-defined]
    sys.modules["indextts.utils.tokenizer"].LANGUAGE_DICT = {}  # type: ignore[attr-defined]
    sys.modules["indextts.utils.arch_util"].AttentionBlock = object  # type: ignore[attr-defined]
    from indextts.gpt.model_v2 import UnifiedVoice

    encoder: dict[str, Any] = {"output_size": 16, "linear_units": 16, "attention_heads": 2, "num_blocks": 1}
    encoder |= {"input_layer": "conv2d2", "perceiver_mult": 2}
    modules = {"condition_module": encoder, "emo_condition_module": encoder, "condition_num_latent": NUM_VOICE_ROWS}
    model = UnifiedVoice(**CONFIG["gpt"], **modules)
    missing, unknown = model.load_state_dict(language_model(), strict=False)
    encoders = ("conditioning_encoder", "perceiver_encoder", "emo_")
    assert not unknown, unknown
    assert all(name.startswith(("emovec_layer", *encoders)) for name in missing), missing
    model.eval().post_init_gpt2_config(kv_cache=True)
    return model


@torch.inference_mode()
def replies() -> Replies:
    """Return each case with its codes and the least lead."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    model = load()
    answers: Replies = []
    for seed, values in enumerate(CASES):
        case = {**values, "seed": seed}
        latents, emotion = voice(seed)
        model.get_conditioning = lambda *_, latents=latents: latents[None]
        text = torch.tensor([case["ids"]])
        draws = Draws(NUM_VOICE_ROWS + 2 + len(case["ids"]) + 3, case)
        torch.multinomial = draws  # type: ignore[assignment]
        codes, _ = model.inference_speech(
            torch.zeros(1, 1, 1),
            text,
            emo_vec=emotion[None],
            do_sample=True,
            num_beams=1,
            max_generate_length=MAX_CODES,
            temperature=case["temperature"] or 1.0,
            top_k=case["top_k"],
            top_p=case["top_p"],
            repetition_penalty=case["penalty"],
        )
        answers.append({**case, "codes": codes[0].tolist(), "lead": round(draws.lead, 6)})
    return answers


def write(fixture: Path, replies: Replies) -> None:
    """Write the fixture; print each reply's length, whether it ends by itself, and its lead."""
    fixture.write_text(json.dumps({"num_codes": MAX_CODES, "replies": replies}) + "\n")
    for reply in replies:
        print(len(reply["codes"]), reply["codes"][-1] == NUM_CODES + 1, reply["lead"], reply["codes"][:8])


def main() -> None:
    """Write the fixture, or check the cases and codes of an existing one."""
    run(__doc__, replies, write, equal_in("ids", "seed", "codes"))


if __name__ == "__main__":
    main()
