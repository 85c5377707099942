"""Generate a test fixture with replies from Chatterbox's reference T3, both greedy and sampled with our noise.

    CHATTERBOX_SRC=src/chatterbox python -m plugins.chatterbox.lab.chatterbox_replies \\
        plugins/chatterbox/tests/data/chatterbox_replies.json

CHATTERBOX_SRC is the folder src/chatterbox of https://github.com/resemble-ai/chatterbox at revision 5de7a54. Generating
codes needs no other part of the package, so it is imported in this environment, where vLLM provides einops. The script
replaces `torch.multinomial`, which samples after the logits warpers. The replacement returns the most probable id or,
for sampled replies, the id with the largest logit after the engine's noise is added. For greedy Turbo and Nano replies,
the authors' loop runs without top-k and top-p, and the most probable id after the penalty is taken.
"""

import ast
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import Replies, equal_in, run
from plugins.chatterbox.lab.random_chatterbox import (
    HEAD_WIDTH,
    KNOWN,
    MULTILINGUAL,
    MULTILINGUAL_SEED,
    NANO,
    NUM_TURBO_IDS,
    SMALL,
    TURBO,
    TURBO_VOICES,
    VOICES,
    Gpt2Sizes,
    tensors,
    turbo_tensors,
    voice,
    write_multilingual_tokenizer,
    write_tokenizer,
    write_turbo_tokenizer,
)
from stretto.engine.sampling.noise import gumbel, seed_key, stream_keys
from stretto_chatterbox.convert import MULTILINGUAL_TOKENIZER
from stretto_chatterbox.family import (
    END_OF_SPEECH,
    END_OF_TEXT,
    START_OF_TEXT,
    ChatterboxVocabulary,
    TurboVocabulary,
)
from stretto_chatterbox.languages import CANGJIE_FILE
from stretto_chatterbox.turbo import gpt2_tokenizer

SOURCE = Path(os.environ.get("CHATTERBOX_SRC", "chatterbox"))
PACKAGES = ("", ".models", ".models.t3", ".models.t3.modules", ".models.t3.inference", ".models.tokenizers")


def empty_packages() -> None:
    """Replace the reference code's packages with empty ones whose modules can still be imported."""
    for name in PACKAGES:
        module = ModuleType(f"chatterbox{name}")
        module.__path__ = [str(SOURCE.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module


def even(text: str, file: str) -> str:
    """Normalise a text with the reference `punc_norm`, without importing the rest of its file."""
    tree = ast.parse((SOURCE / file).read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "punc_norm")
    found: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), file, "exec"), found)
    return found["punc_norm"](text)


def reference_tokenizer(folder: Path) -> Any:
    """Return the reference `MTLTokenizer` with the files of the small multilingual release, written to `folder`."""
    from chatterbox.models.tokenizers import tokenizer

    write_multilingual_tokenizer(folder)
    tokenizer.hf_hub_download = lambda **_: str(folder / CANGJIE_FILE)
    return tokenizer.MTLTokenizer(str(folder / MULTILINGUAL_TOKENIZER))


class Draws:
    """Replacement for `torch.multinomial` during one reply to a prompt of `num_rows` rows.

    Attributes:
        lead: Smallest margin of a sampled id over the runner-up, in logits (with noise if the reply is sampled).
    """

    def __init__(self, num_rows: int, case: dict[str, Any], ids: np.ndarray):
        self._position = num_rows
        self._seed = case["seed"]
        self._is_random = case["temperature"] > 0
        self._ids = ids
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


@dataclass(frozen=True)
class Reference:
    """Reference T3 for one release, and the cases in its fixture.

    Attributes:
        cases: Texts with options.
        num_codes: Maximum number of codes per reply.
        load: Function that returns T3.
        ids: Function that tokenizes a case; it writes the tokenizer's files to the given folder.
        voices: Seeds of the voices by name.
        codes: Function that generates codes: (T3, condition, ids, case, number) -> (codes, draws).
        num_rows: Number of rows per voice to record; None for all.
    """

    cases: tuple[dict[str, Any], ...]
    num_codes: int
    load: Callable[[], Any]
    ids: Callable[[dict[str, Any], Path], list[int]]
    voices: dict[str, int]
    codes: Callable[..., tuple[list[int], Draws]]
    num_rows: int | None = None


