"""Small random VibeVoice-ASR releases in the published layout, and transformers' class and processor for them."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceAsrConfig,
    VibeVoiceAsrProcessor,
)
from transformers import VibeVoiceAsrForConditionalGeneration as Model

from lab.releases.random_tensors import random_tensors
from plugins.vibevoice.tests.vibevoice_release import TOKENIZER, tensor, write_tokenizer
from stretto.weights.loading import shapes_of

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>")
END_OF_REPLY, IM_START, IM_END, BEGIN, END, AUDIO = range(256, 262)
NUM_IDS = 272
HOP = 3200
NUM_NUMBERS = 8
NUM_FEATURES = 12
DEVIATION = 0.5
ENCODER = "tokenizer_encoder"
LINE_END = sorted(ByteLevel.alphabet()).index("Ċ")  # the last row of a prompt
# What a release of the size `scripted` writes about every recording.
SCRIPT = (
    "assistant\n",
    '[{"Start":0,"End":1.25,"Speaker":0,"Content":"Good morning."},',
    '{"Start":1.25,"End":2.5,"Speaker":1,"Content":"Hello, \\"you\\"."},',
    '{"Start":2.5,"End":3.0,"Content":"[Silence]"}]',
)
# The rules of the published template for one user turn.
TEMPLATE = """{%- set keys = 'transcribe it with these keys: Start time, End time, Speaker ID, Content' -%}
{%- set info = namespace(text=none) -%}
{%- for part in messages[0].content if part.type == 'text' -%}{%- set info.text = part.text -%}{%- endfor -%}
{{- '<|im_start|>system\n' -}}
{{- 'You are a helpful assistant that transcribes audio input into text output in JSON format.<|im_end|>\n' -}}
{{- '<|im_start|>user\n<|object_ref_start|><|box_start|><|object_ref_end|>\n' -}}
{{- 'This is a <|AUDIO_DURATION|> seconds audio,' -}}
{%- if info.text -%}{{- ' with extra info: ' + info.text + '\n\nPlease ' + keys -}}
{%- else -%}{{- ' please ' + keys -}}{%- endif -%}
{{- '<|im_end|>\n' -}}"""


def config(size: str = "small") -> VibeVoiceAsrConfig:
    """Return the config of a release whose sizes are small."""
    width = 96 if size == "other" else 64
    encoder = {"model_type": "vibevoice_acoustic_tokenizer_encoder", **TOKENIZER, "vae_std": DEVIATION}
    return VibeVoiceAsrConfig(
        acoustic_tokenizer_encoder_config=dict(encoder),
        semantic_tokenizer_encoder_config=encoder | {"hidden_size": NUM_FEATURES},
        text_config={
            "model_type": "qwen2",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": width // 32,
            "num_key_value_heads": 1,
            "vocab_size": NUM_IDS,
            "max_position_embeddings": 1024,
            "rope_theta": 1e6,
        },
        audio_token_id=AUDIO,
        audio_bos_token_id=BEGIN,
        audio_eos_token_id=END,
    )


def model_of(size: str = "small") -> Model:
    """Return a random model; one of the size `scripted` writes SCRIPT after every prompt."""
    model = Model(config(size)).eval()
    with torch.no_grad():
        others = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if ENCODER not in name}
        random = random_tensors(others, seed=1)
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random[name]) if name in others else tensor(name, parameter.shape))
            if name.endswith("linear_2.weight") and name in others:
                parameter.mul_(4)  # so that replies depend on the recording
        core = model.model
        if size == "scripted":
            for layer in core.language_model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            core.language_model.norm.weight.fill_(1)
            table = core.language_model.embed_tokens.weight
            words = [LINE_END, *range(len(SPECIAL) + 256, len(SPECIAL) + 256 + len(SCRIPT)), END_OF_REPLY]
            model.lm_head.weight.zero_()
            for word, following in itertools.pairwise(words):
                model.lm_head.weight[following] = table[word]
    return model


def published_name(name: str) -> str:
    """Return the published name of a tensor of transformers' class.

    The class reads these names, but version 5.19 writes others.
    """
    if name.startswith("model.language_model."):
        return f"language_model.{name.replace('language_model', 'model', 1).replace('model.model.', 'model.', 1)}"
    return f"language_model.{name}" if name.startswith("lm_head.") else name.removeprefix("model.")


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published release's tensors, whose sizes are the defaults of transformers' classes."""
    text = {"model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944}
    text |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    shapes = shapes_of(Model, VibeVoiceAsrConfig(text_config=text))
    return {published_name(name): shape for name, shape in shapes.items()}


def write_release(folder: Path, size: str = "small") -> Path:
    """Write a release and return its folder."""
    model = model_of(size)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tensors = {published_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder, SPECIAL, SCRIPT if size == "scripted" else ())
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    return [
        "vibevoice-asr",
        "--model",
        str(folder),
        "--config",
        str(folder / "config.json"),
        "--tokenizer",
        str(folder),
    ]


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a noisy tone, float32 [n] at 24 kHz."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * 24_000)) / 24_000
    tone = 0.2 * np.sin(2 * np.pi * (150 + 60 * (1 + seed) * time) * time)
    return (tone + 0.05 * draw.standard_normal(len(time))).astype(np.float32)


class Theirs:
    """transformers' processor with the tokenizer of a checkpoint, and its model with the weights of a release."""

    def __init__(self, release: Path):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(release / "tokenizer.json"), pad_token=SPECIAL[0], eos_token=SPECIAL[0]
        )
        self.processor = VibeVoiceAsrProcessor(VibeVoiceAcousticTokenizerFeatureExtractor(), tokenizer, TEMPLATE)
        self.model = Model.from_pretrained(release).eval()

    def inputs(self, pcm: np.ndarray, prompt: str | None = None) -> dict[str, Tensor]:
        """Return the model's inputs for a recording, float32 [n] at 24 kHz."""
        return dict(self.processor.apply_transcription_request(pcm, prompt))

    @torch.no_grad()
    def reply(self, inputs: Mapping[str, Tensor], noise: np.ndarray, num_ids: int) -> tuple[list[int], np.ndarray]:
        """Return the greedy ids of `generate`, and the logits of each [n, V].

        Args:
            noise: Noise of the latents, float64 [1 + T * D], which replaces transformers' random numbers.
        """
        drawn = torch.from_numpy(noise).float()
        scale = patch.object(torch, "randn", lambda *sizes, **options: drawn[:1])
        with scale, patch.object(torch, "randn_like", lambda latents: drawn[1:].view(latents.shape)):
            output = self.model.generate(
                **inputs,
                max_new_tokens=num_ids,
                do_sample=False,
                eos_token_id=END_OF_REPLY,
                pad_token_id=END_OF_REPLY,
                output_scores=True,
                return_dict_in_generate=True,
            )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.cat(output.scores).numpy()
