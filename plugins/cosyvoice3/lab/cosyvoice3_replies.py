"""Generate a test fixture with replies from CosyVoice 3's authors' code, with small random weights.

    pip install torch transformers tokenizers
    COSYVOICE_ROOT=CosyVoice PYTHONPATH=.:python_backend:contract:client:plugins/cosyvoice3 \\
        python -m plugins.cosyvoice3.lab.cosyvoice3_replies \\
        plugins/cosyvoice3/tests/data/cosyvoice3_replies.json [--check]

COSYVOICE_ROOT is the repository https://github.com/FunAudioLLM/CosyVoice at ace7c47. The authors' `CosyVoice3Tokenizer`
and `CosyVoice3LM.inference` make the prompts. Their loop and `ras_sampling` generate the codes in float32. The script
replaces only three things:

- `multinomial` uses the engine's noise.
- `sampling_ids` masks all end ids before the minimum length; the original masks an id that is not an end.
- The attention mask of a step is dropped. Newer transformers releases read its length of 1 as masking all earlier rows.

For streamed text, `CosyVoice3LM.inference_bistream` gets one token at a time, with three corrections (`MENDED`). The
script checks that codes before the end of a text equal those of the original function.
"""

import inspect
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import Replies, equal_in, run
from plugins.cosyvoice3.lab.random_cosyvoice3 import BACKBONE, KNOWN, SEEDS, SMALL, language_model, write_release
from stretto.engine.sampling.noise import gumbel, redraw_keys, seed_key, stream_keys
from stretto_cosyvoice3.family import CosyVoice3Vocabulary

sys.path.insert(0, os.environ.get("COSYVOICE_ROOT", "CosyVoice"))
MISSING = {
    "whisper.tokenizer": ("Tokenizer",),
    "tiktoken": (),
    "cosyvoice.utils.onnx": ("SpeechTokenExtractor", "online_feature", "onnx_path"),
    "cosyvoice.utils.file_utils": ("logging",),
    "torchaudio": (),
}  # modules that the authors' code imports but that are not needed here
HELPFUL = "You are a helpful assistant."
# text, words of the recording, number of its codes, instruction, top-k, top-p
CASES = (
    ("Yo [laughter]", "one two", 11, "", 25, 0.8),
    ("\u597d[j][\u01d0]", "", 30, "", 25, 1.0),
    ("Good", "good", 26, "<strong>Fast</strong>.", 4, 0.8),
    ("a", "", 25, "", 0, 0.5),
)
# Streamed texts: text, words of the recording, number of its codes, instruction, and a limit on all rows.
LIVE_CASES = (
    (
        "ab cd efg [laughter] hij kl m",
        "one two three",
        20,
        "",
        160,
    ),  # two groups: 5 words, 15 codes, 5 words, 5 codes
    ("ab cd efg hij kl", "", 30, "", 120),  # without its words, no codes of the recording are used
    ("no", "one two three four", 44, "", 100),  # the text ends before the recording's codes
    ("ab cd [breath] efg", "one two", 15, "", 100),  # the recording's codes fill their groups
    ("a", "", 25, "<strong>Fast</strong>.", 90),
)
LIVE_NAMES = ("text", "words", "num_codes", "instruct", "limit")
# Corrections of `inference_bistream`. A reply asks for five words at each border between groups, even if the codes of
# the recording fill their group. The last code before the end is read only once. The recording's remaining codes follow
# the end of the text.
MENDED = (
    ("(len(out_tokens) == 0 and lm_input.size(1) == 1)", "(len(out_tokens) == 0 and next_fill_index == 15)"),
    (
        "lm_input = torch.concat([lm_input, text_cache, task_id_emb], dim=1)",
        "lm_input = torch.concat([lm_input[:, :0] if out_tokens else lm_input, text_cache, task_id_emb, "
        "prompt_speech_token_emb], dim=1)",
    ),
)
ASSERTED = 151646  # the id of <|endofprompt|> that the authors' loop looks for
NAMES = ("text", "words", "num_codes", "instruct", "top_k", "top_p")


class Full(Exception):
    """Raised when a reply has reached its limit."""


class Draws:
    """Replacement for `Tensor.multinomial` during one reply to a prompt of `num_rows` rows.

    Attributes:
        lead: Smallest margin of a sampled id over the runner-up, in logits with noise.
        num_again: Number of ids that were sampled again.
    """

    def __init__(self, num_rows: int, seed: int):
        self._position = num_rows
        self._seed = seed
        self._order = torch.zeros(0)
        self.lead = float("inf")
        self._is_again = False
        self.num_again = 0

    def begin(self, scores: torch.Tensor) -> None:
        """Begin a row whose log probabilities are `scores`."""
        self._order = scores.softmax(0).sort(descending=True, stable=True)[1]
        self._is_again = False

    def __call__(self, probabilities: torch.Tensor, num_samples: int, replacement: bool) -> torch.Tensor:
        size = len(probabilities)
        codes = torch.arange(size) if self._is_again else self._order[:size]
        key = stream_keys(np.array([seed_key(self._seed)], np.int32), np.array([self._position], np.int32), 1)
        if self._is_again:
            key = redraw_keys(torch.from_numpy(key)).numpy()
        noise = gumbel(key[0], codes.numpy() + KNOWN.num_text_ids)
        scores = probabilities.log().numpy().astype(np.float64) + noise
        best = np.argsort(scores)
        self.lead = min(self.lead, float(scores[best[-1]] - scores[best[-2]])) if size > 1 else self.lead
        self.num_again += self._is_again
        self._is_again = True
        return torch.tensor([int(best[-1])])

    def end(self) -> None:
        """End a row."""
        self._position += 1

    def place(self, num_rows: int) -> None:
        """Begin a row after `num_rows` rows that the model has read."""
        self._position = num_rows


