"""Kyutai STT prompts and text: silence around a recording, words and their times."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.kyutai.tests.kyutai_release import make_checkpoint
from stretto.errors import CheckpointError
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import WordMark
from stretto_kyutai.kyutai_stt.family import END_PAD, PAD, SttVocabulary, kyutai_stt
from stretto_kyutai.kyutai_stt.prompt import initial_row
from stretto_kyutai.kyutai_stt.reader import WordReader, open_text_codec

PCM = (np.sin(np.arange(30_001) ** 1.3 / 300) / 2).astype(np.float32)
KNOWN = SttVocabulary(96, 32, 64, delay_rows=2, delay_s=0.16, prefix_s=0.08)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kyutai"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def test_silence_is_appended_to_the_recording(preprocessor: Preprocessor) -> None:
    """1.5 s of silence (the delay and one second) follow, then padding to a complete frame."""
    prompt = preprocessor.prepare(RawRequest(pcm_in=PCM, sample_rate=24_000))
    known = SttVocabulary(96, 32, 64)
    assert prompt.task == "asr"
    assert prompt.rows.tolist() == [[96, *(first + 64 for first in known.first_codes)]]
    samples = np.pad(PCM, (0, 36_000))
    samples = np.pad(samples, (0, -len(samples) % 1920))
    codes = preprocessor.codec.encode(samples)
    assert codes.shape == (32, 35)
    track = np.array(prompt.track).reshape(35, 32)
    assert (track - np.array(known.first_codes) == codes.T).all()


def test_live_session_prompt_starts_without_audio(preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(RawRequest(options='{"live": true, "seed": 3}'))
    assert (prompt.is_open, prompt.track, prompt.task, prompt.sampling.seed) == (True, (), "asr", 3)
    assert (prompt.rows == initial_row(SttVocabulary(96, 32, 64))).all()


def read(checkpoint: Path, ids: list[int]) -> tuple[list[str], list[WordMark]]:
    """Read rows and return the parts of the text, and the words with their times."""
    reader = WordReader(sentencepiece_at(checkpoint / "tokenizer.model"), KNOWN)
    parts = [part for part in map(reader.push, ids) if part]
    marks = reader.pop_marks()
    parts.append(reader.end())
    assert not reader.end()
    return [part for part in parts if part], marks + reader.pop_marks()


def pieces(checkpoint: Path, text: str) -> list[int]:
    return sentencepiece_at(checkpoint / "tokenizer.model").encode(text)


def test_word_times_come_from_generated_borders(checkpoint: Path) -> None:
    """Borders are generated two rows late, and one frame of silence precedes the recording."""
    door, a_day = pieces(checkpoint, "door"), [pieces(checkpoint, "a"), pieces(checkpoint, "day")]
    ids = [PAD] * 5 + [END_PAD] + door + [END_PAD] + a_day[0] + [PAD] + a_day[1] + [PAD] * 30
    first = 6 - 3
    second = 7 + len(door) - 3
    parts, marks = read(checkpoint, ids)
    assert parts == ["door", " a", " day"]
    last = len(ids) - 1 - 15  # 1.24 s of silence in all
    assert marks == [WordMark("door", first, second), WordMark("a", second, last), WordMark("day", second, last)]


def test_word_start_is_reported_before_its_end(checkpoint: Path) -> None:
    reader = WordReader(sentencepiece_at(checkpoint / "tokenizer.model"), KNOWN)
    door = pieces(checkpoint, "door")
    for token_id in [PAD] * 5 + [END_PAD] + door + [PAD]:
        assert not reader.pop_begun()
        reader.push(token_id)
    assert reader.pop_begun() == [WordMark("door", 6 - 3)]
    assert not reader.pop_begun()
    assert not reader.pop_marks()
    assert reader.num_transcribed == 7 + len(door) - 3
    reader.push(END_PAD)
    assert reader.pop_marks() == [WordMark("door", 6 - 3, 8 + len(door) - 3)]
    assert not reader.pop_begun()


def test_stt_word_is_emitted_at_its_end(checkpoint: Path) -> None:
    word = pieces(checkpoint, "planks")
    assert len(word) > 1
    assert read(checkpoint, [*word, END_PAD])[0] == ["planks"]
    assert read(checkpoint, word)[0] == ["planks"]
    assert read(checkpoint, [1, 2, PAD]) == ([], [])  # turns have no text
    assert read(checkpoint, []) == ([], [])


def test_text_tokenizer_of_wrong_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    record = json.loads((checkpoint / "config.json").read_text())
    record[VOCABULARY]["num_text_ids"] = 95
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
    with pytest.raises(CheckpointError, match="expected 95 tokens, got 96"):
        open_text_codec(family_at(tmp_path), tmp_path)


def test_longest_recording_fits_the_model() -> None:
    for known in (SttVocabulary(), SttVocabulary(delay_rows=32, delay_s=2.5, prefix_s=1.0, max_model_len=512)):
        longest_s = kyutai_stt(known).max_audio_s
        num_frames = int((longest_s + known.prefix_s + known.flush_s) * 12.5) + 1
        assert 1 + num_frames + 2 <= known.max_model_len
    with pytest.raises(ValueError, match="expected a delay and a prefix between 0 and 10 s"):
        replace(KNOWN, prefix_s=-1.0)


def test_vocabulary_round_trips_through_the_config(checkpoint: Path) -> None:
    known = SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    assert known.first_codes[0] == 99
    assert known.vocab_size == 99 + 32 * 65
    assert family_at(checkpoint).layout.num_input_streams == 33
