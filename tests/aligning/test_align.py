"""Alignment paths equal torchaudio's forced_align. Words become labels, and spans become times."""

from pathlib import Path

import numpy as np
import pytest

from stretto.aligning.align import Alphabet, CannotAlign, align, spans, split_words, times, word_spans

# Random and constant emissions, targets and paths of torchaudio 2.6.0: 254 cases, with repeats and ties.
FIXTURE = Path(__file__).parents[1] / "data" / "forced_align.npz"
UPPER = Alphabet({label: index for index, label in enumerate("-|ABCDE'")}, 0)
LOWER = Alphabet({label: index for index, label in enumerate("-aeinou")}, 0)


def certain(path: list[int], num_labels: int) -> np.ndarray:
    """Return emissions that give nearly all probability to the labels of `path`."""
    log_p = np.full((len(path), num_labels), -9.0, np.float32)
    log_p[np.arange(len(path)), path] = -0.1
    return log_p


def test_alignment_paths_match_torchaudio_in_every_case_and_tie() -> None:
    stored = np.load(FIXTURE)
    cases = sorted({name.split(".")[0] for name in stored.files})
    assert len(cases) == 254
    assert sum(not np.ptp(stored[f"{case}.log_p"]) for case in cases) > 40  # all paths equally likely
    for case in cases:
        path = align(stored[f"{case}.log_p"], stored[f"{case}.targets"].tolist())
        np.testing.assert_array_equal(path, stored[f"{case}.path"], case)


def test_alignment_path_is_optimal() -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        log_p = np.log(draw.dirichlet(np.ones(3), 6)).astype(np.float32)
        targets = draw.integers(1, 3, 3).tolist()
        every = np.stack(np.meshgrid(*[np.arange(3)] * 6, indexing="ij"), -1).reshape(-1, 6)
        reads = [[int(b) for a, b in zip([-1, *row], row, strict=False) if b != a and b != 0] for row in every]
        fitting = [row for row, read in zip(every, reads, strict=True) if read == targets]
        if not fitting:
            continue
        best = max(float(log_p[np.arange(6), row].sum()) for row in fitting)
        path = align(log_p, targets)
        assert float(log_p[np.arange(6), path].sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "at least one label"),
        ([1, 0], "except 0"),
        ([1, 4], r"in \[0, 3\]"),
        ([-1], r"in \[0, 3\]"),
        ([1, 2, 3, 1, 2, 3], "at least 6 frames"),
        ([1, 1, 1], "at least 5 frames"),
    ],
)
def test_invalid_alignment_targets_are_refused(targets: list[int], message: str) -> None:
    with pytest.raises(CannotAlign, match=message):
        align(np.zeros((4, 4), np.float32), targets)


def test_alignment_spans_have_their_mean_probability() -> None:
    log_p = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.5, 0.5]], np.float32))
    found = spans(np.array([0, 1, 1, 0, 1], np.int32), log_p)
    assert [(span.label, span.start, span.end) for span in found] == [(1, 1, 3), (1, 4, 5)]
    np.testing.assert_allclose([span.score for span in found], [0.7, 0.5], rtol=1e-5)


def test_word_times_end_at_the_last_letter_and_numbers_are_wildcards() -> None:
    # "AB" "7" "E'E" with separators; label 8 is the star that the second word becomes
    path = [0, 2, 2, 3, 0, 1, 4, 5, 4, 1, 6, 6, 7, 6, 0, 0]
    found = times(certain(path, 8), ["ab", "7", "e\u2019e"], UPPER, 1.6)
    assert [(each.word, round(each.start_s, 3), round(each.end_s, 3)) for each in found] == [
        ("ab", 0.1, 0.4),
        ("7", 0.6, 0.9),
        ("e\u2019e", 1.0, 1.4),
    ]
    assert found[0].score == pytest.approx(np.exp(-0.1), abs=1e-4)
    assert found[1].score == 1.0


def test_alignment_without_a_separator_label() -> None:
    found = times(certain([1, 4, 0, 4, 2], 7), ["An", "né"], LOWER, 0.5)
    assert [each.start_s for each in found] == pytest.approx([0.0, 0.3])
    assert [each.end_s for each in found] == pytest.approx([0.2, 0.5])


def test_more_words_than_frames_are_refused() -> None:
    with pytest.raises(CannotAlign, match="at least 5 frames"):
        times(np.zeros((4, 8), np.float32), ["a", "b", "c"], UPPER, 0.1)
    with pytest.raises(CannotAlign, match="at least one label"):
        times(np.zeros((4, 8), np.float32), [], UPPER, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The birch\tcanoe,\n slid - $5!", ["The", "birch", "canoe,", "slid", "$5!"]),
        ("你好。ABC", ["你", "好", "ABC"]),
        ("がっこう", ["が", "っ", "こ", "う"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("… — !", []),
    ],
)
def test_text_is_split_into_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_words_keep_the_spelling_of_the_text() -> None:
    assert split_words("cafe\u0301 \u30ab\u3099 \ufb01n") == ["cafe\u0301", "\u30ab\u3099", "\ufb01n"]


def test_letters_are_spelled_in_the_model_alphabet() -> None:
    assert UPPER.spell("b\u00e9d\uff21") == [3, 6, 5, 2]  # an accent is dropped, a full-width letter is plain
    assert LOWER.spell("Ion-42|") == [3, 5, 4]
    assert UPPER.spell("777") == []
