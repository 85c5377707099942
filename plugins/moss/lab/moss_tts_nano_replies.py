"""Generate a test fixture with replies of OpenMOSS's own code for small random MOSS-TTS-Nano releases.

    python -m plugins.moss.lab.moss_tts_nano_replies plugins/moss/tests/data/moss_tts_nano_replies.npz
    python -m plugins.moss.lab.moss_tts_nano_replies --check plugins/moss/tests/data/moss_tts_nano_replies.npz

The first command writes the fixture, the second compares it with new replies. The authors publish their classes only
beside the weights; the folder on PYTHONPATH must contain https://github.com/ml-inory/moss-tts-nano.axera, which has
copies of them, as `moss_nano`. Their loop samples with the engine's noise.
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

from lab.authors.reply_fixture import digest, run_arrays, stored_arrays
from plugins.moss.lab.moss_tts_replies import draw
from plugins.moss.lab.random_moss_nano import (
    IDS,
    KINDS,
    codec_config,
    codec_tensors,
    config,
    inputs,
    model_tensors,
    write_release,
)
from stretto.testing.noise import uniform

# seeds and modes
REPLIES = ((7, "greedy"), (10, "sampled"), (14, "sampled"))
MAX_ROWS = 60
NUM_HEARD = 9  # frames of a recording in a prompt
NUM_DECODED = 30  # frames, more than the codec attends to
NUM_SAMPLES = 2 * 48_000 + 777
STRIDE = 16
TEXTS = ("The garden door is open.", "Two lines\nand a  third one: 你好!")
# Of the authors' programs: temperature, top-k and top-p of the choice between a slot and the end, and of codes.
TEXT_OPTIONS = 1.0, 50, 1.0
CODE_OPTIONS = 0.8, 25, 0.95
PENALTY = 1.2
TOLERANCE = 1e-5  # permitted difference between processors, for `--check`


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture."""
    return stored_arrays(Path(__file__).parents[1] / "tests" / "data" / "moss_tts_nano_replies.npz", inputs())


def heard_codes(kind: str) -> np.ndarray:
    """Return codes of a recording in a prompt, [K, T]."""
    num_codebooks, num_codes, _ = KINDS[kind]
    return np.random.default_rng(2).integers(num_codes, size=(num_codebooks, NUM_HEARD))


def decoded_codes() -> np.ndarray:
    """Return codes to decode, [1, K, T]."""
    num_codebooks, num_codes, _ = KINDS["small"]
    return np.random.default_rng(4).integers(num_codes, size=(1, num_codebooks, NUM_DECODED))


def recording() -> np.ndarray:
    """Return samples of a recording, float32 [NUM_SAMPLES]."""
    random = np.random.default_rng(1)
    seconds = np.arange(NUM_SAMPLES) / 48_000
    return (0.2 * np.sin(2 * np.pi * 220 * seconds) + 0.05 * random.standard_normal(NUM_SAMPLES)).astype(np.float32)


def authors(name: str, folder: str = "llm.repo") -> Any:
    """Return a module of the authors."""
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # imported, but not needed here
    return import_module(f"moss_nano.models.{folder}.{name}")