# English and Multilingual


def guided_case(
    text: str, name: str, weight: float, penalty: float, temperature: float, min_p: float, top_p: float
) -> dict[str, Any]:
    """Return a case; temperature 0 takes the likeliest id."""
    drawn = {"weight": weight, "penalty": penalty, "temperature": temperature, "min_p": min_p, "top_p": top_p}
    return {"text": text, "voice": name, **drawn}


def load_guided(known: ChatterboxVocabulary, seed: int) -> Any:
    """Return the reference T3 with the weights of a small English or multilingual release."""
    from chatterbox.models.t3 import llama_configs
    from chatterbox.models.t3.modules import cond_enc, perceiver
    from chatterbox.models.t3.modules.t3_config import T3Config

    rope = dict(SMALL["rope_parameters"])
    theta = rope.pop("rope_theta")
    numbers = {name: value for name, value in SMALL.items() if name != "rope_parameters"}
    more = {"rope_theta": theta, "rope_scaling": rope, "torch_dtype": "float32", "attn_implementation": "eager"}
    llama_configs.LLAMA_CONFIGS["small"] = llama_configs.LLAMA_520M_CONFIG_DICT | numbers | more
    sizes = {"pre_attention_query_token": known.num_voice_rows - 2}
    width = SMALL["hidden_size"]
    cond_enc.Perceiver = functools.partial(
        perceiver.Perceiver, pre_attention_query_size=width, embedding_dim=width, **sizes
    )
    from chatterbox.models.t3.t3 import T3

    config = T3Config(known.num_text_ids)
    config.llama_config_name = "small"
    config.max_text_tokens = known.num_text_positions - 2
    config.max_speech_tokens = known.num_speech_positions - 4
    t3 = T3(config)
    t3.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors(known, seed).items()})
    return t3.eval()


def english_ids(case: dict[str, Any], folder: Path) -> list[int]:
    """Tokenize as `EnTokenizer.encode` does, with spaces turned into markers in a single string."""
    from tokenizers import Tokenizer

    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    ids = tokenizer.encode(even(case["text"], "tts.py").replace(" ", "[SPACE]")).ids
    return [START_OF_TEXT, *ids, END_OF_TEXT]


def multilingual_ids(case: dict[str, Any], folder: Path) -> list[int]:
    """Tokenize with `MTLTokenizer`."""
    ids = reference_tokenizer(folder).encode(even(case["text"], "mtl_tts.py"), case["language"])
    return [START_OF_TEXT, *ids, END_OF_TEXT]


def guided_codes(
    known: ChatterboxVocabulary, t3: Any, condition: Any, ids: list[int], case: dict[str, Any], number: int
) -> tuple[list[int], Draws]:
    """Return at most `number` codes from `T3.inference`."""
    first = known.speech.start
    order = np.empty(known.num_speech_ids, np.int64)
    order[[*range(END_OF_SPEECH), *range(END_OF_SPEECH + 1, known.num_speech_ids), END_OF_SPEECH]] = np.arange(
        first, first + known.num_speech_ids
    )
    torch.multinomial = draws = Draws(known.num_voice_rows + len(ids) + 2, case, order)  # type: ignore[assignment]
    codes = t3.inference(
        t3_cond=condition,
        text_tokens=torch.tensor([ids, ids]),
        max_new_tokens=number,
        temperature=case["temperature"] or 1.0,
        repetition_penalty=case["penalty"],
        min_p=case["min_p"],
        top_p=case["top_p"],
        cfg_weight=case["weight"],
    )[0].tolist()
    return codes, draws


# Turbo and Nano


