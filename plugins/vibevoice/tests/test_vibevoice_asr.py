"""VibeVoice-ASR equals transformers: prompts, and greedy replies alone, in a batch, preempted and cached."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.vibevoice.tests.test_vibevoice import authors_network, published_name_of
from plugins.vibevoice.tests.vibevoice_asr_release import (
    DEVIATION,
    END_OF_REPLY,
    HOP,
    NUM_FEATURES,
    NUM_NUMBERS,
    SCRIPT,
    SPECIAL,
    Theirs,
    command,
    published_shapes,
    speech,
    write_release,
)
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.plugin import config_at
from stretto.family.text import load_text_codec
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import talk
from stretto.testing.releases import REMOVED, SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_contract.transcripts import Passage
from stretto_vibevoice.codec import TokenizerConfig, gaussian_noise
from stretto_vibevoice.vibevoice_asr import PLUGIN
from stretto_vibevoice.vibevoice_asr.convert import authors_name, encoders_plan, plan
from stretto_vibevoice.vibevoice_asr.encoders import CHUNK_FRAMES, FOLDER, load_encoders
from stretto_vibevoice.vibevoice_asr.reader import TranscriptReader
from tests.family_suite import FamilySuite

RATE = 24_000
NUM_IDS = 24
LENGTH = 384
ACOUSTIC = "acoustic_tokenizer_encoder_config"


class Recording(NamedTuple):
    """A recording, its context, and the seed of its request."""

    pcm: np.ndarray
    prompt: str | None = None
    seed: int = 5

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the request."""
        turns = [{"role": "user", "audio": "pcm_in"}]
        if self.prompt is not None:
            turns.insert(0, {"role": "system", "text": self.prompt})
        return talk(*turns, seed=self.seed) | {"pcm_in": self.pcm, "sample_rate": RATE}

    @property
    def noise(self) -> np.ndarray:
        """Noise of the latents."""
        return gaussian_noise(self.seed, 1 + NUM_NUMBERS * -(-len(self.pcm) // HOP))


RECORDINGS = {
    "seconds": Recording(speech(2.0, 1)),
    "odd": Recording(speech(1.2345, 2), "Berlin, Spree"),
    "chunks": Recording(speech(9.37, 3)),
    "seed": Recording(speech(2.0, 1), seed=6),
    "context": Recording(speech(0.71, 4), "\n user  \n"),
    "silence": Recording(np.zeros(24_000, np.float32)),
}


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def prompt_of(release: SmallRelease, recording: Recording, num_ids: int = NUM_IDS) -> Prompt:
    prompt = release.preprocessor.prepare(RawRequest(**recording.inputs))
    return replace(prompt, sampling=replace(prompt.sampling, text=replace(prompt.sampling.text, max_rows=num_ids)))


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    theirs = Theirs(release.folder / "release")
    return {
        name: (recording.inputs, theirs.inputs(recording.pcm, (recording.prompt or "").strip())["input_ids"].T.numpy())
        for name, recording in RECORDINGS.items()
    }


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    theirs = Theirs(release.folder / "release")
    expected = dict[str, ExpectedReply]()
    for name, recording in RECORDINGS.items():
        inputs = theirs.inputs(recording.pcm, (recording.prompt or "").strip())
        ids, logits = theirs.reply(inputs, recording.noise, NUM_IDS)
        first, second = np.sort(logits)[:, -2:].T[::-1]
        assert (first - second).min() > 1e-4, f"{name}: nearly undecided: choose another seed"
        spoken = ids[:-1] if ids[-1] == END_OF_REPLY else ids
        expected[name] = ExpectedReply(prompt_of(release, recording), [[token] for token in (*spoken, END_OF_REPLY)])
    assert len({tuple(map(tuple, reply.rows)) for reply in expected.values()}) == len(expected)
    return expected


def published() -> PublishedSizes:
    shapes = published_shapes()
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4}
    acoustic = TokenizerConfig.from_record({})
    semantic = replace(acoustic, size=128)
    parts = plan(sizes | heads, 152_064, acoustic, semantic) | encoders_plan(acoustic, semantic)
    return PublishedSizes(shapes, parts, {"adaptor.semantic.linear_1.weight": (3584, 128)}, len(shapes))


class TestVibeVoiceAsr(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "other"),
        needed_tokens=SPECIAL[1:],
        refused_configs=[
            ({"model_type": "vibevoice"}, "model_type"),
            ({"audio_token_id": 260}, "audio_token_id"),
            ({"text_config": REMOVED}, "text_config"),
            ({"text_config.use_sliding_window": True, "text_config.sliding_window": 4096}, "text_config"),
            ({f"{ACOUSTIC}.downsampling_ratios": [4, 5, 8, 10]}, f"{ACOUSTIC}.downsampling_ratios"),
            ({f"{ACOUSTIC}.depths": [1]}, ACOUSTIC),
        ],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (Recording(speech(1.0), "a" * 8_001).inputs, "messages[0].text: expected at most 8000 characters"),
            (talk({"role": "user", "text": "hello"}), "messages[0]: expected audio for task 'asr', got text"),
            ({"text": "hello"}, "audio: expected audio for task 'asr', got text"),
        ],
        has_usual_requests=False,
        replies=replies,
        engine={"max_model_len": LENGTH},
        tight={"max_num_batched_tokens": 64, "num_gpu_blocks_override": 16},
    )

    def test_recording_longer_than_an_hour_is_refused_before_it_is_encoded(self, release: SmallRelease) -> None:
        recording = np.zeros(3601 * 1000, np.float32)
        with pytest.raises(Exception, match="pcm_in: expected at most 3600 s, got 3601"):
            release.preprocessor.prepare(RawRequest(pcm_in=recording, sample_rate=1000))

    def test_chunks_give_the_features_of_the_whole_recording(self, release: SmallRelease) -> None:
        """Features equal those of transformers' encoders, which read the whole recording at once."""
        recording = RECORDINGS["chunks"]
        assert len(recording.pcm) > CHUNK_FRAMES * HOP
        (audio,) = prompt_of(release, recording).audios
        check_audios(prompt_of(release, recording), AudioFormat.from_config(config_at(release.checkpoint)))
        theirs = Theirs(release.folder / "release")
        samples = theirs.inputs(recording.pcm)["input_values"]
        core = theirs.model.model
        with torch.no_grad():
            means, meanings = (
                encoder(samples).latents[0].numpy()
                for encoder in (core.acoustic_tokenizer_encoder, core.semantic_tokenizer_encoder)
            )
        noise = recording.noise
        latents = means + DEVIATION * noise[0] * noise[1:].reshape(means.shape)
        assert np.abs(audio.features - np.concatenate([latents, meanings], 1)).max() < 1e-4

    def test_seed_alone_decides_the_noise(self, release: SmallRelease) -> None:
        encoders = load_encoders(release.checkpoint, "cpu")
        one, same, other = (encoders.encode(RECORDINGS["seconds"].pcm, seed) for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert np.array_equal(one[:, NUM_NUMBERS:], other[:, NUM_NUMBERS:])
        assert (one[:, :NUM_NUMBERS] != other[:, :NUM_NUMBERS]).all()

    def test_scripted_reply_is_read_as_passages(self, tmp_path: Path) -> None:
        release = SmallRelease.written(tmp_path / "scripted", "scripted", write)
        reader = load_text_codec(release.family, release.checkpoint).reader("asr")
        first = len(SPECIAL) + 256
        text = "".join(map(reader.push, range(first, first + len(SCRIPT)))) + reader.end()
        assert isinstance(reader, TranscriptReader)
        assert text == 'Good morning. Hello, "you". [Silence]'
        assert reader.pop_passages() == PASSAGES


# Names of the authors' checkpoint, and those in transformers format; `-` is one less than the number.
PUBLISHED_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(acoustic|semantic)_connector\.fc([12])\.", r"multi_modal_projector.\1_linear_\2."),
    (r"^model\.(acoustic|semantic)_connector\.norm\.", r"multi_modal_projector.\1_norm."),
    (r"^model\.(acoustic|semantic)_tokenizer\.encoder\.", r"\1_tokenizer_encoder."),
    (r"encoder\.downsample_layers\.0\.0\.conv\.", "encoder.stem.conv."),
    (r"encoder\.stages\.0\.", "encoder.stem.stage."),
    (r"(en)coder\.downsample_layers\.(\d+)\.0\.conv\.", "encoder.conv_layers.-.conv."),
    (r"(en)coder\.stages\.(\d+)\.", "encoder.conv_layers.-.stage."),
    (r"encoder\.head\.conv\.", "encoder.head."),
    (r"mixer\.conv\.conv\.conv\.", "mixer.conv."),
)