class Noise:
    """Replacement for the authors' `_sample_next_token` with the engine's noise, after their repetition penalty.

    Attributes:
        lead: Smallest margin by which the best candidate beat the second-best.
    """

    def __init__(self, model: Any, kind: str, seed: int, mode: str, num_prompt_rows: int):
        record = config(kind)
        self._model = model
        self._num_codebooks = record["n_vq"]
        self._size = record["audio_vocab_size"]
        self._num_text_ids = record["gpt2_config"]["vocab_size"]
        self._seed = seed
        self._is_greedy = mode == "greedy"
        self._position = num_prompt_rows
        self._stream = 0
        self.lead = math.inf

    def __call__(
        self,
        logits: torch.Tensor,
        previous_token_ids: torch.Tensor | None = None,
        repetition_penalty: float = 1.0,
        **_: Any,
    ) -> torch.Tensor:
        """Return the sampled column, [1], for logits [1, V]."""
        stream = self._stream
        penalized = self._model._apply_repetition_penalty(logits, previous_token_ids, repetition_penalty)
        start = self._num_text_ids + (stream - 1) * self._size
        slots = (IDS["audio_assistant_slot_token_id"], IDS["audio_end_token_id"])
        ids: Any = range(start, start + self._size) if stream else slots
        temperature, top_k, top_p = CODE_OPTIONS if stream else TEXT_OPTIONS
        temperature = 0.0 if self._is_greedy else temperature
        values = (penalized[0].double() / (temperature or 1.0)).tolist()
        token, lead = draw(
            values, ids, lambda token: uniform(self._seed, self._position, stream, token), temperature, top_k, top_p
        )
        self.lead = min(self.lead, lead)
        self._stream = (stream + 1) % (1 + self._num_codebooks)
        self._position += self._stream == 0
        return torch.tensor([ids.index(token)])


def load(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return the authors' model with a release's weights."""
    settings = authors("configuration_moss_tts_nano").MossTTSNanoConfig(**config(kind), attn_implementation="eager")
    model: Any = authors("modeling_moss_tts_nano").MossTTSNanoForCausalLM(settings)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in model_tensors(kind).items()})
    return model.to(dtype).eval()


def load_codec(kind: str = "small") -> Any:
    """Return the authors' codec with a release's weights."""
    settings = authors("configuration_moss_audio_tokenizer", "codec.hf_code").MossAudioTokenizerConfig(
        **codec_config(kind)
    )
    codec: Any = authors("modeling_moss_audio_tokenizer", "codec.hf_code").MossAudioTokenizerModel(settings)
    codec.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in codec_tensors(kind).items()})
    return codec.eval()


def tokenizer_of(folder: Path) -> Any:
    """Return the authors' tokenizer of a release."""
    return authors("tokenization_moss_tts_nano").MossTTSNanoSentencePieceTokenizer(f"{folder}/tokenizer.model")


def prompts(model: Any, folder: Path, kind: str) -> list[np.ndarray]:
    """Return prompts [P, 1 + K] without and with a recording."""
    tokenizer = tokenizer_of(folder)
    codes = torch.from_numpy(heard_codes(kind).T.copy())
    plain, _ = model.build_inference_input_ids(TEXTS[0], tokenizer)
    cloned, _ = model.build_inference_input_ids(TEXTS[1], tokenizer, "voice_clone", prompt_audio_codes=codes)
    return [plain[0].numpy(), cloned[0].numpy()]


def reply(model: Any, kind: str, prompt: np.ndarray, seed: int, mode: str) -> tuple[np.ndarray, float]:
    """Return the codes of a reply, [T, K], and the smallest margin of a decision."""
    model._sample_next_token = noise = Noise(model, kind, seed, mode, len(prompt))
    output = model.generate(
        torch.from_numpy(prompt)[None],
        max_new_frames=MAX_ROWS,
        do_sample=mode != "greedy",
        audio_repetition_penalty=PENALTY,
    )
    return output.audio_token_ids[0].numpy(), noise.lead


@torch.no_grad()
def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    codec = load_codec()
    both = torch.from_numpy(recording()).repeat(2, 1)
    values["codes"] = codec.batch_encode([both]).audio_codes[:, 0].numpy()
    values["pcm"] = codec.batch_decode([torch.from_numpy(decoded_codes()[0])]).audio[0, :, ::STRIDE].numpy()
    with tempfile.TemporaryDirectory() as root:
        for kind in ("small", "deep"):
            model = load(kind)
            folder = write_release(Path(root, kind, "release"), kind)
            for number, prompt in enumerate(prompts(model, folder, kind)):
                values[f"{kind}.prompt{number}"] = prompt
                for seed, mode in REPLIES:
                    codes, lead = reply(model, kind, prompt, seed, mode)
                    assert lead > 1e-4, f"{kind}, prompt {number}, {seed}, {mode}: nearly undecided ({lead})"
                    values[f"{kind}.{number}.{seed}.{mode}"] = codes
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
