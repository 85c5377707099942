"""Generate a test fixture with greedy replies from the Qwen3-TTS package for small random releases.

    python -m lab.authors.qwen3_tts_replies tests/data/qwen3_tts_replies.npz

The script requires a separate environment: `pip install torch==2.13.0 transformers==4.57.3 accelerate==1.12.0 librosa
soundfile einops` and `pip install --no-deps qwen-tts==0.1.1` (https://github.com/QwenLM/Qwen3-TTS). sox, onnxruntime
and torchaudio are imported only for the 25 Hz tokenizer, so the script replaces them with stubs.

Each case has `prompt` [P, H], the talker's input embeddings; `codes` [T, K]; `first` [n, C + 1], raw logits for the
codes and the end id on stream 0; and `others` [T, K - 1, C], logits from the depth transformer.
"""

import importlib.machinery
import sys
import types
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import run_arrays
from lab.releases.random_qwen3_tts import SPECIAL, plain_ids, small_config, tensors

TEXT = "Go on, 7x."
INSTRUCTION = "low pitch"
REFERENCE = "mind"
NUM_TOKENS = 24  # tokens of stream 0; the last one has no frame
WIDTHS = {"custom_voice": 64, "voice_design": 96, "base": 96}
START = SPECIAL["<|im_start|>"]
END = SPECIAL["<|im_end|>"]
# assistant and user in the ids of `random_qwen3_tts.write_tokenizer`
ROLE = [START, 263, 198]
USER = [START, 266, 198]
GREEDY = dict.fromkeys(("top_k", "top_p", "temperature")) | {"do_sample": False}


def load_package() -> tuple[Any, Any]:
    """Return the package's config and model classes."""
    for name in ("sox", "onnxruntime", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["torchaudio"].compliance = sys.modules["torchaudio.compliance"]  # type: ignore[attr-defined]
    sys.modules["torchaudio.compliance"].kaldi = None  # type: ignore[attr-defined]
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    return Qwen3TTSConfig, Qwen3TTSForConditionalGeneration


def inputs(random: np.random.Generator, codes: int, codebooks: int) -> dict[str, np.ndarray]:
    """Return the inputs that the cases share: ids of texts, codes of two references, and an x-vector."""
    return {
        "words": np.array(plain_ids(TEXT)),
        "reference_words": np.array(plain_ids(REFERENCE)),
        "instruction": np.array(plain_ids(INSTRUCTION)),
        "codes": random.integers(0, codes, (codebooks, 7)),
        "long_codes": random.integers(0, codes, (codebooks, 23)),
        "x_vector": (0.5 * random.standard_normal(WIDTHS["base"])).astype(np.float32),
    }


def cases(kind: str, given: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the arguments of the package's `generate` for each case with this kind of release."""
    instruction = [torch.tensor([[*USER, *given["instruction"], END, 198]])]
    if kind == "custom_voice":
        return {
            "english": {"speakers": ["Ryan"], "languages": ["English"]},
            "auto, instructed": {"speakers": ["Ryan"], "languages": ["Auto"], "instruct_ids": instruction},
            "dialect": {"speakers": ["Eric"], "languages": ["Chinese"]},
        }
    if kind == "voice_design":
        return {"designed": {"languages": ["English"], "instruct_ids": instruction}}
    reference = [torch.tensor([[*ROLE, *given["reference_words"], END, 198]])]

    def clone(codes: np.ndarray | None) -> dict[str, Any]:
        heard = None if codes is None else torch.from_numpy(codes.T)
        return {
            "ref_ids": [None] if codes is None else reference,
            "voice_clone_prompt": {
                "ref_code": [heard],
                "ref_spk_embedding": [torch.from_numpy(given["x_vector"])],
                "x_vector_only_mode": [codes is None],
                "icl_mode": [codes is not None],
            },
        }

    return {
        "in context": {"languages": ["Auto"], **clone(given["codes"])},
        "in long context": {"languages": ["Auto"], **clone(given["long_codes"])},
        "x-vector": {"languages": ["English"], **clone(None)},
    }


class Recorder:
    """Runner of `generate` that records the talker's input embeddings and logits."""

    def __init__(self, model: Any):
        self.model = model
        self.steps = list[torch.Tensor]()
        self._stock = model.talker.generate
        model.talker.generate = self._generate
        for head in model.talker.code_predictor.lm_head:
            head.register_forward_hook(lambda module, given, out: self.steps.append(out[0, -1]))

    def _generate(self, **arguments: Any) -> Any:
        self.prompt = arguments["inputs_embeds"][0]
        self.out = self._stock(**arguments, output_logits=True, output_scores=True)
        return self.out

    def run(self, words: np.ndarray, end: int, **arguments: Any) -> dict[str, np.ndarray]:
        """Run one case and return its arrays."""
        self.steps.clear()
        ids = torch.tensor([[*ROLE, *words, END, 198, *ROLE]])
        subtalker = {f"subtalker_{name}": value for name, value in GREEDY.items()}
        subtalker["subtalker_dosample"] = subtalker.pop("subtalker_do_sample")
        codes = self.model.generate(input_ids=[ids], max_new_tokens=NUM_TOKENS, **GREEDY, **subtalker, **arguments)[0][
            0
        ]
        others = torch.stack(self.steps).view(-1, codes.shape[1] - 1, self.steps[0].shape[0])
        first = torch.cat(self.out.logits)
        best = torch.cat(self.out.scores).topk(2).values
        lead = float((best[:, 0] - best[:, 1]).min())
        kept = torch.tensor([*range(others.shape[2]), end])
        return {
            "prompt": self.prompt.numpy(),
            "codes": codes.numpy().astype(np.int16),
            "first": first[:, kept].numpy(),
            "others": others[: len(codes)].numpy(),
            "lead": np.array(lead),
        }


@torch.no_grad()
def replies() -> dict[str, np.ndarray]:
    torch.set_num_threads(1)  # steps are too small to parallelise
    config_class, model_class = load_package()
    given = inputs(np.random.default_rng(0), 32, 4)
    made = dict(given)
    for kind, hidden in WIDTHS.items():
        record = small_config(kind, hidden)
        config = config_class(**{name: value for name, value in record.items() if name != "model_type"})
        config._attn_implementation = "eager"
        model = model_class(config).eval()
        weights = {name: torch.from_numpy(tensor) for name, tensor in tensors(record).items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("speaker_encoder.") for name in missing), missing
        recorder = Recorder(model)
        for name, arguments in cases(kind, given).items():
            for is_streaming in (False, True):
                label = f"{kind}/{name}/{'streaming' if is_streaming else 'whole'}"
                end = record["talker_config"]["codec_eos_token_id"]
                found = recorder.run(given["words"], end, non_streaming_mode=not is_streaming, **arguments)
                print(f"{label}: {len(found['prompt'])} rows, {len(found['codes'])} frames, lead {found['lead']:.4f}")
                made |= {f"{label}/{what}": array for what, array in found.items()}
    return made


if __name__ == "__main__":
    run_arrays(__doc__, replies, tolerance=1e-4)
