"""Generate a test fixture with replies of OpenMOSS's own code for small random MOSS-TTS releases.

    python -m plugins.moss.lab.moss_tts_replies plugins/moss/tests/data/moss_tts_replies.npz
    python -m plugins.moss.lab.moss_tts_replies --check plugins/moss/tests/data/moss_tts_replies.npz

The first command writes the fixture, the second compares it with new replies. The folders on PYTHONPATH must contain
the authors' repositories: https://github.com/OpenMOSS/MOSS-TTS as `moss_tts`, and
https://github.com/OpenMOSS/MOSS-Audio-Tokenizer as `moss_codec`. Their loop samples with the engine's noise. Where it
would sample text, it gets the start of audio before the audio, and the end of the turn after it.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lab.authors.reply_fixture import digest, run_arrays, stored_arrays
from plugins.moss.lab.random_moss import (
    IDS,
    KINDS,
    TOKENS,
    codec_config,
    codec_tensors,
    config,
    inputs,
    model_tensors,
    write_release,
)
from stretto.testing.noise import uniform

# seeds and modes
REPLIES = ((7, "greedy"), (7, "sampled"), (8, "sampled"))
MAX_ROWS = 60
NUM_HEARD = 9
NUM_SAMPLES = 3 * 24_000 + 777
STRIDE = 16
NUM_DECODED = 40  # frames, more than the codec attends to
TEXT = "The garden door is open."
INSTRUCTION = "slowly"
LANGUAGE = "French"
# Texts with layout, repeated marks, several scripts, names and brackets.
TEXTS = (
    "Plain words, with a stop.",
    "two\nlines and\r\n\r\na  third\tone",
    "# Title\n> quoted\n- item\n12. numbered\n3) other",
    "wait...... really???!!! yes!! no。。 or，，",
    "see [the page](https://example.org/a-b) or mail me@example.org, @someone #tag and u/name",
    "version v2.3.1 of app.js.map in .env -> next => end",
    "well — or -- not, a-b and 3-4 <= 5",
    "【注意】你好 世界  abc 测试123 项 目，  「引用」《标题》——结束 ！",
    "他说: “好的” （ 是 ）和 Test。",
    "[pause 2s] {breath} a\u200bb\u3000c \x07",
    "  ",
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PUBLISHED_DELAY = "151662"
DELAY = IDS["audio_assistant_delay_slot_token_id"]
MARGIN = 1e-5  # of probability
TOLERANCE = 1e-5  # permitted difference between processors, for `--check`


def recording() -> np.ndarray:
    """Return samples of a recording, float32 [NUM_SAMPLES]."""
    random = np.random.default_rng(1)
    at = np.arange(NUM_SAMPLES) / 24_000
    return (0.2 * np.sin(2 * np.pi * 220 * at) + 0.05 * random.standard_normal(NUM_SAMPLES)).astype(np.float32)


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture."""
    return stored_arrays(Path(__file__).parents[1] / "tests" / "data" / "moss_tts_replies.npz", inputs())


def heard_codes(kind: str) -> np.ndarray:
    """Return codes of a recording in a prompt, [K, T]."""
    num_codebooks, num_codes, _ = KINDS[kind]
    return np.random.default_rng(2).integers(num_codes, size=(num_codebooks, NUM_HEARD))


@cache
def authors() -> Any:
    """Return the authors' module of the language model.

    Its processor imports torchaudio, which is not needed here, and its loop contains an id of the published vocabulary.
    """
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))
    spec = find_spec("moss_tts.moss_tts_delay.modeling_moss_tts")
    assert spec is not None
    assert spec.origin is not None
    code = Path(spec.origin).read_text()
    assert code.count(PUBLISHED_DELAY) == 1
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(code.replace(PUBLISHED_DELAY, str(DELAY)), spec.origin, "exec"), vars(module))
    return module


