"""Words used in training, and held-out words."""

from training.tiny.test_sets import open_sentences, open_vocabulary
from training.tiny.text import domain_vocabulary
from training.tiny.words import HELD_OUT, load_words


def test_held_out_words_are_absent_from_training_lists_and_domain() -> None:
    words = load_words()
    assert len(words.held_out) == HELD_OUT
    assert not set(words.held_out) & {*words.spoken, *words.read, *domain_vocabulary()}


def test_open_test_is_mostly_held_out_words_known_to_its_vocabulary() -> None:
    held_out = set(load_words().held_out)
    spoken = [word for sentence in open_sentences() for word in sentence.split()]
    assert 0.5 < sum(word in held_out for word in spoken) / len(spoken) < 0.7
    assert set(spoken) <= set(open_vocabulary())
