"""A small converted Qwen3-Omni talker, and results of transformers' classes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeForConditionalGeneration as Whole
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeTalkerConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

from lab.releases.random_qwen3_tts import SPECIAL
from plugins.qwen3_omni.lab.random_qwen3_omni import AUDIO, ROLES, small_config, tensors, write_release
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing.depth_reference import DepthReference
from stretto.testing.reference import ReferenceModel
from stretto_qwen3_omni.qwen3_omni_talker.family import TalkerVocabulary
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts

START, END, NEWLINE = SPECIAL["<|im_start|>"], SPECIAL["<|im_end|>"], 198


def command(folder: Path, out: Path) -> list[str]:
    """Return the converter's arguments for a release."""
    files = ("--model", str(folder / "model.safetensors.index.json"), "--config", str(folder / "config.json"))
    return ["qwen3-omni", *files, "--tokenizer", str(folder), "--out", str(out)]


def convert(folder: Path, **changes: Any) -> Path:
    """Write the small release to `folder`, convert it, and return the talker's checkpoint."""
    release = write_release(folder / "release", small_config() | changes)
    assert main(command(release, folder / "converted")) == 0
    return folder / "converted" / "talker"


def turn(role: str, ids: Sequence[int]) -> list[int]:
    """Return a turn of a conversation."""
    return [START, ROLES[role], NEWLINE, *ids, END, NEWLINE]


@dataclass(frozen=True)
class Case:
    """A conversation, the hidden states of its audio, and a reply."""

    conversation: list[int]
    words: list[int]
    voice: str
    states: np.ndarray | None = None

    def prompt(self, checkpoint: Path, num_frames: int) -> Prompt:
        """Return a greedy request for at most `num_frames` frames."""
        made = TalkerPrompts.at(checkpoint).write(self.conversation, self.words, self.voice, self.states)
        audio = replace(made.sampling.audio, temperature=0.0, max_rows=num_frames)
        return replace(made, sampling=replace(made.sampling, audio=audio, depth=CodeSampling(0.0), seed=0))


def cases() -> dict[str, Case]:
    """Return cases: only words, audio, two user turns (one with two recordings), and a reply of one word."""
    random = np.random.default_rng(5)

    def words(number: int) -> list[int]:
        return random.integers(0, 200, number).tolist()

    def states(number: int) -> np.ndarray:
        return random.standard_normal((number, 96), dtype=np.float32)

    begin = [START, ROLES["assistant"], NEWLINE]
    heard = turn("user", [*words(2), *[AUDIO] * 9, *words(3)])
    earlier = turn("user", [*[AUDIO] * 4, *words(2), *[AUDIO] * 3]) + turn("assistant", words(5))
    return {
        "words": Case(turn("system", words(4)) + turn("user", words(12)) + begin, words(9), "ethan"),
        "audio": Case(heard + begin, words(30), "chelsie", states(9)),
        "turns": Case(earlier + heard + begin, words(4), "ethan", states(16)),
        "one word": Case(turn("user", words(2)) + begin, words(1), "chelsie"),
    }


@dataclass(frozen=True)
class Reply:
    """Reply codes [T, Q], and raw logits `first` [n, C + 1] and `others` [T, Q - 1, C] of ids that may be sampled."""

    codes: np.ndarray
    first: np.ndarray
    others: np.ndarray