def draw(
    logits: Sequence[float], ids: range, noise: Callable[[int], float], temperature: float, top_k: int, top_p: float
) -> tuple[int, float]:
    """Return the sampled id and its lead over the second-best one; 0 if the mass of `top_p` ends close to an id.

    Args:
        logits: Logits by column, divided by the temperature.
        ids: Id of each column.
        noise: Uniform noise of an id.
        temperature: 0 for the most probable id.
        top_k: Number of most probable ids to sample from; 0 for all.
        top_p: Mass of the most probable ids to sample from.
    """
    ranked = sorted((column for column in range(len(ids)) if logits[column] > -math.inf), key=lambda c: -logits[c])
    if temperature == 0:
        return ids[ranked[0]], logits[ranked[0]] - logits[ranked[1]]
    weights = [math.exp(logits[column] - logits[ranked[0]]) for column in ranked[: top_k or None]]
    before = [0.0, *(mass / math.fsum(weights) for mass in accumulate(weights[:-1]))]
    if top_p < 1 and min(abs(mass - top_p) for mass in before) < MARGIN:
        return ids[ranked[0]], 0.0
    nucleus = [column for column, mass in zip(ranked, before, strict=False) if mass < top_p or top_p == 1]
    scores = sorted(((logits[c] - math.log(-math.log(noise(ids[c]))), c) for c in nucleus), reverse=True)
    return ids[scores[0][1]], scores[0][0] - scores[1][0] if len(scores) > 1 else math.inf


class Noise:
    """Replacement for the authors' `sample_token` with the engine's noise.

    Attributes:
        lead: Smallest margin by which the best candidate beat the second-best.
    """

    def __init__(self, kind: str, seed: int, num_prompt_rows: int):
        record = config(kind)
        self._record = record
        self._seed = seed
        self._position = num_prompt_rows - 1
        self._num_codebooks = record["n_vq"]
        self._size = record["audio_vocab_size"]
        self._text: list[int] = []
        self.lead = math.inf

    def __call__(
        self,
        logits: torch.Tensor,
        prev_tokens: torch.Tensor | None = None,
        repetition_penalty: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        do_sample: bool = True,
    ) -> torch.Tensor:
        """Return the sampled ids, [N], for logits [N, V] that are already divided by the temperature."""
        assert repetition_penalty == 1.0
        options = (1.0 if do_sample else 0.0), top_k, top_p
        if prev_tokens is None:
            return self._text_ids(logits, *options)
        streams = [1] * len(logits)
        if prev_tokens.ndim == 3:  # the first codebook is sampled apart
            num_delays = self._text[:-1].count(self._record["audio_assistant_delay_slot_token_id"])
            frame = len(self._text) - 2
            streams = [*range(1 + max(1, num_delays), 2 + min(frame, self._num_codebooks - 1))]
        first = self._record["language_config"]["vocab_size"]
        starts = [first + (stream - 1) * (self._size + 1) for stream in streams]
        drawn = [
            self._draw(row, range(start, start + len(row)), stream, *options) - start
            for row, start, stream in zip(logits, starts, streams, strict=True)
        ]
        return torch.tensor(drawn, dtype=torch.long)

    def _text_ids(self, logits: torch.Tensor, *options: float) -> torch.Tensor:
        record = self._record
        self._position += 1
        if not len(logits):  # the id follows from the delay
            self._text.append(record["audio_assistant_delay_slot_token_id"])
            return torch.zeros(0, dtype=torch.long)
        slots = record["audio_assistant_gen_slot_token_id"], record["audio_assistant_delay_slot_token_id"]
        if not self._text:
            token = record["audio_start_token_id"]
        elif logits[0, slots[0]] == -math.inf:
            token = record["im_end_token_id"]
        else:
            token = self._draw(logits[0], range(logits.shape[1]), 0, *options)
        self._text.append(token)
        return torch.tensor([token])

    def _draw(self, logits: torch.Tensor, ids: range, stream: int, *options: Any) -> int:
        found, lead = draw(
            logits.tolist(), ids, lambda token: uniform(self._seed, self._position, stream, token), *options
        )
        self.lead = min(self.lead, lead)
        return found


def load(kind: str) -> Any:
    """Return the authors' model with a release's weights, in float64."""
    module = authors()
    made: Any = module.MossTTSDelayModel(module.MossTTSDelayConfig(**config(kind)))
    made.load_state_dict({name: torch.from_numpy(each) for name, each in model_tensors(kind).items()})
    return made.double().eval()