def stand_in() -> None:
    """Register modules whose functions and classes do nothing."""
    for name, members in MISSING.items():
        parts = name.split(".")
        for size in range(1, len(parts) + 1):
            known = ".".join(parts[:size])
            if known not in sys.modules and (known == name or not known.startswith("cosyvoice")):
                sys.modules[known] = ModuleType(known)
        for member in members:
            setattr(sys.modules[name], member, None)


def language_model_of(backbone: dict[str, Any], known: CosyVoice3Vocabulary, sampling: Any = None) -> Any:
    """Return the authors' language model with a backbone of these sizes."""
    from cosyvoice.llm.llm import CosyVoice3LM, Qwen2Encoder
    from transformers import Qwen2Config, Qwen2ForCausalLM

    encoder = Qwen2Encoder.__new__(Qwen2Encoder)
    torch.nn.Module.__init__(encoder)
    encoder.model = Qwen2ForCausalLM(Qwen2Config(**backbone, vocab_size=known.num_text_ids))
    forward = encoder.model.forward
    encoder.model.forward = lambda **named: forward(**(named | {"attention_mask": None}))
    width = backbone["hidden_size"]
    return CosyVoice3LM(width, width, known.num_codes, encoder, sampling, True, 0)


def load(seed: int) -> Any:
    """Return the authors' language model with the random weights."""
    model = language_model_of(SMALL, KNOWN)
    encoder = model.llm
    named = {name: torch.from_numpy(each) for name, each in language_model(seed).items()}
    named["llm.model.lm_head.weight"] = named["llm.model.model.embed_tokens.weight"]
    assert not model.load_state_dict(named, strict=True).missing_keys
    embed = encoder.model.model.embed_tokens.forward
    encoder.model.model.embed_tokens.forward = lambda ids: embed(ids.where(ids != ASSERTED, KNOWN.end_of_prompt))
    return model.eval()


def recorded_codes(number: int) -> list[int]:
    """Return `number` codes for a recording in the fixture."""
    return np.random.default_rng(number).integers(KNOWN.num_codes, size=number).tolist()


