"""Bagpiper: conversion, prompts by row, and replies of the release's own file.

Ids: bos 1, eos 2, eot 3, system 4, user 5, assistant 6, text 7, audio 8; text from 256.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lab.releases.random_codecs import xcodec
from lab.releases.random_espnet import Published
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.families.bagpiper import PLUGIN
from stretto.families.bagpiper.convert import ADAPTOR, CODEC, TOWER
from stretto.families.bagpiper.prompt import BagpiperTemplate, open_template
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.log_mel import log_mel
from stretto.family.plugin import config_at
from stretto.family.prompting import Piece
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import InputAudio, Prompt
from stretto.testing.checkpoints import make_prompt, make_prompts
from stretto.testing.limits import asked, talk
from stretto.testing.releases import REMOVED, SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, assert_same_checkpoints
from tests.family_suite import FamilySuite
from tests.published_checkpoints import command, write_bagpiper
from tests.reference.published import PublishedReference
from tests.small_vocabularies import SMALL_BAGPIPER

LENGTH = 160  # rows of a request
NAMES = ("model.pt", "config.yaml", "tokenizer", "tokenizer", "codec", "audio")
OF_CODEC = [f"{CODEC}{name}" for name in xcodec(is_narrow=True).state_dict()]
SYSTEM = {"role": "system", "text": "well"}
MAN = {"role": "user", "text": "a man"}
FINE = {"role": "assistant", "text": "fine"}
CODES = np.arange(16).reshape(8, 2)


def published(release: SmallRelease) -> Published:
    return Published(*[release.folder / "release" / name for name in NAMES])


def write(folder: Path, size: str) -> list[str]:
    return command("bagpiper", write_bagpiper(folder / "release", seed=3), folder)[:-2]


def rows_of(release: SmallRelease, *parts: int | str) -> np.ndarray:
    """Return rows with special ids and the ids of texts on stream 0; the tokenizer's id 0 is a pad, as in training.

    ESPnet's `SpeechLMPreprocessor` computes where(ids == pad, pad, ids + 256) on Qwen's token ids, where 0 is "!".
    """
    tokenizer = TextTokenizer.at(release.checkpoint)
    assert tokenizer.encode("!") == [0]
    ids = list[int]()
    for part in parts:
        ids += [part] if isinstance(part, int) else [256 + token if token else 0 for token in tokenizer.encode(part)]
    return np.pad(np.array(ids)[:, None], ((0, 0), (0, 7)))


def spoken_rows() -> np.ndarray:
    """Return the rows of CODES: delayed, with the pads of the codebooks."""
    pads = 556 + 17 * np.arange(8)
    rows = np.tile(pads, (9, 1))
    for stream in range(8):
        rows[stream : stream + 2, stream] += 1 + CODES[stream]
    return rows


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    rows = partial(rows_of, release)
    usual = rows(1, 4, 7, "You are a helpful assistant.", 2, 5, 7, "a man", 2, 6, 7)
    recording = {"pcm_in": np.sin(np.arange(160 * 20)).astype(np.float32), "sample_rate": 16_000, "task": "understand"}
    exclaimed = talk(SYSTEM, {"role": "user", "text": "!a!!"}, FINE | {"text": "!"}, MAN | {"text": "a man!"})
    earlier = rows(1, 4, 7, "well", 2, 5, 7, "a man", 2, 6, 7, "fine", 3, 6, 8)
    return {
        "tts": (asked("a man"), rows(1, 5, 7, "a man", 2, 6, 7)),
        "speak": (asked("a man") | {"task": "speak"}, rows(1, 5, 7, "a man", 2, 6, 8)),
        "chat": (asked("a man") | {"task": "chat"}, usual),
        "generate": (asked("a man") | {"task": "generate"}, usual),
        "system": (talk(SYSTEM, MAN) | {"task": "generate"}, rows(1, 4, 7, "well", 2, 5, 7, "a man", 2, 6, 7)),
        "earlier turns": (
            talk(SYSTEM, MAN, FINE, MAN) | {"task": "chat"},
            rows(1, 4, 7, "well", 2, 5, 7, "a man", 2, 6, 7, "fine", 2, 5, 7, "a man", 2, 6, 7),
        ),
        "exclamation marks": (
            exclaimed | {"task": "chat"},
            rows(1, 4, 7, "well", 2, 5, 7, "!a!!", 2, 6, 7, "!", 2, 5, 7, "a man!", 2, 6, 7),
        ),
        "earlier speech": (
            talk(SYSTEM, MAN, FINE | {"codes": CODES.tolist()}, MAN) | {"task": "chat"},
            np.concatenate([earlier, spoken_rows(), rows(2, 5, 7, "a man", 2, 6, 7)]),
        ),
        "audio": (
            talk(SYSTEM, MAN | {"audio": "pcm_in"}) | recording,
            rows(1, 4, 7, "well", 2, 5, 8, 0, 0, 0, 3, 5, 7, "a man", 2, 6, 7),
        ),
    }


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    requests = make_prompts(release.family, 8)
    requests["heard"] = with_audio(make_prompt(release.family, 5, "understand"), release)
    return PublishedReference(published(release), release.family, LENGTH).expected(requests)


def with_audio(prompt: Prompt, release: SmallRelease) -> Prompt:
    """Return the prompt with 2.3 s of audio after its third row."""
    audio_format = AudioFormat.from_config(config_at(release.checkpoint))
    assert audio_format is not None
    features = np.random.default_rng(0).standard_normal((230, 128)).astype(np.float32)
    num_rows = audio_format.num_rows(len(features))
    rows = np.insert(prompt.rows, [3] * num_rows, 0, axis=0)
    return replace(prompt, rows=rows, audios=(InputAudio(3, num_rows, features),))


def heard(num_samples: int) -> Piece:
    return Piece("user", "audio", pcm=np.random.default_rng(0).standard_normal(num_samples).astype(np.float32))


class TestBagpiper(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        config="release/config.yaml",
        weights="release/model.pt",
        tokenizer="release/tokenizer/tokenizer.json",
        may_be_sharded=False,
        tensors_in=lambda content: content["module"],
        unneeded_tensors=("vocab_weight", *OF_CODEC),
        refused_configs=[
            (
                {"multimodal_io.discrete_audio.delay_interleave": False},
                "discrete_audio: expected delay_interleave true",
            ),
            ({"multimodal_io.discrete_audio.ssl_choice": "xeus"}, "expected delay_interleave true"),
            ({"multimodal_io.text": REMOVED}, "expected text and discrete_audio, got discrete_audio"),
            ({"multimodal_io.discrete_audio": 3}, "cannot be read as a"),
            ({"model.model_hf_tag": REMOVED}, "config.yaml: model.model_hf_tag is missing"),
        ],
        prompts=prompts,
        refused_inputs=[
            (asked(""), "text: expected text of at least one character"),
            (
                talk({"role": "user", "codes": CODES.tolist()}) | {"task": "understand"},
                "messages[0].codes: expected audio samples (Bagpiper accepts codes only in assistant turns)",
            ),
            (
                talk(MAN, {"role": "assistant", "codes": [[0]] * 9}, MAN) | {"task": "chat"},
                "messages[1].codes: expected 8 streams, got 9 streams",
            ),
        ],
        replies=replies,
        engine={"max_model_len": LENGTH},
        tight={"num_gpu_blocks_override": 12, "max_num_seqs": 16},
    )

    def test_tensors_have_their_expected_names(self, release: SmallRelease) -> None:
        stored = torch.load(published(release).model, weights_only=True)["module"]
        tensors = {
            name.replace(TOWER, "audio_tower.").replace(ADAPTOR, "adaptor."): tensor
            for name, tensor in stored.items()
            if name not in self.case.unneeded_tensors
        }
        bias = tensors.pop("stream_emb.weight")
        assert bias[0].any()
        bias[0] = 0
        assert release.weights.keys() == {*tensors, "stream_bias.weight"}
        assert torch.equal(release.weights["stream_bias.weight"], bias)
        assert all(torch.equal(release.weights[name], tensor) for name, tensor in tensors.items())

    def test_config_describes_the_backbone_and_the_encoder(self, copied: SmallRelease, tmp_path: Path) -> None:
        record = config_at(copied.checkpoint)
        assert record["architectures"] == ["StrettoQwen3ForCausalLM"]
        assert (record["rms_norm_eps"], record["max_position_embeddings"]) == (1e-6, 2048)
        assert record["tie_word_embeddings"] is False
        assert record["speech_vocabulary"] == json.loads(json.dumps(SMALL_BAGPIPER.to_record()))
        audio = record["audio_config"]
        assert (audio["n_window"], audio["n_window_infer"], audio["do_normalize"]) == (50, 800, True)
        other = copied.copied(tmp_path / "other")
        windows = ("--n-window", "100", "--n-window-infer", "400", "--no-normalize")
        other = replace(other, arguments=[*other.arguments, *windows])
        audio = config_at(other.checkpoint)["audio_config"]
        assert (audio["n_window"], audio["n_window_infer"], audio["do_normalize"]) == (100, 400, False)

    def test_ids_follow_the_order_of_the_modalities(self, copied: SmallRelease) -> None:
        with edited(copied.folder / "release/config.yaml") as record:
            modalities = record["multimodal_io"]
            names = ("discrete_audio", "continuous_audio", "text")
            record["multimodal_io"] = {name: modalities[name] for name in names}
        # a YAML file keeps the order of its keys only if it is written so
        path = copied.folder / "release/config.yaml"
        path.write_text(json.dumps(record))
        vocabulary = config_at(copied.checkpoint)["speech_vocabulary"]
        assert vocabulary["first_audio"] == 256
        assert vocabulary["text"] == [256 + 8 * 17, 692]

    def test_sharded_release_gives_the_same_tensors(self, release: SmallRelease, copied: SmallRelease) -> None:
        model = published(copied).model
        tensors = torch.load(model, weights_only=True)["module"]
        model.unlink()
        names = sorted(tensors)
        shards = model.with_name("shards")
        shards.mkdir()
        for number in range(2):
            shard = {name: tensors[name].clone() for name in names[number::2]}
            save_file(shard, shards / f"model-{number}.safetensors")
        arguments = [word.replace("model.pt", "shards") for word in copied.arguments]
        assert_same_checkpoints(release, replace(copied, arguments=arguments))

    def test_codec_can_be_taken_from_the_model(self, copied: SmallRelease) -> None:
        copied = replace(copied, arguments=[*copied.arguments, "--codec-from-model"])
        codecs = (load_codec("xcodec", folder) for folder in (copied.checkpoint, published(copied).codec))
        codes = torch.randint(16, (1, 8, 12))
        assert torch.equal(*[codec.model.decode(codes, return_dict=False) for codec in codecs])

    def test_training_config_is_found_among_several(self, copied: SmallRelease) -> None:
        config = published(copied).config
        index = copied.arguments.index("--config")
        copied = replace(copied, arguments=[*copied.arguments[:index], *copied.arguments[index + 2 :]])
        (config.parent / "inference.yaml").write_text("dtype: bfloat16\n")
        assert copied.family.name == "bagpiper"
        (config.parent / "copy.yaml").write_text(config.read_text())
        again = copied.copied(copied.folder.with_name("again"))
        again.assert_refused("--config: expected the config.yaml or config.json of bagpiper, got none")

    def test_audio_of_several_turns_is_placed_in_each_turn(self, release: SmallRelease) -> None:
        template = open_template(release.family, release.checkpoint, None, "cpu")
        task = release.family.task("understand")
        first = heard(160 * 100)
        second = heard(160 * 205)
        turns = (Piece("system", "", text="z"), first, Piece("assistant", "", text="z"), second)
        prompt = template.write(task, turns, None)
        assert [(audio.first_row, audio.num_rows) for audio in prompt.audios] == [(7, 13), (27, 27)]
        audio_format = AudioFormat.from_config(config_at(release.checkpoint))
        assert second.pcm is not None
        assert np.array_equal(prompt.audios[1].features, log_mel(second.pcm, audio_format))
        check_audios(Prompt(task.name, prompt.rows, task.sampling, audios=prompt.audios), audio_format)

    def test_audio_that_cannot_be_encoded_is_refused(self, release: SmallRelease) -> None:
        """Both ends are padded by reflecting half a window, and the authors' features fail on shorter audio."""
        template = open_template(release.family, release.checkpoint, None, "cpu")
        task = release.family.task("understand")
        (audio,) = template.write(task, (heard(201),), None).audios
        assert audio.features.shape == (1, 128)
        with pytest.raises(InvalidRequest, match=r"^audio: expected audio of at least 201 samples .*, got 200 samples"):
            template.write(task, (heard(200),), None)
        deaf = BagpiperTemplate(release.family, Subwords(TextTokenizer.at(release.checkpoint), release.family), None)
        with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(this checkpoint has no audio encoder\)"):
            deaf.write(task, (heard(960),), None)