def write_authors(folder: Path, size: str) -> list[str]:
    """Write a release in the authors' layout, including its tokenizer, and return the converter's arguments."""
    release = write_release(folder / "release", size)
    with edited(release / "model.safetensors") as tensors:
        renamed = {authors_name(name): tensor for name, tensor in tensors.items()}
        assert {published_name_of(name, PUBLISHED_NAMES): name for name in renamed}.keys() == tensors.keys()
        tensors.clear()
        tensors.update(renamed | {"model.acoustic_tokenizer.decoder.head.conv.conv.bias": torch.zeros(1)})
    record = json.loads((release / "config.json").read_text())
    acoustic = authors_network(record[ACOUSTIC], NUM_NUMBERS, fix_std=0.8 * DEVIATION, std_dist_type="gaussian")
    semantic = authors_network(
        record["semantic_tokenizer_encoder_config"], NUM_FEATURES, fix_std=0, std_dist_type="none"
    )
    config = {
        "model_type": "vibevoice",
        "architectures": ["VibeVoiceForASRTraining"],
        "decoder_config": record["text_config"],
        "acoustic_tokenizer_config": acoustic,
        "semantic_tokenizer_config": semantic,
        "diffusion_head_config": {"head_layers": 4},
    }
    (release / "config.json").write_text(json.dumps(config))
    return command(release)


