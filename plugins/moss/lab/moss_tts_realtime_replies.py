"""Generate a test fixture with replies of OpenMOSS's own code for small random MOSS-TTS-Realtime releases.

    python -m plugins.moss.lab.moss_tts_realtime_replies plugins/moss/tests/data/moss_tts_realtime_replies.npz
    python -m plugins.moss.lab.moss_tts_realtime_replies --check plugins/moss/tests/data/moss_tts_realtime_replies.npz

The first command writes the fixture, the second compares it with new replies. PYTHONPATH must contain the folder
`moss_tts_realtime` of https://github.com/OpenMOSS/MOSS-TTS. Their loop reads a text id by id and samples with the
engine's noise. Ids that the codec does not have are left out, except the end.
"""

import math
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.masking_utils import create_causal_mask

from lab.authors.reply_fixture import digest, run_arrays, stored_arrays
from plugins.moss.lab.moss_tts_replies import draw
from plugins.moss.lab.random_moss_realtime import IDS, KINDS, config, inputs, model_tensors, write_release
from stretto.testing.noise import uniform

# seeds and modes
REPLIES = ((7, "greedy"), (7, "sampled"), (8, "sampled"))
MAX_FRAMES = 70
NUM_HEARD = 9  # frames of a recording in a prompt
# of the authors' card
TEMPERATURE = 0.8
TOP_K = 30
TOP_P = 0.6
PENALTY = 1.1
WINDOW = 50
TEMPERATURE_HERE = 2.0  # instead, for replies to random weights, whose most probable codes are far more so than others
NUM_FIRST = 12
# Texts shorter and longer than the ids before the first frame.
TEXTS = (
    "Hi.",
    "The garden door is open, and 3 birds sing.",
    "你好，世界。",
    "Two lines\nand a  third one: tomorrow, when the rain has stopped, we will walk along the river to the old mill.",
)
TOLERANCE = 0.0


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture."""
    return stored_arrays(Path(__file__).parents[1] / "tests" / "data" / "moss_tts_realtime_replies.npz", inputs())


def heard_codes(kind: str) -> np.ndarray:
    """Return codes of a recording in a prompt, [K, T]."""
    num_codebooks, num_codes, *_ = KINDS[kind]
    return np.random.default_rng(2).integers(num_codes, size=(num_codebooks, NUM_HEARD))


class Noise:
    """Replacement for the authors' `sample_token` with the engine's noise.

    Attributes:
        lead: Smallest margin by which the best candidate beat the second-best.
    """

    def __init__(self, kind: str, seed: int, mode: str, position: int):
        record = config(kind)
        self._num_codebooks = record["rvq"]
        self._size = record["audio_pad_token"]
        self._first = record["language_config"]["vocab_size"]
        self._num_ids = record["audio_vocab_size"]
        self._seed = seed
        self._temperature = 0.0 if mode == "greedy" else TEMPERATURE_HERE
        self._position = position
        self._stream = 0
        self.lead = math.inf

    def __call__(self, logits: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the sampled id of a codebook, [1], for logits [1, 1, V] or [1, V] with the penalty."""
        values = logits.reshape(-1).double() / (self._temperature or 1.0)
        stream = self._stream
        last = self._num_ids - 1 if stream == 0 else self._num_ids  # the end is an id of codebook 0
        values[self._size : last] = -torch.inf
        start = self._first + stream * self._num_ids
        ids = range(start, start + self._num_ids)
        token, lead = draw(
            values.tolist(), ids, lambda token: uniform(self._seed, self._position, stream, token),
            self._temperature, TOP_K, TOP_P,
        )  # fmt: skip
        self.lead = min(self.lead, lead)
        self._stream = (stream + 1) % self._num_codebooks
        self._position += self._stream == 0
        return torch.tensor([token - start])


def causal_mask(**given: Any) -> Any:
    """Call transformers' function of that name with arguments of version 5.0.0, for which the authors' code is."""
    del given["cache_position"]
    return create_causal_mask(inputs_embeds=given.pop("input_embeds"), **given)


