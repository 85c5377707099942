"""Qwen3-ASR equals transformers: prompts, features, and greedy replies alone, in a batch, preempted and cached."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from plugins.qwen3_asr.lab.random_qwen3_asr import (
    PLACEHOLDERS,
    command,
    config,
    published_config,
    shapes,
    write_release,
)
from plugins.qwen3_asr.tests.published_qwen3_asr import ENDS, Processor, Theirs, speech
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.log_mel_encoder import tower_record
from stretto.family.plugin import config_at
from stretto.family.text import TextTokenizer, load_text_codec
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import talk
from stretto.testing.releases import REMOVED, SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_qwen3_asr import PLUGIN
from stretto_qwen3_asr.convert import AUDIO, HEAD, Text, plan
from tests.family_suite import FamilySuite

RATE = 16_000
NUM_IDS = 24
LENGTH = 192
TEXT = "thinker_config.text_config."
TEXT_RECORD = config()["thinker_config"]["text_config"]


class Recording(NamedTuple):
    """A recording, and the hints of its request."""

    pcm: np.ndarray
    language: str | None = None
    prompt: str | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the request."""
        options = {} if self.language is None else {"language": self.language}
        turns = [{"role": "user", "audio": "pcm_in"}]
        if self.prompt is not None:
            turns.insert(0, {"role": "system", "text": self.prompt})
        return talk(*turns, **options) | {"pcm_in": self.pcm, "sample_rate": RATE}


# The last frames of a chunk of 1 s, and of a window of 8 s, are convolved and attended to apart.
RECORDINGS = {
    "seconds": Recording(speech(2.0, 1)),
    "odd": Recording(speech(1.2345, 2), prompt="what is ass tant? hello"),
    "long": Recording(speech(9.37, 3)),
    "language": Recording(speech(3.3, 4), "english"),
    "both": Recording(speech(1.01, 5), "cantonese", "\n user  \n"),
    "silence": Recording(np.zeros(24_000, np.float32)),
}


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published(size: str) -> PublishedSizes:
    record = published_config(size)
    text = Text.read(record["thinker_config"]["text_config"])
    parts = plan(text, tower_record(record, AUDIO, text.hidden_size))
    return PublishedSizes(
        shapes=shapes(record),
        plan=parts,
        written={"model.embed_tokens.weight": (151_936, text.hidden_size)},
        num_written=len(shapes(record)) - 1,
        unused=[HEAD],
    )


def theirs_of(release: SmallRelease, recording: Recording) -> dict[str, Any]:
    language = None if recording.language is None else recording.language.capitalize()
    return Processor(release.checkpoint).inputs(recording.pcm, language, recording.prompt)


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    return {
        name: (recording.inputs, theirs_of(release, recording)["input_ids"].T.numpy())
        for name, recording in RECORDINGS.items()
    }


def prompt_of(release: SmallRelease, recording: Recording, num_ids: int = NUM_IDS) -> Prompt:
    prompt = release.preprocessor.prepare(RawRequest(**recording.inputs))
    sampling = replace(prompt.sampling, text=replace(prompt.sampling.text, max_rows=num_ids), seed=0)
    return replace(prompt, sampling=sampling)


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    theirs = Theirs(release.size)
    expected = dict[str, ExpectedReply]()
    for name, recording in RECORDINGS.items():
        ids, logits = theirs.reply(theirs_of(release, recording), NUM_IDS)
        first, second = np.sort(logits)[:, -2:].T[::-1]
        assert (first - second).min() > 1e-4, f"{name}: nearly undecided: choose another seed"
        spoken = ids[:-1] if ids[-1] in ENDS else ids
        rows = [[token] for token in (*spoken, ENDS[0])]
        expected[name] = ExpectedReply(prompt_of(release, recording), rows)
    assert len({tuple(map(tuple, reply.rows)) for reply in expected.values()}) > 4
    return expected