def gpt2_case(text: str, name: str, penalty: float, temperature: float, top_k: int, top_p: float) -> dict[str, Any]:
    """Return a case; temperature 0 takes the likeliest id."""
    drawn = {"penalty": penalty, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {"text": text, "voice": name, **drawn}


def load_gpt2(sizes: Gpt2Sizes, published: str) -> Any:
    """Return the reference T3 with the weights of a small Turbo or Nano model; `published` names its config."""
    from chatterbox.models.t3 import llama_configs
    from chatterbox.models.t3.modules.t3_config import T3Config

    numbers = {"n_embd": sizes.width, "hidden_size": sizes.width, "n_head": sizes.width // HEAD_WIDTH}
    numbers |= {"n_layer": sizes.num_layers, "n_positions": sizes.num_positions, "n_ctx": sizes.num_positions}
    numbers |= {"vocab_size": NUM_TURBO_IDS}
    llama_configs.LLAMA_CONFIGS["small"] = getattr(llama_configs, published) | numbers
    from chatterbox.models.t3.t3 import T3

    config = T3Config(NUM_TURBO_IDS)
    config.llama_config_name = "small"
    config.input_pos_emb = None
    config.speech_tokens_dict_size = END_OF_SPEECH + 1
    config.speech_cond_prompt_len = 375
    config.use_perceiver_resampler = config.emotion_adv = False
    t3 = T3(config)
    t3.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in turbo_tensors(sizes).items()})
    return t3.eval()


def gpt2_ids(case: dict[str, Any], folder: Path) -> list[int]:
    """Tokenize with the GPT-2 tokenizer, extended by tags."""
    write_turbo_tokenizer(folder)
    return gpt2_tokenizer(folder).encode(even(case["text"], "tts_turbo.py")).ids


def gpt2_codes(t3: Any, condition: Any, ids: list[int], case: dict[str, Any], number: int) -> tuple[list[int], Draws]:
    """Return at most `number` codes from `T3.inference_turbo`."""
    known = TurboVocabulary(num_text_ids=NUM_TURBO_IDS)
    num_rows = 1 + condition.cond_prompt_speech_tokens.shape[1] + len(ids) + 1
    order = np.arange(known.codes.start, known.end + 1)
    torch.multinomial = draws = Draws(num_rows, case, order)  # type: ignore[assignment]
    codes = t3.inference_turbo(
        t3_cond=condition,
        text_tokens=torch.tensor([ids]),
        temperature=case["temperature"],
        top_k=case["top_k"],
        top_p=case["top_p"],
        repetition_penalty=case["penalty"],
        max_gen_len=number - 1,
    )[0].tolist()
    return [*codes, END_OF_SPEECH] if len(codes) < number else codes, draws  # the loop removes the end code


