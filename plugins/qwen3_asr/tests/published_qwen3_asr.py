"""transformers' processor and class of Qwen3-ASR for a small release in the authors' layout."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASRConfig
from transformers.models.qwen3_asr.feature_extraction_qwen3_asr import Qwen3ASRFeatureExtractor
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASRForConditionalGeneration
from transformers.models.qwen3_asr.processing_qwen3_asr import Qwen3ASRProcessor

from lab.releases.random_qwen3_tts import SPECIAL
from plugins.qwen3_asr.lab.random_qwen3_asr import config, tensors

ENDS = [SPECIAL["<|im_end|>"], SPECIAL["<|endoftext|>"]]
NAMED = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
# The rules of the published template: a system turn, which may be empty, a recording, and the beginning of the reply.
TEMPLATE = """{%- set context = namespace(text='') -%}
{%- for message in messages if message.role == 'system' -%}
{%- set context.text = message.content[0].text -%}
{%- endfor -%}
{{- '<|im_start|>system\n' + context.text + '<|im_end|>\n<|im_start|>user\n' -}}
{{- '<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n' -}}
{%- for message in messages if message.role == 'assistant' -%}
{{- message.content[0].text -}}
{%- endfor -%}"""
# Names in the authors' layout, and in that of transformers.
RENAMED = {
    "thinker.audio_tower.proj1.": "model.multi_modal_projector.linear_1.",
    "thinker.audio_tower.proj2.": "model.multi_modal_projector.linear_2.",
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.model.": "model.language_model.",
    "thinker.lm_head.": "lm_head.",
}
UNUSED = ("conv_chunksize", "max_source_positions")  # of the authors' `audio_config`


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a noisy tone, float32 [n] at 16 kHz."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    tone = 0.2 * np.sin(2 * np.pi * (150 + 60 * (1 + seed) * time) * time)
    return (tone + 0.05 * draw.standard_normal(len(time))).astype(np.float32)


def transformers_name(name: str) -> str:
    """Return the name of a published tensor in transformers' layout."""
    prefix = next(prefix for prefix in RENAMED if name.startswith(prefix))
    return RENAMED[prefix] + name.removeprefix(prefix)


def transformers_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a published config.json in transformers' layout."""
    thinker = record["thinker_config"]
    audio = {name: value for name, value in thinker["audio_config"].items() if name not in UNUSED}
    return {
        "model_type": "qwen3_asr",
        "architectures": record["architectures"],
        "audio_config": audio | {"model_type": "qwen3_asr_encoder", "max_position_embeddings": 13},
        "text_config": thinker["text_config"] | {"model_type": "qwen3", "rope_scaling": None},
        "audio_token_id": thinker["audio_token_id"],
        "eos_token_id": ENDS,
        "pad_token_id": ENDS[0],
        "tie_word_embeddings": True,
    }


class Processor:
    """transformers' processor with the tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Path, num_mel_bins: int = 32):
        tokenizer = Qwen2Tokenizer.from_pretrained(checkpoint, extra_special_tokens=NAMED)
        extractor = Qwen3ASRFeatureExtractor(feature_size=num_mel_bins)
        self.processor = Qwen3ASRProcessor(extractor, tokenizer, TEMPLATE)

    def inputs(self, pcm: np.ndarray, language: str | None = None, prompt: str | None = None) -> dict[str, Tensor]:
        """Return the model's inputs for a recording, float32 [n] at 16 kHz."""
        return dict(self.processor.apply_transcription_request(pcm, language, prompt))


class Theirs:
    """transformers' class with the random weights of a small release."""

    def __init__(self, size: str):
        record = config(size)
        self.model = Qwen3ASRForConditionalGeneration(Qwen3ASRConfig(**transformers_config(record))).eval()
        weights = {transformers_name(name): torch.from_numpy(tensor) for name, tensor in tensors(record).items()}
        missing, unknown = self.model.load_state_dict(weights, strict=False)
        assert not unknown
        assert not missing

    @torch.no_grad()
    def reply(
        self, inputs: Mapping[str, Tensor], num_ids: int, unused: Sequence[int] | None = None
    ) -> tuple[list[int], np.ndarray]:
        """Return the greedy ids of `generate`, none of which is `unused`, and the logits of each [n, V]."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=num_ids,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=ENDS[0],
            suppress_tokens=unused,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.cat(output.scores).numpy()


def streamed(
    transcribe: Callable[[np.ndarray, str], str], tokenizer: Any, pcm: np.ndarray, chunk: int = 32_000
) -> list[tuple[str, str]]:
    """Return the beginning and the whole text of each request of the authors' streaming (`streaming_transcribe`).

    Args:
        transcribe: Function that returns the text after the beginning, given samples and the beginning.
        pcm: Samples, float32 [n] at 16 kHz.
        chunk: Number of samples between two requests.
    """
    texts = list[tuple[str, str]]()
    whole = ""
    for number, start in enumerate(range(0, len(pcm), chunk)):
        beginning = ""
        num_open = 5
        ids = tokenizer.encode(whole)
        while number >= 2 and num_open < len(ids):
            beginning = tokenizer.decode(ids[: len(ids) - num_open])
            if "\ufffd" not in beginning:
                break
            beginning = ""
            num_open += 1
        whole = beginning + transcribe(pcm[: start + chunk], beginning)
        texts.append((beginning, whole))
    return texts