class TestQwen3Asr(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("1.7B", "0.6B"),
        tokenizer="release/tokenizer_config.json",
        unneeded_tensors=[HEAD],
        # of transformers 5
        same_configs=[
            {
                f"{TEXT}rope_parameters": TEXT_RECORD["rope_scaling"] | {"rope_theta": TEXT_RECORD["rope_theta"]},
                f"{TEXT}rope_scaling": REMOVED,
                f"{TEXT}rope_theta": REMOVED,
            }
        ],
        refused_configs=[
            ({"model_type": "qwen3_tts"}, "model_type: expected 'qwen3_asr', got 'qwen3_tts'"),
            ({"thinker_config": REMOVED}, "thinker_config is missing"),
            ({"thinker_config.audio_token_id": 317}, "thinker_config.audio_token_id: expected 318, got 317"),
            ({f"{TEXT}rope_scaling.rope_type": "yarn"}, "rope_scaling.rope_type: expected 'default', got 'yarn'"),
            ({f"{TEXT}tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
            ({f"{TEXT}num_hidden_layers": 4}, "missing: thinker.model.layers.3.input_layernorm.weight"),
            ({f"{AUDIO}output_dim": 32}, "thinker_config.audio_config.output_dim: expected 96, got 32"),
            ({f"{AUDIO}n_window_infer": 150}, "n_window_infer must be a multiple of 2 * n_window, got 150 and 50"),
            ({"support_languages": []}, "support_languages: expected a list of 1 to 256 values, got []"),
            (
                {"support_languages": ["English", "english"]},
                "support_languages: expected names that differ in lower case, got 'English, english'",
            ),
        ],
        published=lambda: published("1.7B"),
        prompts=prompts,
        refused_inputs=[
            (Recording(speech(1.0), "klingon").inputs, "options.language: expected one of auto, chinese, english"),
            (Recording(speech(1.0), prompt="a" * 8_001).inputs, "messages[0].text: expected at most 8000 characters"),
            (
                Recording(speech(1.0), prompt="a <asr_text> b").inputs,
                "messages[0].text: expected none of the model's markers, got <asr_text>",
            ),
            (Recording(np.zeros(301 * RATE, np.float32)).inputs, "pcm_in: expected at most 300 s, got 301"),
            ({"text": "hello"}, "audio: expected audio for task 'asr', got text"),
        ],
        has_usual_requests=False,
        replies=replies,
        engine={"max_model_len": LENGTH},
        tight={"max_num_batched_tokens": 48, "num_gpu_blocks_override": 9},
    )

    def test_features_equal_those_of_transformers(self, release: SmallRelease) -> None:
        for name, recording in RECORDINGS.items():
            (audio,) = prompt_of(release, recording).audios
            theirs = theirs_of(release, recording)
            num_frames = int(theirs["input_features_mask"].sum())
            features = theirs["input_features"][0, :, :num_frames].T.numpy()
            assert np.abs(audio.features - features).max() < 1e-5, name
            check_audios(prompt_of(release, recording), AudioFormat.from_config(config_at(release.checkpoint)))

    def test_short_recording_is_completed_with_silence(self, release: SmallRelease) -> None:
        short = speech(0.2, 6)
        (audio,) = prompt_of(release, Recording(short)).audios
        (completed,) = prompt_of(release, Recording(np.pad(short, (0, RATE // 2 - len(short))))).audios
        assert np.array_equal(audio.features, completed.features)
        theirs = theirs_of(release, Recording(short))
        assert audio.num_rows == int((theirs["input_ids"] == PLACEHOLDERS["<|audio_pad|>"]).sum())

    @pytest.mark.parametrize(
        ("head", "text"),
        [
            ("language English", "Good morning."),
            ("language None", ""),
            ("language None", "hm"),
            (" Language  chinese\n", "你好"),
            (None, "Good morning."),
            (None, "language is hard, and so is a long text that begins with this word and never ends"),
            (None, "lang"),
        ],
    )
    def test_language_is_read_as_in_transformers(self, release: SmallRelease, head: str | None, text: str) -> None:
        tokenizer = TextTokenizer.at(release.checkpoint)
        ids = tokenizer.encode(text)
        if head is not None:
            ids = [*tokenizer.encode(head), PLACEHOLDERS["<asr_text>"], *ids]
        reader: Any = load_text_codec(release.family, release.checkpoint).reader("asr")
        pieces = [reader.push(token) for token in ids]
        theirs = Processor(release.checkpoint).processor.decode(ids, return_format="parsed")
        assert ("".join(pieces) + reader.end()).strip() == theirs["transcription"] == text
        assert reader.language == (theirs["language"] or "").lower()
        assert text in ("", "lang") or "".join(pieces), "the text is streamed"

    def test_bfloat16_release_is_converted(self, release: SmallRelease, tmp_path: Path) -> None:
        halves = write_release(tmp_path / "release", release.size, dtype="bfloat16")
        converted = SmallRelease(tmp_path / "whole", release.size, [*command(halves), "--dtype", "float32"])
        assert {str(tensor.dtype) for tensor in converted.weights.values()} == {"torch.float32"}
        assert all(tensor.equal(release.weights[name].bfloat16().float()) for name, tensor in converted.weights.items())

    @pytest.mark.parametrize("size", ["0.6B", "1.7B"])
    def test_both_published_sizes_are_planned(self, size: str) -> None:
        num_written = sum(int(np.prod(part.written)) for part in published(size).plan.values())
        assert round(num_written / 1e9, 2) == {"0.6B": 0.78, "1.7B": 2.04}[size]
