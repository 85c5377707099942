"""Batches of similar length."""

import random
from pathlib import Path

import numpy as np

from training.tiny.corpus import Corpus, WordStrings, cut, num_rows, write_encoded
from training.tiny.encoded import Spoken, Transcript
from training.tiny.words import load_words


def utterance(frames: int) -> Spoken:
    transcript = Transcript("up", (30, 2, 29, 30), (-1, 0, 0, -1))
    return Spoken(transcript, "slt", np.minimum(np.arange(frames), 3), np.zeros((frames, 7), dtype=np.uint8))


def test_batches_partition_items_within_the_padded_size() -> None:
    sizes = [random.Random(0).randint(1, 50) for _ in range(200)]
    batches = cut(sizes, lambda size: size, 120)
    assert sorted(size for batch in batches for size in batch) == sorted(sizes)
    assert all(len(batch) * max(batch) <= 120 for batch in batches)


def test_oversized_item_forms_its_own_batch() -> None:
    assert cut([5, 500], lambda size: size, 100) == [[5], [500]]


def test_corpus_epoch_has_every_utterance_once_and_new_files(tmp_path: Path) -> None:
    write_encoded(tmp_path / "codes_0000.pt", [utterance(frames) for frames in range(4, 24)])
    corpus = Corpus(tmp_path)
    batches = corpus.batches(200, random.Random(0))
    seen: list[int] = []
    while len(seen) < 20:
        seen += [len(each.codes) for each in next(batches)]
    assert sorted(seen) == list(range(4, 24))
    write_encoded(tmp_path / "codes_0001.pt", [utterance(30)])
    assert any(len(each.codes) == 30 for _ in range(40) for each in next(batches))


def test_long_utterances_are_excluded_from_batches(tmp_path: Path) -> None:
    write_encoded(tmp_path / "codes_0000.pt", [utterance(20), utterance(300)])
    batches = Corpus(tmp_path).batches(400, random.Random(0), max_frames=246)
    assert all(len(each.codes) == 20 for _ in range(5) for each in next(batches))


def test_row_count_matches_the_built_rows() -> None:
    assert num_rows(utterance(10)) == 10 + 4 + 2 + 9


def test_word_strings_are_enclosed_by_silence() -> None:
    words = load_words()
    strings = WordStrings(dict.fromkeys((*words.spoken, *words.read), ("ah", "p")), random.Random(0))
    transcript = strings.draw(3)
    assert len(transcript.text.split()) == 3
    assert transcript.words == (-1, 0, 0, 1, 1, 2, 2, -1)
