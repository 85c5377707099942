"""Replies of small models of each family with one key head, and with three heads in layers of odd sizes.

Such shapes are among the recorded replies of Pocket TTS (one key head, and a width of 56 with three heads), Phonon
(three heads, which have keys of their own in each release) and VITA-Audio (one key head), and in the tests of Higgs
Audio v2 (one key head).
"""

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from lab.releases import random_espnet, random_qwen3_tts
from plugins.chatterbox.lab import random_chatterbox
from plugins.cosyvoice3.lab import random_cosyvoice3
from plugins.fish_s2.lab import random_fish_s2
from plugins.higgs_audio.lab import random_higgs_audio_v3
from plugins.moss.lab import random_moss, random_moss_local, random_moss_realtime
from plugins.qwen3_omni.lab import random_qwen3_omni
from plugins.qwen3_omni.tests import published_qwen3_omni, published_qwen3_omni_thinker
from plugins.vibevoice.lab import random_vibevoice_realtime
from plugins.vibevoice.tests import vibevoice_release
from plugins.voxcpm2.lab import random_voxcpm2
from plugins.voxcpm2.tests import voxcpm2_release
from stretto.convert.command import main
from stretto.engine.reply_rules import SegmentRules
from stretto.family.base import Family
from stretto.family.plugin import config_at, family_at, plugin
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.checkpoints import make_prompts, write_checkpoint
from stretto.testing.reference import ReferenceModel
from stretto.weights.loading import write_json
from tests import published_checkpoints, published_csm
from tests.engine.harness import Engine
from tests.small_vocabularies import SMALL_MOSHI, SMALL_PERSONAPLEX, SMALL_STT, SMALL_TTS
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LENGTH = 160
NUM_PROMPTS = 4
HEAD_DIM = 32  # the smallest that vLLM's attention supports on a CPU