def spoken(model: Any, tokenizer: Any, case: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a reply."""
    ras_sampling = import_module("cosyvoice.utils.common").ras_sampling

    instruction = f"{HELPFUL} {case['instruct']}" if case["instruct"] else HELPFUL
    has_codes = bool(case["words"]) and not case["instruct"]
    before = f"{instruction}<|endofprompt|>{case['words'] if has_codes else ''}"
    prompt, text = (torch.tensor([tokenizer.encode(each)]) for each in (before, case["text"]))
    ids = prompt[0].tolist()
    prompt = prompt.where(prompt != KNOWN.end_of_prompt, ASSERTED)
    codes = torch.tensor([recorded_codes(case["num_codes"])]) if has_codes else torch.zeros(1, 0, dtype=torch.int64)
    num_rows = 1 + prompt.shape[1] + text.shape[1] + 1 + codes.shape[1]
    draws = Draws(num_rows, case["seed"])
    model.sampling = partial(ras_sampling, top_p=case["top_p"], top_k=case["top_k"] or 1 << 20)

    def sampling_ids(scores: torch.Tensor, before: list[int], sampling: int, ignore_eos: bool) -> int:
        if ignore_eos:
            scores[KNOWN.num_codes :] = -torch.inf
        draws.begin(scores)
        drawn = model.sampling(scores, before, sampling)
        draws.end()
        return drawn

    model.sampling_ids = sampling_ids
    torch.Tensor.multinomial = lambda self, *args, **named: draws(self, *args, **named)  # type: ignore
    lengths = (torch.tensor([each.shape[1]]) for each in (text, prompt, codes))
    num_text, num_prompt, num_codes = lengths
    made = list(model.inference(text, num_text, prompt, num_prompt, codes, num_codes, None))
    fields = {"prompt": ids, "ids": text[0].tolist(), "codes": made, "lead": draws.lead, "again": draws.num_again}
    yield from fields.items()


def bistream(is_mended: bool) -> Callable[..., Iterator[int]]:
    """Return the authors' `inference_bistream`, with or without the corrections."""
    module = import_module("cosyvoice.llm.llm")
    source = textwrap.dedent(inspect.getsource(module.Qwen2LM.inference_bistream))
    for old, new in MENDED if is_mended else ():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    scope = {**vars(module), "logging": logging}
    exec(source, scope)
    return scope["inference_bistream"]


class Steps:
    """Replacement for `Qwen2Encoder.forward_one_step` that counts the rows read and wraps the cache."""

    def __init__(self, encoder: Any, draws: Draws, limit: int):
        self._encoder = encoder
        self._draws = draws
        self._limit = limit
        self._cache = None
        self.num_rows = 0

    def __call__(self, rows: torch.Tensor, masks: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Return the hidden states for rows [1, n, H], and a cache; the authors' loop reads only its length."""
        if self.num_rows + rows.shape[1] >= self._limit:
            raise Full
        self.num_rows += rows.shape[1]
        self._draws.place(self.num_rows)
        made = self._encoder.model(inputs_embeds=rows, output_hidden_states=True, past_key_values=self._cache)
        self._cache = made.past_key_values
        return made.hidden_states[-1], [[torch.zeros(1, 1, self.num_rows)]]


def live(model: Any, tokenizer: Any, case: dict[str, Any], is_mended: bool = True) -> dict[str, Any]:
    """Return the fields of a reply to streamed text; `border` is the number of codes before the end of the text."""
    ras_sampling = import_module("cosyvoice.utils.common").ras_sampling
    instruction = f"{HELPFUL} {case['instruct']}" if case["instruct"] else HELPFUL
    has_codes = bool(case["words"]) and not case["instruct"]
    before = f"{instruction}<|endofprompt|>{case['words'] if has_codes else ''}"
    prompt, text = (torch.tensor([tokenizer.encode(each)]) for each in (before, case["text"]))
    ids = prompt[0].tolist()
    prompt = prompt.where(prompt != KNOWN.end_of_prompt, ASSERTED)
    codes = torch.tensor([recorded_codes(case["num_codes"])]) if has_codes else torch.zeros(1, 0, dtype=torch.int64)
    draws = Draws(0, case["seed"])
    made = list[int]()
    borders = list[int]()
    model.llm.forward_one_step = Steps(model.llm, draws, case["limit"])
    first = KNOWN.num_codes
    fill = model.fill_token
    end = model.eos_token

    def sampling_ids(scores: torch.Tensor, before: list[int], sampling: int, ignore_eos: bool) -> int:
        if ignore_eos:
            kept = float(scores[fill])
            scores[first:] = -torch.inf
            scores[fill] = kept
        elif not borders:
            borders.append(len(made))
        draws.begin(scores)
        drawn = int(ras_sampling(scores, before, sampling))  # top-p 0.8 and top-k 25
        return end if drawn >= first and not ignore_eos else drawn

    model.sampling_ids = sampling_ids
    torch.Tensor.multinomial = lambda self, *args, **named: draws(self, *args, **named)  # type: ignore
    pieces = (token[None, None] for token in text[0])
    lengths = torch.tensor([prompt.shape[1]]), torch.tensor([codes.shape[1]])
    loop = bistream(is_mended)
    try:
        with torch.inference_mode():
            for code in loop(model, pieces, prompt, lengths[0], codes, lengths[1], None):
                made.append(code)
    except Full:
        pass
    rows = model.llm.forward_one_step.num_rows
    fields = {
        "prompt": ids,
        "ids": text[0].tolist(),
        "codes": made,
        "lead": draws.lead,
        "again": draws.num_again,
        "rows": rows,
    }
    return fields | {"border": borders[0] if borders else len(made)}


def replies() -> Replies:
    """Return each case with its ids, codes and lead."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    stand_in()
    from cosyvoice.tokenizer.tokenizer import CosyVoice3Tokenizer

    found = list[dict[str, Any]]()
    with TemporaryDirectory() as folder:
        tokenizer = CosyVoice3Tokenizer(str(write_release(Path(folder) / "release") / BACKBONE))
        for release in SEEDS:
            model = load(release)
            for number, values in enumerate(CASES):
                case = {**dict(zip(NAMES, values, strict=True)), "release": release, "seed": number}
                found.append(case | dict(spoken(model, tokenizer, case)))
            step = model.llm.forward_one_step
            for number, each in enumerate(LIVE_CASES):
                case = {**dict(zip(LIVE_NAMES, each, strict=True)), "release": release, "seed": number, "live": True}
                reply = live(model, tokenizer, case)
                plain = live(model, tokenizer, case, is_mended=False)
                if case["words"] and each[2] % 15:  # the corrections change only the end
                    assert plain["codes"][: reply["border"]] == reply["codes"][: reply["border"]], case
                found.append(case | reply)
            model.llm.forward_one_step = step
    return found


def write(fixture: Path, made: Replies) -> None:
    """Write the replies as JSON."""
    fixture.write_text(json.dumps({"replies": made}) + "\n")


if __name__ == "__main__":
    run(__doc__, replies, write, equal_in("prompt", "ids", "codes"))