def processor(folder: Path, kind: str, codec: Any = None) -> Any:
    """Return the authors' processor for a release."""
    module = authors()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    tokenizer.chat_template = CHAT
    made = object.__new__(module.MossTTSDelayProcessor)
    made.tokenizer = tokenizer
    made.audio_tokenizer = codec
    made.model_config = module.MossTTSDelayConfig(**config(kind))
    for key in (
        "audio_start",
        "audio_end",
        "audio_user_slot",
        "audio_assistant_gen_slot",
        "audio_assistant_delay_slot",
    ):
        setattr(made, f"{key}_token", TOKENS[f"{key}_token_id"])
    return made


def prompts(made: Any, kind: str) -> list[np.ndarray]:
    """Return prompts [P, 1 + K] without and with a recording, an instruction and a language."""
    codes = torch.from_numpy(heard_codes(kind).T.copy())
    messages = [
        made.build_user_message(text=TEXT),
        made.build_user_message(text=TEXT, reference=[codes], instruction=INSTRUCTION, language=LANGUAGE),
    ]
    return [made([[message]], mode="generation")["input_ids"][0].numpy() for message in messages]


def reply(model: Any, kind: str, prompt: np.ndarray, seed: int, mode: str) -> tuple[np.ndarray, float]:
    """Return the rows of a reply from its first frame on, [T, 1 + K], and the smallest margin of a decision."""
    module = authors()
    noise = Noise(kind, seed, len(prompt))
    own = module.sample_token
    module.sample_token = noise
    greedy: dict[str, Any] = {"text_temperature": 0.0, "audio_temperature": 0.0} if mode == "greedy" else {}
    try:
        ids = torch.from_numpy(prompt)[None]
        mask = torch.ones(1, len(prompt), dtype=torch.bool)
        [(start, rows)] = model.generate(ids, mask, max_new_tokens=MAX_ROWS, **greedy)
    finally:
        module.sample_token = own
    return rows[start + 1 :].numpy(), noise.lead


def load_codec() -> Any:
    """Return the authors' codec with the weights of the small release."""
    module = import_module("moss_codec.modeling_moss_audio_tokenizer")
    made: Any = module.MossAudioTokenizerModel(module.MossAudioTokenizerConfig(**codec_config()))
    made.load_state_dict({name: torch.from_numpy(each) for name, each in codec_tensors().items()})
    return made.eval()


def random_codes(batch: int = 2) -> np.ndarray:
    """Return codes to decode, [B, K, T]."""
    num_codebooks, num_codes, _ = KINDS["small"]
    return np.random.default_rng(4).integers(num_codes, size=(batch, num_codebooks, NUM_DECODED))


@torch.no_grad()
def replies() -> dict[str, Any]:
    """Generate the arrays of the fixture."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"inputs": digest(inputs())}
    codec = load_codec()
    found = codec.encode(torch.from_numpy(recording())[None, None], return_dict=True)
    values["codes"] = found.audio_codes[:, 0, : int(found.audio_codes_lengths[0])].numpy()
    decoded = codec.decode(torch.from_numpy(random_codes()).transpose(0, 1), return_dict=True).audio
    values["pcm"] = decoded[:, 0, ::STRIDE].numpy()
    with tempfile.TemporaryDirectory() as root:
        for kind in ("small", "deep"):
            made = processor(write_release(Path(root, kind, "release"), kind), kind, codec)
            if kind == "small":
                levelled = made.encode_audios_from_wav([torch.from_numpy(recording())[None]], 24_000)
                values["levelled_codes"] = levelled[0].numpy().T
            model = load(kind)
            for number, prompt in enumerate(prompts(made, kind)):
                values[f"{kind}.prompt{number}"] = prompt
                for seed, mode in REPLIES:
                    rows, lead = reply(model, kind, prompt, seed, mode)
                    assert lead > 1e-4, f"{kind}, prompt {number}, {seed}, {mode}: nearly undecided ({lead})"
                    values[f"{kind}.{number}.{seed}.{mode}"] = rows
    normalize = import_module("moss_tts.moss_tts_delay.tts_robust_normalizer_single_script").normalize_tts_text
    values["texts"] = np.array([normalize(text) for text in TEXTS])
    return values


if __name__ == "__main__":
    run_arrays(__doc__, replies, TOLERANCE)