class Theirs:
    """transformers' talker with the small release's tensors, and the thinker's embedding table."""

    def __init__(self) -> None:
        self.record = small_config()
        drawn = {name: torch.from_numpy(tensor) for name, tensor in tensors(self.record).items()}
        talker_config = Qwen3OmniMoeTalkerConfig(**self.record["talker_config"])
        ids = {f"{name}_token_id": self.record[f"{name}_token_id"] for name in ("tts_pad", "tts_bos", "tts_eos")}
        self.config = SimpleNamespace(talker_config=talker_config, **ids)
        self.table = drawn["thinker.model.embed_tokens.weight"]
        self.talker = Qwen3OmniMoeTalkerForConditionalGeneration(talker_config).float().eval()
        mine = {name.removeprefix("talker."): tensor for name, tensor in drawn.items() if name.startswith("talker.")}
        self.talker.load_state_dict(self._together(mine))

    def _together(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join the experts of a layer in a single tensor, as transformers does since 5.0."""
        text = self.record["talker_config"]["text_config"]
        for layer in range(text["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.mlp.experts."
            gates, ups, downs = (
                torch.stack([published.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(text["num_experts"])])
                for part in ("gate", "up", "down")
            )
            published |= {f"{prefix}gate_up_proj": torch.cat([gates, ups], 1), f"{prefix}down_proj": downs}
        return published

    @torch.no_grad()
    def inputs(self, case: Case) -> tuple[Tensor, Tensor, Tensor]:
        """Return the talker inputs that transformers' `generate` makes with its own functions.

        Returns:
            The prompt [1, P, H], the words added to the first frames [1, n, H], and the row added to later ones [1, 1,
            H].
        """
        ids = torch.tensor([case.conversation + case.words])
        embedded, states = self.table[ids], torch.zeros(1, ids.shape[1], self.table.shape[1])
        marks = [self.record[f"tts_{name}_token_id"] for name in ("bos", "eos", "pad")]
        bos, eos, pad = self.talker.text_projection(self.table[torch.tensor([marks])]).chunk(3, 1)
        is_heard, parts, at = ids == AUDIO, [], 0
        states[is_heard] = torch.from_numpy(case.states) if case.states is not None else states[is_heard]
        starts = [*(ids[0] == START).nonzero()[:, 0].tolist(), len(case.conversation)]
        for at, stop in itertools.pairwise(starts):
            if ids[0, at + 1] == ROLES["user"]:
                parts.append(Whole._get_talker_user_parts(self, at, stop, is_heard, states, embedded))
        voice = self.config.talker_config.speaker_id[case.voice]
        said = Whole._get_talker_assistant_parts(self, at, ids.shape[1], voice, embedded, pad, bos, eos)
        return torch.cat([*parts, said[0]], 1), said[2], pad

    def reply(self, case: Case, num_frames: int) -> Reply:
        """Return the talker's greedy reply, whose last code begins a frame that is never completed."""
        prompt, trailing, pad = self.inputs(case)
        config, eos = self.config.talker_config, self.config.talker_config.codec_eos_token_id
        num_ids = config.text_config.vocab_size
        num_codes = num_ids - 1024
        first, others = list[Tensor](), list[Tensor]()
        heads = [(self.talker.codec_head, first), *((head, others) for head in self.talker.code_predictor.lm_head)]
        hooks = [head.register_forward_hook(_keep(into)) for head, into in heads]
        answer = self.talker.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            trailing_text_hidden=trailing,
            tts_pad_embed=pad,
            max_new_tokens=num_frames + 1,
            do_sample=False,
            repetition_penalty=1.05,
            suppress_tokens=[each for each in range(num_codes, num_ids) if each != eos],
            eos_token_id=eos,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        for hook in hooks:
            hook.remove()
        codes = [each[-1] for each in answer.hidden_states if each[-1] is not None]
        drawn = torch.stack(first)[:, [*range(num_codes), eos]]
        shape = len(codes), config.num_code_groups - 1, num_codes
        return Reply(torch.cat(codes).numpy(), drawn.numpy(), torch.stack(others).reshape(shape).numpy())


def _keep(into: list[Tensor]) -> Any:
    return lambda module, inputs, output: into.append(output[0, -1].clone())


class TalkerReference(ReferenceModel):
    """The slow reference over transformers' talker, which reads the checkpoint's table and draws as the checkpoint's
    depth transformer would: both as they were converted."""

    def __init__(self, folder: Path, max_model_len: int):
        from safetensors.torch import load_file

        prompts = TalkerPrompts(TalkerVocabulary.from_record(config_at(folder)[VOCABULARY]))
        self.family, self.max_model_len = prompts.family, max_model_len
        weights = load_file(next(folder.glob("*.safetensors")))
        self.theirs = Theirs()
        layers: Any = self.theirs.talker.model
        layers.embed_tokens = nn.Embedding.from_pretrained(weights["model.embed_tokens.weight"])
        self.model: Any = SimpleNamespace(model=layers)
        self.bias, self.depth = None, DepthReference(self.family, weights)

    @torch.no_grad()
    def encode_audio(self, prompt: Prompt) -> dict[int, Tensor]:
        """Return rows of hidden states by position."""
        rows = {}
        for audio in prompt.audios:
            made = self.theirs.talker.hidden_projection(torch.from_numpy(audio.features))
            rows |= {audio.first_row + index: row for index, row in enumerate(made)}
        return rows