class TestAuthorsLayout(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write_authors,
        sizes=("small", "other"),
        needed_tokens=SPECIAL[1:],
        unneeded_tensors=("model.acoustic_tokenizer.decoder.head.conv.conv.bias",),
        refused_configs=[
            ({"model_type": "vibevoice_streaming"}, "model_type"),
            ({"decoder_config": REMOVED}, "decoder_config"),
            ({"acoustic_tokenizer_config.causal": False}, "acoustic_tokenizer_config.causal: expected True, got False"),
        ],
    )

    def test_transformers_layout_gives_the_same_checkpoint(
        self, releases: dict[str, SmallRelease], tmp_path: Path
    ) -> None:
        for size, release in releases.items():
            other = SmallRelease.written(tmp_path / size, size, write)
            assert config_at(release.checkpoint) == config_at(other.checkpoint)
            encoders = [load_file(one.checkpoint / FOLDER / "model.safetensors") for one in (release, other)]
            for ours, theirs in ((release.weights, other.weights), encoders):
                assert ours.keys() == theirs.keys()
                assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
            noises = [load_encoders(one.checkpoint, "cpu").deviation for one in (release, other)]
            assert noises[0] == pytest.approx(noises[1])


PASSAGES = [
    Passage("Good morning.", 0.0, 1.25, "0"),
    Passage('Hello, "you".', 1.25, 2.5, "1"),
    Passage("[Silence]", 2.5, 3.0, ""),
]


class Spelled:
    """Reader whose ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def end(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("written", "text", "passages"),
    [
        ("".join(SCRIPT), 'Good morning. Hello, "you". [Silence]', PASSAGES),
        (
            ' assistant \n[{"Start":1,"End":0.5,"Speaker":"A","Content":"{a}"}]\n',
            "{a}",
            [Passage("{a}", 1.0, 1.0, "A")],
        ),
        ("assistant\nGood [morning].", "Good [morning].", []),
        ("assist", "assist", []),
        ("", "", []),
        ("[]", "", []),
        ('[{"Start":0,"End":2,"Speaker":0,"Content":"Good mor', "Good mor", [Passage("Good mor", 0.0, 2.0, "0")]),
        ('[{"Start":0,"End":', '{"Start":0,"End":', []),
        ('[{"Start":"0","End":2,"Content":"a"},{"Start":NaN,"End":2,"Content":"b"}]', "a b", []),
        ('[{"Start":0,"End":1e999,"Content":"a"},{"Start":true,"End":2,"Content":"b"}]', "a b", []),
        ('[{"Start":0,"End":' + "9" * 400 + ',"Content":"a"}]', "a", []),
        ('[{"Start":0,"End":-2,"Content":"a"},{"Text":"b"},"c"]', 'a {"Text":"b"} "c"]', []),
        ("[{" + '"a":[' * 3000 + "{", "{" + '"a":[' * 3000 + "{", []),
    ],
)
def test_text_is_read_as_passages(written: str, text: str, passages: list[Passage]) -> None:
    reader = TranscriptReader(Spelled())
    found = list[Passage]()
    parts = list[str]()
    for character in written:
        parts.append(reader.push(ord(character)))
        found += reader.pop_passages()
    parts.append(reader.end())
    assert "".join(parts) == text
    assert found + reader.pop_passages() == passages
