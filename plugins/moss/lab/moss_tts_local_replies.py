"""Generate a test fixture with replies of OpenMOSS's own code for small random MOSS-TTS-Local v1.5 releases.

    python -m plugins.moss.lab.moss_tts_local_replies plugins/moss/tests/data/moss_tts_local_replies.npz
    python -m plugins.moss.lab.moss_tts_local_replies --check plugins/moss/tests/data/moss_tts_local_replies.npz

The first command writes the fixture, the second compares it with new replies. The folder on PYTHONPATH must contain
https://github.com/OpenMOSS/MOSS-TTS as `moss_tts`. Their loop samples with the engine's noise.
"""

import math
import sys
import tempfile
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lab.authors.reply_fixture import digest, run_arrays, stored_arrays
from plugins.moss.lab.moss_tts_replies import draw
from plugins.moss.lab.random_moss_local import IDS, KINDS, config, inputs, model_tensors, write_release
from stretto.testing.noise import uniform

# seeds and modes
REPLIES = ((7, "greedy"), (7, "sampled"), (8, "sampled"))
MAX_ROWS = 60
NUM_HEARD = 9  # frames of a recording in a prompt
TEXTS = ("The garden door is open.", "Two lines\nand a  third one: 你好!")
INSTRUCTION = "slowly"
LANGUAGE = "French"
TEXT_OPTIONS = 1.0, 50, 1.0  # temperature, top-k and top-p of the choice between a slot and the end
CODE_OPTIONS = 1.7, 25, 0.8
TOLERANCE = 0.0


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture."""
    return stored_arrays(Path(__file__).parents[1] / "tests" / "data" / "moss_tts_local_replies.npz", inputs())


def heard_codes(kind: str) -> np.ndarray:
    """Return codes of a recording in a prompt, [K, T]."""
    num_codebooks, num_codes, *_ = KINDS[kind]
    return np.random.default_rng(2).integers(num_codes, size=(num_codebooks, NUM_HEARD))


@cache
def authors(name: str) -> Any:
    """Return a module of the authors, whose folder has a name that cannot be imported."""
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # imported by the processor, not needed here
    if "moss_tts_local" not in sys.modules:
        spec = find_spec("moss_tts")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package = ModuleType("moss_tts_local")
        package.__path__ = [str(Path(next(iter(spec.submodule_search_locations))) / "moss_tts_local_v1.5")]
        sys.modules["moss_tts_local"] = package
    return import_module(f"moss_tts_local.{name}")


class Noise:
    """Replacement for the authors' `_sample_next_token` with the engine's noise.

    Attributes:
        lead: Smallest margin by which the best candidate beat the second-best.
    """

    def __init__(self, kind: str, seed: int, mode: str, num_prompt_rows: int):
        record = config(kind)
        self._num_codebooks = record["n_vq"]
        self._size = record["audio_vocab_size"]
        self._num_text_ids = record["language_config"]["vocab_size"]
        self._seed = seed
        self._is_greedy = mode == "greedy"
        self._position = num_prompt_rows
        self._stream = 0
        self.lead = math.inf

    def __call__(self, logits: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the sampled column, [1], for logits [1, V]."""
        stream = self._stream
        start = self._num_text_ids + (stream - 1) * self._size
        slots = (IDS["audio_assistant_slot_token_id"], IDS["audio_end_token_id"])
        ids: Any = range(start, start + self._size) if stream else slots
        temperature, top_k, top_p = CODE_OPTIONS if stream else TEXT_OPTIONS
        temperature = 0.0 if self._is_greedy else temperature
        values = (logits[0].double() / (temperature or 1.0)).tolist()
        token, lead = draw(
            values, ids, lambda each: uniform(self._seed, self._position, stream, each), temperature, top_k, top_p
        )
        self.lead = min(self.lead, lead)
        self._stream = (stream + 1) % (1 + self._num_codebooks)
        self._position += self._stream == 0
        return torch.tensor([ids.index(token)])


def load(kind: str) -> Any:
    """Return the authors' model with a release's weights, in float64."""
    module = authors("modeling_moss_tts")
    model: Any = module.MossTTSLocalModel(module.MossTTSLocalConfig(**config(kind), attn_implementation="eager"))
    model.load_state_dict({name: torch.from_numpy(each) for name, each in model_tensors(kind).items()})
    return model.double().eval()


def processor(folder: Path, kind: str) -> Any:
    """Return the authors' processor for a release."""
    made: Any = object.__new__(authors("processing_moss_tts").MossTTSLocalProcessor)
    made.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    made.model_config = authors("configuration_moss_tts").MossTTSLocalConfig(**config(kind))
    made.audio_tokenizer = None
    return made


def prompts(made: Any, kind: str) -> list[np.ndarray]:
    """Return prompts [P, 1 + K] without and with a recording, an instruction and a language."""
    codes = torch.from_numpy(heard_codes(kind).T.copy())
    messages = [
        made.build_user_message(text=TEXTS[0]),
        made.build_user_message(text=TEXTS[1], reference=[codes], instruction=INSTRUCTION, language=LANGUAGE),
    ]
    return [made([[message]], mode="generation")["input_ids"][0].numpy() for message in messages]


def reply(model: Any, kind: str, prompt: np.ndarray, seed: int, mode: str) -> tuple[np.ndarray, float]:
    """Return the rows of a reply, [T, 1 + K], and the smallest margin of a decision."""
    model._sample_next_token = noise = Noise(kind, seed, mode, len(prompt))
    ids = torch.from_numpy(prompt)[None]
    [(_, rows)] = model.generate(ids, max_new_frames=MAX_ROWS, do_sample=mode != "greedy")
    return rows[1:].numpy(), noise.lead


@torch.no_grad()
def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    with tempfile.TemporaryDirectory() as root:
        for kind in ("small", "deep"):
            found = prompts(processor(write_release(Path(root, kind, "release"), kind), kind), kind)
            model = load(kind)
            for number, prompt in enumerate(found):
                values[f"{kind}.prompt{number}"] = prompt
                for seed, mode in REPLIES:
                    rows, lead = reply(model, kind, prompt, seed, mode)
                    assert lead > 1e-4, f"{kind}, prompt {number}, {seed}, {mode}: nearly undecided ({lead})"
                    values[f"{kind}.{number}.{seed}.{mode}"] = rows
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
