"""Prompts and text of Moshi: initial ids, the user's delayed codes, pieces of text among pads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.kyutai.tests.moshi_release import make_checkpoint, vocabulary
from stretto.errors import CheckpointError
from stretto.family.live_audio import FrameIds
from stretto.family.plugin import VOCABULARY, family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_kyutai.moshi.family import MoshiVocabulary, moshi
from stretto_kyutai.moshi.reader import PieceReader, open_text_codec

PCM = (np.sin(np.arange(20_001) ** 1.3 / 300) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("moshi"), num_layers=1, depformer_num_layers=1)


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def test_streamed_input_has_the_delayed_codes_of_the_recording(preprocessor: Preprocessor, checkpoint: Path) -> None:
    prompt, known = preprocessor.prepare(RawRequest(pcm_in=PCM, sample_rate=24_000)), vocabulary(checkpoint)
    assert prompt.task == "duplex"
    assert prompt.rows.tolist() == [[96, *(first + 64 for first in known.first_codes)]]
    assert prompt.delayed_tail is not None
    assert prompt.delayed_tail.tolist() == prompt.rows[:, 1:].tolist()
    codes = preprocessor.codec.encode(np.pad(PCM, (0, -len(PCM) % 1920)))
    assert codes.shape == (8, 11)
    track = np.array(prompt.track).reshape(11, 8) - np.array(known.first_codes[8:])
    assert (track[:, 0] == codes[0]).all()
    assert (track[1:, 1:] == codes[1:, :-1].T).all()
    assert (track[0, 1:] == 64).all()


def test_codes_prompt_equals_pcm_prompt(preprocessor: Preprocessor) -> None:
    heard = preprocessor.prepare(RawRequest(pcm_in=PCM, sample_rate=24_000, options='{"seed": 3}'))
    codes = preprocessor.codec.encode(np.pad(PCM, (0, -len(PCM) % 1920)))
    given = json.dumps([{"role": "user", "codes": codes.tolist()}])
    prompt = preprocessor.prepare(RawRequest(messages=given, options='{"seed": 3}'))
    assert prompt.track == heard.track
    assert (prompt.rows == heard.rows).all()


def test_text_and_codes_have_separate_sampling_options(preprocessor: Preprocessor) -> None:
    options = '{"top_k": 3, "depth": {"temperature": 0.5, "top_k": 7, "top_p": 0.9}}'
    sampling = preprocessor.prepare(RawRequest(pcm_in=PCM, sample_rate=24_000, options=options)).sampling
    assert (sampling.audio.temperature, sampling.audio.top_k) == (0.7, 3)
    assert (sampling.codes.temperature, sampling.codes.top_k, sampling.codes.top_p) == (0.5, 7, 0.9)
    sampling = preprocessor.prepare(RawRequest(pcm_in=PCM, sample_rate=24_000)).sampling
    assert (sampling.codes.temperature, sampling.codes.top_k) == (0.8, 250)


def test_frame_delays_are_independent_of_part_sizes() -> None:
    codes = np.random.default_rng(0).integers(0, 50, (3, 40))
    for sizes in ([40], [1] * 40, [0, 3, 37], [2, 1, 5, 0, 32]):
        ids, at, rows = FrameIds((100, 200, 300), (0, 1, 3), (1, 2, 3)), 0, []
        for size in sizes:
            rows.append(ids.push(codes[:, at : at + size]))
            at += size
        found = np.concatenate(rows)
        assert found.dtype == np.int32
        for k, (first, delay, initial) in enumerate(((100, 0, 1), (200, 1, 2), (300, 3, 3))):
            assert found[:delay, k].tolist() == [initial] * delay
            assert (found[delay:, k] == codes[k, : 40 - delay] + first).all()


def test_pieces_decode_immediately_and_bytes_per_character() -> None:
    tokens = dict(enumerate(["<unk>", "<s>", "</s>", "<pad>", "▁Good", "▁day", "s", "<0xC3>", "<0xA9>", "▁"]))
    reader = PieceReader(tokens)
    assert [reader.push(token) for token in (3, 0, 4, 3, 5, 6, 1, 2)] == ["", "", "Good", "", " day", "s", "", ""]
    assert [reader.push(token) for token in (7, 3, 8, 9)] == ["", "", "é", " "]
    assert reader.push(7) == ""
    assert reader.push(6) == "\ufffds"
    assert reader.end() == ""


def test_text_tokenizer_of_wrong_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    record = json.loads((checkpoint / "config.json").read_text())
    record[VOCABULARY]["num_text_ids"] = 95
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
    with pytest.raises(CheckpointError, match="expected 95 tokens, got 96"):
        open_text_codec(family_at(tmp_path), tmp_path)


def test_impossible_vocabularies_are_refused() -> None:
    known = MoshiVocabulary()
    assert moshi(known).layout.num_input_streams == 17
    for changed in ({"delays": (0, 1)}, {"delays": (1,) * 8}, {"delays": (0, *[17] * 7)}, {"num_text_ids": 3}):
        with pytest.raises(ValueError, match="expected"):
            replace(known, **changed)
