"""A small converted Qwen3-Omni release, its processor in transformers, and replies of transformers' thinker."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

from lab.releases.random_qwen3_tts import SPECIAL
from plugins.qwen3_omni.lab.random_qwen3_omni import small_config, tensors, write_release
from plugins.qwen3_omni.tests.published_qwen3_omni import command
from stretto.convert.command import main
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.prompting import Piece, PromptRows
from stretto.records.prompt import Prompt
from stretto.testing.reference import ReferenceModel
from stretto_qwen3_omni.qwen3_omni.image import MAX_PIXELS, MIN_PIXELS
from stretto_qwen3_omni.qwen3_omni.prompt import open_template

END = SPECIAL["<|im_end|>"]
NAMED = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
# The rules of the published template for text, audio and images, without tools. Earlier thoughts are left out.
TEMPLATE = """{%- for message in messages -%}
{%- set turn = namespace(text='') -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%}{%- set turn.text = turn.text + '<|audio_start|><|audio_pad|><|audio_end|>' -%}
{%- elif part.type == 'image' -%}{%- set turn.text = turn.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
{%- else -%}{%- set turn.text = turn.text + part.text -%}{%- endif -%}
{%- endfor -%}
{%- if message.role == 'assistant' and '</think>' in turn.text -%}
{%- set turn.text = turn.text.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}
{{- '<|im_start|>' + message.role + '\n' + turn.text + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""


def convert(folder: Path, config: Mapping[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a small release to `folder`, convert it, and return the checkpoint."""
    release = write_release(folder / "release", config or small_config(), seed)
    assert main(command(release, folder / "converted")) == 0
    return folder / "converted"


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a noisy tone, float32 [n] at 16 kHz."""
    draw, time = np.random.default_rng(seed), np.arange(int(seconds * 16_000)) / 16_000
    tone = 0.2 * np.sin(2 * np.pi * (150 + 60 * (1 + seed) * time) * time)
    return (tone + 0.05 * draw.standard_normal(len(time))).astype(np.float32)


def conversations() -> dict[str, tuple[Piece, ...]]:
    """Return conversations by name, with text only, audio only, both in either order, and several turns."""
    heard = {name: Piece("user", "audio", pcm=speech(*given)) for name, given in RECORDINGS.items()}
    ask = Piece("user", "text", text="what is ass tant? hello user")
    system = Piece("system", "text", text="You are an assistant.\n\nBe terse.")
    said = Piece("assistant", "text", text="hello world")
    return {
        "text": (ask,),
        "system": (system, replace(ask, text="\n\n hello\n user ")),
        "audio": (heard["short"],),
        "audio, text": (system, heard["odd"], ask),
        "text, audio": (ask, heard["long"]),
        "thoughts": (ask, replace(said, text="<think>\nhm\n</think>\n\nhello world"), replace(ask, text="why?")),
        "turns": (system, heard["odd"], ask, said, heard["short"], replace(ask, text=" why?")),
    }


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image of coloured noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sights() -> dict[str, tuple[Piece, ...]]:
    """Return conversations with images by name: alone, of several sizes, with audio, and in several turns."""
    asked, said = conversations()["text"][0], Piece("assistant", "text", text="hello world")
    heard = conversations()["audio"][0]
    wide, tall = (Piece("user", "image", pixels=picture(*size)) for size in ((40, 90, 1), (150, 33, 2)))
    return {
        "image": (wide,),
        "image, text": (tall, asked),
        "text, images": (asked, tall, wide, replace(asked, text="why?")),
        "audio, image": (heard, wide, asked),
        "image turns": (wide, asked, said, heard, replace(asked, text=" why?"), tall),
    }


RECORDINGS = {"short": (0.31, 1), "odd": (1.2345, 2), "long": (5.7, 3)}


def messages_of(pieces: tuple[Piece, ...]) -> list[dict[str, Any]]:
    """Return a conversation as transformers' chat templates take it; pieces of the same role are parts of one turn."""
    messages = list[dict[str, Any]]()
    for piece in pieces:
        if not messages or messages[-1]["role"] != piece.role:
            messages.append({"role": piece.role, "content": []})
        part = {"type": "audio"} if piece.pcm is not None else {"type": "image"}
        part = part if piece.text is None else {"type": "text", "text": piece.text}
        messages[-1]["content"].append(part)
    return messages


class Processor:
    """transformers' processor with the tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Path, num_mel_bins: int = 32):
        self._made = Qwen3OmniMoeProcessor.__new__(Qwen3OmniMoeProcessor)
        self._made.chat_template = TEMPLATE
        self._made.tokenizer = Qwen2Tokenizer.from_pretrained(checkpoint, extra_special_tokens=NAMED)
        self._made.feature_extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
        size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
        self._made.image_processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=size
        )
        # The installed packages lack torchvision, which the processor of video needs.
        self._made.video_processor = SimpleNamespace(merge_size=2, model_input_names=[])
        for name in NAMED:
            setattr(self._made, name, getattr(self._made.tokenizer, name))

    def inputs(self, pieces: tuple[Piece, ...], extracts_alone: bool = True) -> dict[str, Tensor]:
        """Return the thinker's inputs for a conversation: ids [1, P], and features [n, M, F] if there is audio.

        Args:
            pieces: The conversation.
            extracts_alone: True to extract the features of each recording in a call of its own. In one call, a shorter
                recording is padded with silence, which is in its last window.
        """
        text = self._made.apply_chat_template(messages_of(pieces), tokenize=False, add_generation_prompt=True)
        heard = [piece.pcm for piece in pieces if piece.pcm is not None]
        seen = [piece.pixels for piece in pieces if piece.pixels is not None]
        made = dict(self._made(text=text, audio=heard or None, images=seen or None, return_tensors="pt"))
        for index, pcm in enumerate(heard if extracts_alone else ()):
            own = self._made(text=NAMED["audio_token"], audio=[pcm], return_tensors="pt")["input_features"][0]
            made["input_features"][index, :, : own.shape[1]] = own
        return made

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._made.tokenizer.decode(ids, skip_special_tokens=True)


class Theirs:
    """transformers' thinker with the tensors of a small release."""

    def __init__(self, record: Mapping[str, Any] | None = None, seed: int = 1) -> None:
        self.record = record or small_config()
        config = Qwen3OmniMoeThinkerConfig(**self.record["thinker_config"])
        self.thinker: Any = Qwen3OmniMoeThinkerForConditionalGeneration(config).float().eval()
        drawn = {name: torch.from_numpy(tensor) for name, tensor in tensors(self.record, seed).items()}
        mine = {name.removeprefix("thinker."): each for name, each in drawn.items() if name.startswith("thinker.")}
        self.thinker.load_state_dict(self._together(mine))

    def _together(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join the experts of a layer in a single tensor, as transformers does since 5.0."""
        text = self.record["thinker_config"]["text_config"]
        for layer in range(text["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.mlp.experts."
            gates, ups, downs = (
                torch.stack([published.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(text["num_experts"])])
                for part in ("gate", "up", "down")
            )
            published |= {f"{prefix}gate_up_proj": torch.cat([gates, ups], 1), f"{prefix}down_proj": downs}
        return published

    @torch.no_grad()
    def reply(
        self, inputs: Mapping[str, Tensor], num_ids: int, repetition_penalty: float = 1.0
    ) -> tuple[list[int], np.ndarray]:
        """Return the greedy ids of `generate`, and the logits of each with the penalty [n, V]."""
        made = self.thinker.generate(
            **inputs,
            max_new_tokens=num_ids,
            eos_token_id=END,
            pad_token_id=END,
            repetition_penalty=repetition_penalty,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.cat(made.scores).numpy()


@dataclass(frozen=True)
class Written:
    """A checkpoint's prompts.

    Attributes:
        checkpoint: Folder of the checkpoint.
    """

    checkpoint: Path

    @property
    def family(self) -> Family:
        return family_at(self.checkpoint)

    def rows(self, pieces: tuple[Piece, ...]) -> PromptRows:
        """Return the rows of a conversation."""
        codec: Any = None  # unused
        return open_template(self.family, self.checkpoint, codec, "cpu").write(self.family.tasks[0], pieces, None)

    def prompt(self, pieces: tuple[Piece, ...], num_ids: int, **options: Any) -> Prompt:
        """Return a request for a greedy reply of at most `num_ids` ids."""
        made, task = self.rows(pieces), self.family.tasks[0]
        sampling = replace(task.sampling, text=replace(task.sampling.text, max_rows=num_ids), seed=0, **options)
        return Prompt(task.name, made.rows, sampling, audios=made.audios, images=made.images)


class ThinkerReference(ReferenceModel):
    """The slow reference over transformers' thinker."""

    def __init__(self, checkpoint: Path, max_model_len: int, theirs: Theirs):
        self.family, self.max_model_len, self.bias, self.depth = family_at(checkpoint), max_model_len, None, None
        self.theirs = theirs
        self.model: Any = SimpleNamespace(model=theirs.thinker.model, lm_head=theirs.thinker.lm_head)

    @torch.no_grad()
    def encode_audio(self, prompt: Prompt) -> dict[int, Tensor]:
        """Return the audio encoder's rows by position."""
        rows: dict[int, Tensor] = {}
        for audio in prompt.audios:
            features = torch.from_numpy(audio.features).T[None]
            mask = torch.ones(1, features.shape[2], dtype=torch.long)
            made = self.theirs.thinker.get_audio_features(features, mask).last_hidden_state
            rows |= {audio.first_row + index: row for index, row in enumerate(made)}
        return rows
