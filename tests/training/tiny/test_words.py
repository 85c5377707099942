"""Words used in training, and held-out words."""

import random

from training.tiny.corpus import WordStrings
from training.tiny.synthesise import spelled_words
from training.tiny.test_sets import domain_sentences, open_sentences, open_vocabulary
from training.tiny.text import domain_vocabulary
from training.tiny.words import HELD_OUT, load_words, training_sentence


def test_held_out_words_are_in_no_list_and_not_in_the_domain() -> None:
    words = load_words()
    assert len(words.held_out) == HELD_OUT
    assert not set(words.held_out) & {*words.spoken, *words.read, *domain_vocabulary()}


def test_no_training_sentence_holds_a_held_out_word() -> None:
    rng, held_out = random.Random(3), set(load_words().held_out)
    for _ in range(3000):
        assert not held_out & set(spelled_words(training_sentence(rng)))


def test_no_word_string_holds_a_held_out_word() -> None:
    words = load_words()
    pronunciations = dict.fromkeys((*words.spoken, *words.read, *words.held_out), ("ah",))
    strings = WordStrings(pronunciations, random.Random(4))
    for _ in range(3000):
        assert not set(words.held_out) & set(strings.draw(4).text.split())


def test_the_open_test_is_mostly_of_held_out_words_and_its_judge_knows_them() -> None:
    held_out = set(load_words().held_out)
    spoken = [word for sentence in open_sentences() for word in sentence.split()]
    assert 0.5 < sum(word in held_out for word in spoken) / len(spoken) < 0.7
    assert set(spoken) <= set(open_vocabulary())


def test_the_domain_test_is_the_same_every_time_and_has_no_repeats() -> None:
    assert domain_sentences() == domain_sentences()
    assert len(set(domain_sentences())) == 60
