"""The benchmark against authors' code: dimensions of the releases, and the files that the packages read."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from benchmarks.authors import speak, speak_with_package
from benchmarks.contenders import ALONE, CONTENDERS, pocket_tts_config
from lab.releases import random_orpheus
from lab.releases.random_qwen3_tts import published_config
from plugins.chatterbox.lab.random_chatterbox import PUBLISHED_NANO, PUBLISHED_TURBO, Gpt2Sizes
from plugins.kyutai.lab import random_kyutai_stt
from plugins.kyutai.lab.random_kyutai_tts import CONFIG, LARGE, SIZES, lm_shapes
from plugins.pocket.lab.random_pocket import config, shapes, write_release
from plugins.vibevoice.lab import random_vibevoice_realtime
from stretto.codecs.s3gen import NUM_SILENT
from stretto.releases.catalogue import named
from stretto_client import SpeechEvent


def gpt2(sizes: Gpt2Sizes) -> tuple[int, int]:
    """Return the width and the number of layers."""
    return sizes.width, sizes.num_layers


def hugging_face(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and the number of layers in a config.json."""
    return record["hidden_size"], record["num_hidden_layers"]


@pytest.mark.parametrize(
    ("kind", "language_model", "codec"),
    [("published", 89.4, 20.1), ("published_2m", 0.9, 1.0), ("published_7m", 4.3, 2.6), ("published_18m", 15.6, 2.6)],
)
def test_release_has_the_published_parameter_count(kind: str, language_model: float, codec: float) -> None:
    """Parameters in millions. The codec of the small releases is counted without its encoder, as by Kyutai."""
    sizes = {"flow_lm": 0, "mimi": 0}
    for name, shape in shapes(config(kind)).items():
        if kind == "published" or not name.startswith(("mimi.encoder", "mimi.downsample")):
            sizes[name.partition(".")[0]] += prod(shape)
    assert sizes["flow_lm"] / 1e6 == pytest.approx(language_model, abs=0.06)
    assert sizes["mimi"] / 1e6 == pytest.approx(codec, abs=0.06)


@pytest.mark.parametrize(("size", "base", "billions"), [("0.75b", CONFIG, 0.82), ("1.6b", LARGE, 1.83)])
def test_kyutai_tts_release_has_the_stated_parameter_count(size: str, base: dict[str, Any], billions: float) -> None:
    tensors = lm_shapes({**base, **SIZES[size]})
    assert round(sum(map(prod, tensors.values())) / 1e9, 2) == billions
    assert size != "1.6b" or len(tensors) == 418  # as published


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("chatterbox-nano", gpt2(PUBLISHED_NANO)),
        ("chatterbox-turbo", gpt2(PUBLISHED_TURBO)),
        ("kyutai-stt", (random_kyutai_stt.SIZES_1B["dim"], random_kyutai_stt.SIZES_1B["num_layers"])),
        ("qwen3-tts-0.6b", hugging_face(published_config()["talker_config"])),
        ("vibevoice-realtime", hugging_face(random_vibevoice_realtime.config("published")["decoder_config"])),
    ],
)
def test_releases_have_the_width_and_layers_of_the_published_ones(name: str, sizes: tuple[int, int]) -> None:
    shape = named(name).shape
    assert shape is not None
    assert (shape["hidden"], shape["layers"]) == sizes


class Reader:
    """Client whose replies have the rows that were asked for, and `NUM_SILENT` frames more, of 960 samples."""

    async def speak(self, text: str, **options: Any) -> AsyncIterator[SpeechEvent]:
        """Speak in one event."""
        frames = options["audio"]["max_rows"] + NUM_SILENT
        yield SpeechEvent(np.zeros(960 * frames, np.float32), "", 0, "audio")


@pytest.mark.parametrize(("family", "is_right"), [("chatterbox_nano", True), ("chatterbox", False)])
def test_silence_that_the_codec_adds_is_a_part_of_the_reply(family: str, is_right: bool) -> None:
    reply = speak(cast(Any, Reader()), (CONTENDERS | ALONE)[family], 0, 20)
    if is_right:
        assert asyncio.run(reply) > 0
    else:
        with pytest.raises(RuntimeError, match="expected 19200 samples, got 22080"):
            asyncio.run(reply)


def test_pocket_tts_package_config_points_at_release_files(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "english_2m")
    record = yaml.safe_load(pocket_tts_config(release).read_text())
    assert Path(record["weights_path"]).exists()
    assert Path(record["flow_lm"]["lookup_table"]["tokenizer_path"]).name == "tokenizer.model"
    assert record["mimi"] == config("english_2m")["mimi"]


@pytest.mark.parametrize("lost", [0, 1])
def test_benchmark_fails_if_samples_are_missing(lost: int) -> None:
    """The authors' code of Orpheus leaves out three frames."""
    package = replace(
        CONTENDERS["orpheus"],
        load=lambda release: lambda frames: iter([2048] * (frames - 3 - lost)),
        packages=("numpy",),
    )
    if lost:
        with pytest.raises(RuntimeError, match=rf"expected {9 * 2048} samples, got {8 * 2048}"):
            speak_with_package(package, Path(), 20)
    else:
        made = speak_with_package(package, Path(), 20)
        assert made["versions"] == {"numpy": version("numpy")}
        assert made["pss_mb"] > 10


@pytest.mark.parametrize(("num_layers", "place"), [(1, 0), (3, 6)])
def test_random_orpheus_weights_keep_the_frame_order(num_layers: int, place: int) -> None:
    """The authors' code drops ids that are out of place."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = random_orpheus.llama_config(num_layers, vocab_size=400, head_dim=16, **sizes)
    tensors, model = random_orpheus.ordered_tensors(config, 50, 48), LlamaForCausalLM(config)
    model.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    ids = torch.randint(0, 40, (1, 30), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 50 + 48 * place + 5
    with torch.inference_mode():
        best = model(ids).logits[0, -1].topk(20).indices - 50
    assert {int(each) // 48 for each in best} == {(place + 1) % 7}