def load(kind: str) -> Any:
    """Return the authors' model with a release's weights, in float64."""
    module = import_module("mossttsrealtime.modeling_mossttsrealtime")
    local: Any = import_module("mossttsrealtime.modeling_mossttsrealtime_local")
    local.create_causal_mask = causal_mask
    record = config(kind)
    made = module.MossTTSRealtimeConfig(**record, attn_implementation="eager")
    for name in ("audio_pad_token", "audio_vocab_size", "rvq"):  # constants of the authors' class
        setattr(made.local_config, name, record[name])
    model: Any = module.MossTTSRealtime(made)
    model.load_state_dict({name: torch.from_numpy(each) for name, each in model_tensors(kind).items()})
    return model.double().eval()


def prompts(folder: Path, kind: str) -> tuple[list[np.ndarray], list[list[int]]]:
    """Return the rows before a text [P, 1 + K], without and with a recording, and the ids of the texts."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # imported by the authors' module, not needed here
    num_codebooks, num_codes, *_ = KINDS[kind]
    made = import_module("inferencer").MossTTSRealtimeProcessor(tokenizer)
    processor = import_module("mossttsrealtime.processing_mossttsrealtime").MossTTSRealtimeProcessor
    other = processor(tokenizer, channels=num_codebooks, audio_channel_pad=num_codes)
    begin = tokenizer.encode("<|im_start|>assistant\n")
    found = []
    for codes in (None, heard_codes(kind)):
        rows = other.make_ensemble(codes)
        text = np.full((len(begin), 1 + num_codebooks), num_codes)
        text[:, 0] = begin
        rows = np.concatenate([rows, text])
        if codes is None:  # the sizes of the other class are those of the published release
            assert (rows[:, 0] == made.make_ensemble()[:, 0]).all(), "both of their processors write the same text"
        found.append(rows)
    return found, [tokenizer.encode(text) for text in TEXTS]


def reply(
    model: Any, kind: str, prompt: np.ndarray, words: list[int], seed: int, mode: str
) -> tuple[np.ndarray, float]:
    """Return the codes of a reply with the end, [T, K], and the smallest margin of a decision."""
    record = config(kind)
    module = import_module("mossttsrealtime.streaming_mossttsrealtime")
    size = record["audio_pad_token"]
    tokenizer: Any = type("Tokenizer", (), {"pad_token_id": IDS["<|endoftext|>"]})
    made = module.MossTTSRealtimeInference(
        model, tokenizer, channels=record["rvq"], audio_channel_pad=size, audio_bos_token=size + 1,
        audio_eos_token=size + 2, text_pad_id=record["text_pad"], aud_pad_id=record["reference_audio_pad"],
    )  # fmt: skip
    made._should_compile_local_transformer = False
    first = words[:NUM_FIRST]
    made.sample_token = noise = Noise(kind, seed, mode, len(prompt) + len(first))
    options = {"repetition_penalty": PENALTY, "repetition_window": WINDOW}
    frames = [made.prefill([prompt], [first], **options)]
    for word in words[NUM_FIRST:]:
        if not made.is_finished:
            frames.append(made.step([word], **options))
    frames += made.finish(max_steps=MAX_FRAMES - len(frames), **options)
    return torch.cat(frames).numpy(), noise.lead


@torch.no_grad()
def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    with tempfile.TemporaryDirectory() as root:
        for kind in ("small", "deep"):
            heads, texts = prompts(write_release(Path(root, kind, "release"), kind), kind)
            model = load(kind)
            for number, words in enumerate(texts):
                values[f"{kind}.words{number}"] = np.array(words)
            for voice, head in enumerate(heads):
                values[f"{kind}.prompt{voice}"] = head
                for number, words in enumerate(texts):
                    for seed, mode in REPLIES:
                        rows, lead = reply(model, kind, head, words, seed, mode)
                        name = f"{kind}.{voice}.{number}.{seed}.{mode}"
                        assert lead > 1e-4, f"{name}: nearly undecided ({lead})"
                        values[name] = rows
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