GPT2_CASES = (
    gpt2_case("hello the answer", "default", 1.2, 0.0, 0, 1.0),
    gpt2_case("Oh [laugh] no... well: maybe \u2014 \u201clater\u201d - or not; yes", "anna", 2.0, 0.0, 0, 1.0),
    gpt2_case("Rain, again;  and   over there", "default", 1.2, 0.8, 1000, 0.95),
    gpt2_case("[clear throat] The door!", "anna", 1.5, 0.8, 40, 0.6),
    gpt2_case("x", "anna", 1.0, 1.0, 0, 0.9),
    gpt2_case("[sigh]", "default", 2.0, 0.8, 12, 1.0),
)
MULTILINGUAL_CASES = (
    guided_case("Où est la gare ? Là-bas…", "default", 0.5, 1.2, 0.0, 0.05, 1.0) | {"language": "fr"},
    guided_case("안녕하세요, 만나서 반갑습니다", "anna", 1.0, 2.0, 0.0, 0.05, 1.0) | {"language": "ko"},
    guided_case("Привет, как дела?", "default", 0.5, 1.2, 0.8, 0.05, 1.0) | {"language": "ru"},
    guided_case("مرحبا بكم", "anna", 0.5, 1.2, 0.8, 0.05, 1.0) | {"language": "ar"},
    guided_case("x", "anna", 0.3, 1.0, 1.0, 0.0, 0.9) | {"language": "sw"},
    guided_case("Die Tür!", "default", 0.8, 1.3, 0.8, 0.05, 0.7) | {"language": "de"},
)
REFERENCES = {
    "english": Reference(
        cases=(
            guided_case("hello the answer", "default", 0.5, 1.2, 0.0, 0.05, 1.0),
            guided_case("no... well: maybe — “later” - or not", "anna", 1.0, 2.0, 0.0, 0.05, 1.0),
            guided_case("Rain, again;  and   over there", "default", 0.5, 1.2, 0.8, 0.05, 1.0),
            guided_case("The door!", "anna", 0.5, 1.2, 0.8, 0.05, 1.0),
            guided_case("x", "anna", 0.3, 1.0, 1.0, 0.0, 0.9),
            guided_case("An owl in the tower ?", "default", 0.8, 1.3, 0.8, 0.05, 0.7),
        ),
        num_codes=48,
        load=functools.partial(load_guided, KNOWN, 1),
        ids=english_ids,
        voices=VOICES,
        codes=functools.partial(guided_codes, KNOWN),
    ),
    "multilingual": Reference(
        cases=MULTILINGUAL_CASES,
        num_codes=48,
        load=functools.partial(load_guided, MULTILINGUAL, MULTILINGUAL_SEED),
        ids=multilingual_ids,
        voices=VOICES,
        codes=functools.partial(guided_codes, MULTILINGUAL),
    ),
    "turbo": Reference(
        cases=GPT2_CASES,
        num_codes=40,
        load=functools.partial(load_gpt2, TURBO, "GPT2_MEDIUM_CONFIG"),
        ids=gpt2_ids,
        voices=TURBO_VOICES,
        codes=gpt2_codes,
        num_rows=1,
    ),
    "nano": Reference(
        cases=GPT2_CASES,
        num_codes=40,
        load=functools.partial(load_gpt2, NANO, "GPT2_SMALL_CONFIG"),
        ids=gpt2_ids,
        voices=TURBO_VOICES,
        codes=gpt2_codes,
        num_rows=1,
    ),
}


@torch.inference_mode()
def replies() -> dict[str, Replies]:
    """Return the replies of each release: each case with text ids, codes, lead, and the sums of its voice's rows."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    empty_packages()
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    made: dict[str, Replies] = {}
    for release, reference in REFERENCES.items():
        t3 = reference.load()
        made[release] = []
        for seed, values in enumerate(reference.cases):
            case = {**values, "seed": seed}
            with TemporaryDirectory() as folder:
                ids = reference.ids(case, Path(folder))
            condition = T3Cond(**voice(reference.voices[case["voice"]])["t3"])
            codes, draws = reference.codes(t3, condition, ids, case, reference.num_codes)
            rows = t3.prepare_conditioning(condition)[0][: reference.num_rows]
            sums = [round(float(row), 5) for row in rows.abs().sum(1)]
            made[release].append({**case, "ids": ids, "codes": codes, "lead": round(draws.lead, 6), "voice_rows": sums})
    return made


def write(fixture: Path, made: dict[str, Replies]) -> None:
    """Write the fixture; print each reply's length, whether it ends by itself, and its lead."""
    record = {name: {"num_codes": REFERENCES[name].num_codes, "replies": each} for name, each in made.items()}
    fixture.write_text(json.dumps(record) + "\n")
    for release, each in made.items():
        for reply in each:
            print(release, len(reply["codes"]), reply["codes"][-1] == END_OF_SPEECH, reply["lead"], reply["codes"][:8])


def compare(fixture: Path, made: dict[str, Replies]) -> None:
    """Raise AssertionError if the fixture has other cases, text ids or codes."""
    for release, replies in made.items():
        equal_in(*REFERENCES[release].cases[0], "seed", "ids", "codes")(fixture, replies, release)


def main() -> None:
    """Write the fixture, or check the cases, text ids and codes of an existing one."""
    run(__doc__, replies, write, compare)


if __name__ == "__main__":
    main()