@dataclass(frozen=True)
class Shape:
    """Sizes of attention: number of query and key heads, and the width if heads have a size of their own."""

    num_heads: int
    num_kv_heads: int
    width: int

    @property
    def whole_width(self) -> int:
        """Width of layers whose heads divide it."""
        return HEAD_DIM * self.num_heads

    @property
    def heads(self) -> dict[str, int]:
        """Keys of a config.json with the numbers of heads."""
        return {"num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads}

    def numbers(self, width: int = 0) -> dict[str, int]:
        """Return the keys of a config.json, with a width of its own or the given one."""
        return {"hidden_size": width or self.width, **self.heads, "head_dim": HEAD_DIM}


SHAPES = {"one key head": Shape(3, 1, 88), "three heads": Shape(3, 3, 72)}
Write = Callable[[pytest.MonkeyPatch, Path, Shape], Path]


def converted(command: list[str], folder: Path) -> Path:
    """Convert a release and return the checkpoint."""
    out = folder / "checkpoint"
    assert main([*command, "--out", str(out)]) == 0
    return out


def moss_tts(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    codebooks, codes, backbone = random_moss.KINDS["small"]
    patch.setitem(random_moss.KINDS, "small", (codebooks, codes, backbone | shape.numbers()))
    return converted(random_moss.command(random_moss.write_release(folder / "release", "small")), folder)


def moss_realtime(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide as the backbone, and has as many heads."""
    codebooks, codes, backbone, depth = random_moss_realtime.KINDS["small"]
    depth = depth | shape.heads | {"hidden_size": shape.width, "intermediate_size": 42}
    patch.setitem(random_moss_realtime.KINDS, "small", (codebooks, codes, backbone | shape.numbers(), depth))
    release = random_moss_realtime.write_release(folder / "release", "small")
    return converted(random_moss_realtime.command(release), folder)


def moss_local(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide as the backbone; an odd inner width."""
    codebooks, codes, backbone, (_, _, layers, activation) = random_moss_local.KINDS["small"]
    kind = codebooks, codes, backbone | shape.numbers(shape.whole_width), (shape.num_heads, 83, layers, activation)
    patch.setitem(random_moss_local.KINDS, "small", kind)
    return converted(random_moss_local.command(random_moss_local.write_release(folder / "release", "small")), folder)


def fish_s2(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide; transformers' Llama, its reference, has heads that divide the width."""
    codebooks, codes, backbone, depth = random_fish_s2.KINDS["small"]
    sizes = {"dim": shape.width, "n_head": shape.num_heads, "n_local_heads": shape.num_kv_heads}
    depth = depth | sizes | {"n_head": 2 * shape.num_kv_heads}
    patch.setitem(random_fish_s2.KINDS, "small", (codebooks, codes, backbone | sizes, depth))
    return converted(random_fish_s2.command(random_fish_s2.write_release(folder / "release", "small")), folder)


def higgs_audio_v3(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    patch.setitem(random_higgs_audio_v3.KINDS, "narrow", random_higgs_audio_v3.NARROW | shape.numbers())
    release = random_higgs_audio_v3.write_release(folder / "release", "narrow")
    words = ["higgs-audio-v3", "--model", str(release), "--config", f"{release}/config.json"]
    return converted([*words, "--tokenizer", str(release)], folder)


def qwen3_tts(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer has the same numbers of heads."""
    config = random_qwen3_tts.small_config(hidden=shape.width, depth_hidden=56)
    for part in (config["talker_config"], config["talker_config"]["code_predictor_config"]):
        part.update(shape.heads)
    release = random_qwen3_tts.write_release(folder / "release", config)
    words = ["qwen3-tts", "--model", str(release), "--config", f"{release}/config.json"]
    return converted([*words, "--tokenizer", str(release)], folder)


def csm(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth decoder has the same numbers of heads."""
    width = shape.whole_width
    depth = (
        published_csm.CONFIG["depth_decoder_config"] | shape.heads | {"backbone_hidden_size": width, "hidden_size": 48}
    )
    sizes = shape.heads | {"hidden_size": width, "depth_decoder_config": depth}
    patch.setattr(published_csm, "CONFIG", published_csm.CONFIG | sizes)
    return published_csm.convert(folder, published_csm.make_model())[0]


def espnet(family: str, backbone: str, seed: int = 0) -> Write:
    """Return the writer of an ESPnet release."""

    def write(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
        width = shape.width if backbone == "qwen3" else shape.whole_width
        config_of = random_espnet.backbone_config

        def config(*arguments: Any) -> Any:
            found = config_of(*arguments)
            found.update(shape.numbers(width))
            return found

        patch.setattr(random_espnet, "backbone_config", config)
        return published_checkpoints.convert(
            family, published_checkpoints.write_release(family, folder, seed), folder / "checkpoint"
        )

    return write


def chatterbox(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    for name, value in shape.numbers(shape.whole_width).items():
        patch.setitem(random_chatterbox.SMALL, name, value)
    return random_chatterbox.convert(folder)


def chatterbox_turbo(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """Heads of 64 that have their own keys each."""
    sizes = replace(random_chatterbox.TURBO, width=random_chatterbox.HEAD_WIDTH * shape.num_kv_heads)
    return random_chatterbox.convert_turbo(folder, sizes)


def cosyvoice3(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    for name, value in shape.numbers(shape.whole_width).items():
        if name != "head_dim":  # Qwen2 has none
            patch.setitem(random_cosyvoice3.SMALL, name, value)
    return random_cosyvoice3.convert(folder)


def kyutai(family: str, vocabulary: Any) -> Write:
    """Return the writer of a checkpoint; in a release, each head has keys of its own."""

    def write(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
        record = vocabulary.to_record()
        sizes = {"hidden": shape.whole_width, "heads": shape.num_heads, "kv_heads": shape.num_kv_heads, "layers": 2}
        build = plugin(family).build
        return write_checkpoint(
            folder / "checkpoint", build(record), family, backbone="llama", vocabulary=record, **sizes
        )

    return write


WRITERS: dict[str, Write] = {
    "moss_tts": moss_tts,
    "moss_tts_local": moss_local,
    "moss_tts_realtime": moss_realtime,
    "fish_s2": fish_s2,
    "higgs_audio_v3": higgs_audio_v3,
    "qwen3_tts": qwen3_tts,
    "csm": csm,
    "bagpiper": espnet("bagpiper", "qwen3"),
    "opuslm": espnet("opuslm", "olmo2", seed=1),
    "opuslm_dialogue": espnet("opuslm-dialogue", "llama"),
    "chatterbox_turbo": chatterbox_turbo,
    "cosyvoice3": cosyvoice3,
    "kyutai_stt": kyutai("kyutai_stt", SMALL_STT),
    "kyutai_tts": kyutai("kyutai_tts", SMALL_TTS),
    "moshi": kyutai("moshi", SMALL_MOSHI),
    "personaplex": kyutai("personaplex", SMALL_PERSONAPLEX),
}


# A backbone and a depth transformer of the plug-ins' kind, the core's, and GPT-2.
BY_DAY = [(name, "one key head") for name in ("fish_s2", "opuslm", "chatterbox_turbo")]


def gpt2_reference(config: dict[str, Any], weights: dict[str, torch.Tensor], family: Family) -> ReferenceModel:
    """Return the slow reference over transformers' GPT-2."""
    model: Any = GPT2Model(GPT2Config.from_dict(config)).eval()
    named = {name: each for name, each in weights.items() if name.startswith("transformer.")}
    model.load_state_dict({name.removeprefix("transformer."): each for name, each in named.items()})
    model.embed_tokens = model.wte
    head = torch.nn.Linear(model.wte.embedding_dim, family.layout.vocab_size)
    rows = audio_ids(family)
    with torch.no_grad():
        head.weight[rows] = weights["audio_head.weight"]
        head.bias[rows] = weights.get("audio_head.bias", torch.zeros(len(rows)))
    reference = ReferenceModel.__new__(ReferenceModel)
    reference.family = family
    reference.max_model_len = LENGTH
    reference.model = SimpleNamespace(model=model, lm_head=head)
    reference.bias = None
    return reference


def audio_ids(family: Family) -> list[int]:
    """Return the ids of an audio head's rows: those of stream 0, of its ends, and of the other streams."""
    rules = SegmentRules(family, LENGTH)
    first, *others = (rules.audio_ids(stream) for stream in range(family.layout.num_output_streams))
    return [*first, *rules.drawn_ends_of_audio, *itertools.chain(*others)]


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    (path,) = checkpoint.glob("*.safetensors")
    return load_file(path)


def reference_of(checkpoint: Path, family: Family, folder: Path) -> ReferenceModel:
    """Return the slow reference for a checkpoint, with the rows of its audio head in the head of all ids."""
    config = config_at(checkpoint)
    weights = tensors_of(checkpoint)
    if config["model_type"] == "gpt2":
        return gpt2_reference(config, weights, family)
    if family.audio_head:
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).clone()
        head[audio_ids(family)] = weights.pop("audio_head.weight")
        weights["lm_head.weight"] = head
        config["tie_word_embeddings"] = False
    folder.mkdir()
    write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    return ReferenceModel(folder, family, LENGTH)


def assert_replies_match(checkpoint: Path, prompts: Mapping[str, Prompt], reference: ReferenceModel) -> None:
    """Assert that replies to all prompts at once, and to two of them alone, are those of the reference."""
    with Engine(checkpoint, max_model_len=LENGTH) as engine:
        answers = engine.run(prompts)
        alone = {each: engine.run({each: prompts[each]})[each].rows for each in list(prompts)[1:3]}
    assert alone == {each: answers[each].rows for each in alone}
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == [row[: reference.family.layout.num_output_streams] for row in rows], name


@pytest.mark.parametrize(
    ("name", "shape"),
    [*BY_DAY, *by_night(*(case for case in itertools.product(WRITERS, SHAPES) if case not in BY_DAY))],
)
def test_replies_match_the_reference_alone_and_batched(
    name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = WRITERS[name](monkeypatch, tmp_path, SHAPES[shape])
    family = family_at(checkpoint)
    assert_replies_match(
        checkpoint, make_prompts(family, NUM_PROMPTS), reference_of(checkpoint, family, tmp_path / "reference")
    )


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_of_the_thinker_match_transformers(shape: str, tmp_path: Path) -> None:
    config = random_qwen3_omni.small_config()
    config["thinker_config"]["text_config"] |= SHAPES[shape].heads
    checkpoint = published_qwen3_omni_thinker.convert(tmp_path, config)
    written = published_qwen3_omni_thinker.Written(checkpoint)
    asked = published_qwen3_omni_thinker.conversations()
    prompts = {name: written.prompt(asked[name], 16) for name in ("text", "system", "thoughts", "audio")}
    theirs = published_qwen3_omni_thinker.Theirs(config)
    assert_replies_match(checkpoint, prompts, published_qwen3_omni_thinker.ThinkerReference(checkpoint, LENGTH, theirs))


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_of_the_talker_match_transformers(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = random_qwen3_omni.small_config()
    for part in ("text_config", "code_predictor_config"):
        config["talker_config"][part] |= SHAPES[shape].heads
    monkeypatch.setattr(published_qwen3_omni, "small_config", lambda: config)
    checkpoint = published_qwen3_omni.convert(tmp_path)
    cases = published_qwen3_omni.cases()
    prompts = {name: cases[name].prompt(checkpoint, 12) for name in list(cases)[:4]}
    assert_replies_match(checkpoint, prompts, published_qwen3_omni.TalkerReference(checkpoint, LENGTH))


def voxcpm2(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    config = random_voxcpm2.config()
    for part in ("encoder_config", "dit_config"):
        config[part] |= {"num_heads": 3}
    config["lm_config"] |= {"num_attention_heads": 3, "num_key_value_heads": 1}
    patch.setattr(random_voxcpm2, "config", lambda kind: config)
    return voxcpm2_release.convert_release(folder)


def vibevoice(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    config = vibevoice_release.config("long")
    config.text_config.num_key_value_heads = 1
    patch.setattr(vibevoice_release, "config", lambda kind: config)
    return vibevoice_release.convert_release(folder, "long")


def vibevoice_realtime(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    sizes, _, layers = random_vibevoice_realtime.SIZES["small"]
    patch.setitem(random_vibevoice_realtime.SIZES, "small", (sizes, (4, 1), layers))
    return converted(
        ["vibevoice-realtime", "--model", str(random_vibevoice_realtime.write_release(folder / "release"))], folder
    )


REPEATED: dict[str, Callable[[pytest.MonkeyPatch, Path], Path]] = {
    "chatterbox": lambda patch, folder: chatterbox(patch, folder, SHAPES["one key head"]),
    "voxcpm2": voxcpm2,
    "vibevoice": vibevoice,
    "vibevoice_realtime": vibevoice_realtime,
}


def repeat_key_heads(checkpoint: Path, folder: Path) -> Path:
    """Write a copy of a checkpoint with one key head in which each query head has a copy of that head."""
    shutil.copytree(checkpoint, folder)
    config = config_at(folder)
    number = config["num_attention_heads"]
    assert config["num_key_value_heads"] == 1
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    count = 0
    for name, each in weights.items():
        if re.search(r"\b[kv]_proj\.", name):
            weights[name] = each.repeat(number, *[1] * (each.dim() - 1))
            count += 1
        elif name.endswith("voice_rows"):
            weights[name] = each.repeat(1, 1, 1, number)
        elif name.endswith("voices"):
            weights[name] = each.repeat(1, 1, 1, number, 1)
    assert count
    save_file(weights, path)
    write_json(folder / "config.json", config | {"num_key_value_heads": number})
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("name", REPEATED)
def test_one_key_head_gives_the_replies_of_copies_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tests of these families compare several key heads with the authors' code."""
    checkpoint = REPEATED[name](monkeypatch, tmp_path)
    family = family_at(checkpoint)
    prompts = make_prompts(family, NUM_PROMPTS)
    replies = []
    for folder in (checkpoint, repeat_key_heads(checkpoint, tmp_path / "repeated")):
        with Engine(folder, max_model_len=LENGTH) as engine:
            answers = engine.run(prompts)
            assert engine.run({"r1": prompts["r1"]})["r1"].rows == answers["r1"].rows
        replies.append({each: np.array(answer.rows[:3]) for each, answer in answers.items()})
    for each, rows in replies[0].items():
        others = replies[1][each]
        assert np.array_equal(rows[:, 0], others[:, 0])
        if family.layout.latents is None:
            assert np.array_equal(rows, others)
        else:
            words = latents_of(rows[:, 1:].astype(np.int32))
            np.testing.assert_allclose(words, latents_of(others[:, 1:].astype(np.int32)), rtol=0, atol=1e-3)
