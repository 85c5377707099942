"""Texts of everyday prose, letters, repeated words and numbers, as lists of sentences written as in print.

The prose consists of the example sentences and the definitions of WordNet. Letters are written as their names, as the
family writes them.
"""

import random
import re
from pathlib import Path

from stretto.families.tiny.letters import NAMES
from training.tiny.text import ONES, domain_sentence, number_words
from training.tiny.words import load_words, word_string

LIMIT = 300  # maximum number of characters
EXAMPLE = re.compile(r'"([^"]+)"')
REMARK = re.compile(r"\([^)]*\)")
JOINTS = re.compile(r"\s*(?:[;:]|--|—)\s*")
READABLE = re.compile(r"[A-Za-z][A-Za-z',.?! ]*")
SHOUTED = re.compile(r"[A-Z]{2}|\b[B-HJ-Z]\b|\.(?=\S)|\b[a-z]\.|[,.?!]{2}|(?<![A-Za-z])'|'(?![A-Za-z])| [,.?!]")
GREETINGS = "Hello|Hi|Good morning|Wow|Oh|Yes|No|Great|Thanks|Sorry|Please|Okay|Well|Look|Stop|Wait|Help|Listen".split(
    "|"
)


def readable(text: str) -> str | None:
    """Return a sentence with only the family's punctuation; None if it has signs, digits or abbreviations."""
    text = JOINTS.sub(", ", REMARK.sub("", text)).replace("-", " ").replace('"', "")
    text = " ".join(text.split()).strip(" ,'")
    text = re.sub(r" ([,.?!])", r"\1", text)
    return text if READABLE.fullmatch(text) and not SHOUTED.search(text) and len(text) <= LIMIT else None


def wordnet(folder: Path) -> tuple[list[str], list[str]]:
    """Return the readable examples and definitions in WordNet's data files, each once."""
    examples: dict[str, None] = {}
    definitions: dict[str, None] = {}
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue  # the licence
            gloss = line.split("|", 1)[1]
            examples |= dict.fromkeys(text for each in EXAMPLE.findall(gloss) if (text := readable(each)))
            text = readable(EXAMPLE.sub("", gloss).strip(" ;"))
            if text:
                definitions[text] = None
    return list(examples), list(definitions)


def ended(sentence: str, rng: random.Random) -> str:
    """Return the sentence with a capital letter and a final mark."""
    sentence = sentence[:1].upper() + sentence[1:]
    return sentence if sentence[-1] in ".?!" else sentence + ("!" if rng.random() < 0.08 else ".")


def long_text(sentences: list[str], rng: random.Random, least: int, most: int) -> list[str]:
    """Return random sentences of `least` to `most` characters in all; shorter if a thousand draws do not suffice."""
    found: list[str] = []
    size = -1
    for _ in range(1000):
        if size >= least:
            break
        sentence = ended(rng.choice(sentences), rng)
        if size + 1 + len(sentence) <= most:
            found.append(sentence)
            size += 1 + len(sentence)
    return found


def _letters(rng: random.Random, low: int, high: int) -> str:
    return " ".join(NAMES[rng.choice(list(NAMES))] for _ in range(rng.randint(low, high)))


LETTER_FRAMES = (
    "the {}", "{} is here.", "the {} said no.", "my name is {}.", "it is spelled {}.", "{}", "{}.", "{}",
    "the letter {}.", "ask the {} about it.", "is it {} or {}?", "{}, {}, {}", "call the {} now!", "option {}.",
    "he works for the {} in {}.", "{} and {}", "plan {} or plan {}.", "{} {digit}", "{} {number}", "vitamin {}.",
    "room {} {digit}", "{} {digit} {digit}",
)  # fmt: skip


def letters(rng: random.Random) -> str:
    """Return a sentence with spelled letters."""
    text = rng.choice(LETTER_FRAMES)
    while "{}" in text:
        kind = rng.random()
        low, high = (1, 1) if kind < 0.3 else (2, 4) if kind < 0.85 else (5, 10)
        text = text.replace("{}", _letters(rng, low, high), 1)
    for name, words in (
        ("{digit}", lambda: rng.choice(ONES)),
        ("{number}", lambda: number_words(rng.randint(10, 999))),
    ):
        while name in text:
            text = text.replace(name, words(), 1)
    return text


class Alike:
    """Source of sentences with words that begin alike, or that are repeated."""

    def __init__(self, words: tuple[str, ...]):
        self._words = words
        self._by_start: dict[str, list[str]] = {}
        for word in words:
            self._by_start.setdefault(word[:3], []).append(word)

    def draw(self, rng: random.Random) -> str:
        kind = rng.random()
        word = self._words[int(len(self._words) * rng.random() ** 2)]
        if kind < 0.45:
            others = self._by_start[word[:3]]
            found = [word, *(rng.choice(others) for _ in range(rng.randint(1, 4)))]
            joint = rng.choice((" ", ", ", ". "))
            return joint.join(found) + rng.choice(("", ".", "?"))
        if kind < 0.8:
            joint = rng.choice((" ", " ", ", "))
            return joint.join([word] * rng.randint(2, 10)) + rng.choice(("", ".", "!"))
        other = rng.choice(self._words)
        return rng.choice((" ", ", ", " and ")).join([word, other] * rng.randint(2, 3)) + rng.choice(("", "."))

    def echo(self, sentence: str, rng: random.Random) -> list[str]:
        """Return the sentence and a short one that begins like its last word, as in "This is a test. Testing"."""
        found = ended(sentence, rng)
        last = found.rstrip(".?!").rsplit(" ", 1)[-1].lower()
        others = self._by_start.get(last[:3], [last])
        closest = [each for each in others if each.startswith(last[:5]) and each != last] or others
        pool = closest if rng.random() < 0.7 else others
        words = [rng.choice(pool).capitalize(), *(rng.choice(pool) for _ in range(rng.choice((0, 0, 1, 2))))]
        return [found, " ".join(words) + rng.choice(("", ".", "!"))]


def numbers(rng: random.Random) -> str:
    """Return a text of numbers: counts, decimals, years, ordinals, telephone numbers, times and sums."""
    kind = rng.randrange(9)
    if kind == 0:
        return " ".join(rng.choice(ONES) for _ in range(rng.randint(3, 12)))
    if kind == 1:
        groups = (
            " ".join(rng.choice(["oh", *ONES[1:]]) for _ in range(rng.randint(2, 4))) for _ in range(rng.randint(2, 4))
        )
        return ", ".join(groups) + "."
    if kind == 2:
        digits = " ".join(rng.choice(ONES) for _ in range(rng.randint(1, 5)))
        return f"{number_words(rng.randint(0, 999))} point {digits}"
    if kind == 3:
        return f"in {number_words(rng.randint(11, 20))} {rng.choice(['hundred', number_words(rng.randint(10, 99))])}."
    if kind == 4:
        unit = rng.choice("dollars euros pounds percent kilometers miles degrees people grams minutes years".split())
        return f"{number_words(rng.randint(2, 999_999))} {unit}"
    if kind == 5:
        big = rng.choice(("million", "billion", "thousand", "hundred"))
        return f"about {number_words(rng.randint(1, 99))} {big} {rng.choice(('people', 'dollars', 'years', 'times'))}."
    if kind == 6:
        first = number_words(rng.randint(1, 59))
        second = number_words(rng.randint(1, 20))
        return f"{first} divided by {second} times minus {rng.choice(ONES)}"
    if kind == 7:
        start = rng.randint(0, 90)
        return " ".join(number_words(n) for n in range(start, start + rng.randint(3, 7)))
    return number_words(rng.randint(0, 999_999))


def shouted(rng: random.Random) -> str:
    """Return a short exclamation or question."""
    words = load_words().spoken
    word = words[int(3000 * rng.random() ** 2)]
    return rng.choice((f"{rng.choice(GREETINGS)}!", f"{rng.choice(GREETINGS)}, {word}!", f"{word}?", f"{word}!",
                       f"What {word}?", f"Why not {word}?", f"No {word}!", f"{rng.choice(GREETINGS)}?"))  # fmt: skip


def few_words(rng: random.Random) -> str:
    """Return one or two words."""
    words = load_words()
    pool = words.spoken if rng.random() < 0.7 else words.read
    return " ".join(rng.choice(pool) for _ in range(1 + (rng.random() < 0.3))) + rng.choice(("", ".", "", "?"))


def rare_string(rng: random.Random) -> str:
    """Return a few words, most of them rare."""
    words = load_words()
    return " ".join(rng.choice(words.read if rng.random() < 0.7 else words.spoken) for _ in range(rng.randint(2, 8)))


def sentences_of(text: str) -> list[str]:
    """Split a text after the marks that end a sentence."""
    return re.split(r"(?<=[.?!]) ", text)


def everyday(examples: list[str]) -> list[str]:
    """Return 60 of the examples, of 5 to 12 words that are all frequent: a test set."""
    frequent = set(load_words().spoken[:3000])
    fitting = [
        each
        for each in examples
        if set(each.lower().split()) <= frequent and each[0].isupper() and 5 <= each.count(" ") + 1 <= 12
    ]
    return random.Random(11).sample(fitting, 60)


def texts(examples: list[str], definitions: list[str], rng: random.Random, scale: float = 1.0) -> list[list[str]]:
    """Return the texts of the training speech, shuffled. `scale` is the share of their full number."""
    prose = [*examples, *(each for each in definitions if len(each) < 120)]
    alike = Alike(load_words().spoken[:8000])
    kinds = {
        "prose": (34_000, lambda: [rng.choice(examples)]),
        "ended": (7_000, lambda: [ended(rng.choice(prose), rng)]),
        "two": (4_000, lambda: long_text(prose, rng, 60, 150)),
        "long": (4_500, lambda: long_text(prose, rng, 150, LIMIT)),
        "longest": (1_500, lambda: long_text(prose, rng, 250, LIMIT)),
        "domain": (15_000, lambda: sentences_of(domain_sentence(rng))),
        "long domain": (1_500, lambda: long_text([domain_sentence(rng) for _ in range(20)], rng, 120, LIMIT)),
        "longest domain": (1_000, lambda: long_text([domain_sentence(rng) for _ in range(30)], rng, 250, LIMIT)),
        "strings": (7_000, lambda: [word_string(load_words().spoken, rng, 3, 10)]),
        "long strings": (700, lambda: [word_string(load_words().spoken, rng, 15, 40)]),
        "rare": (6_000, lambda: [rare_string(rng)]),
        "letters": (5_000, lambda: [letters(rng)]),
        "alike": (6_500, lambda: sentences_of(alike.draw(rng))),
        "echo": (1_500, lambda: alike.echo(rng.choice(prose), rng)),
        "numbers": (3_500, lambda: [numbers(rng)]),
        "few": (6_000, lambda: [few_words(rng)]),
        "shouted": (1_500, lambda: [shouted(rng)]),
    }
    found = [draw() for count, draw in kinds.values() for _ in range(round(count * scale))]
    rng.shuffle(found)
    return [sentences for sentences in found if len(" ".join(sentences)) <= LIMIT]


def frequent(sentences: list[str], most: int, words: int) -> list[str]:
    """Return the sentences of 4 to `words` words that are all among the `most` frequent ones."""
    vocabulary = set(load_words().spoken[:most])
    spelled = {text: text.lower().translate(str.maketrans("", "", ",.?!")).split() for text in sentences}
    return [text for text, found in spelled.items() if 4 <= len(found) <= words and vocabulary.issuperset(found)]


class Chain:
    """Source of sentences in which each word has followed the last one or two words in an example sentence."""

    def __init__(self, sentences: list[str]):
        self._after: dict[tuple[str, ...], list[str]] = {}
        for sentence in sentences:
            words = ["", "", *sentence.lower().rstrip(".?!").split(), ""]
            for index, word in enumerate(words[2:], start=2):
                for count in (1, 2):
                    self._after.setdefault(tuple(words[index - count : index]), []).append(word)

    def draw(self, rng: random.Random) -> str:
        """Return a sentence of 4 to 12 words."""
        while True:
            words = ["", ""]
            while len(words) == 2 or (words[-1] and len(words) < 15):
                followers = self._after[tuple(words[-2:])]
                if len(set(followers)) < 2 or rng.random() < 0.35:
                    followers = self._after[(words[-1],)]
                words.append(rng.choice(followers))
            if not words[-1] and len(words) >= 7:
                return " ".join(words[2:-1])


def plain_texts(examples: list[str], definitions: list[str], rng: random.Random) -> list[list[str]]:
    """Return texts that the model speaks in order to learn to transcribe itself. Most have frequent words only."""

    def marked(text: str) -> list[str]:
        return [ended(text, rng) if rng.random() < 0.3 else text]

    plain = frequent(examples, 6000, 14)
    chain = Chain(frequent(examples, 6000, 12))
    found = [marked(text) for text in plain]
    found += [marked(text) for text in rng.sample(frequent(definitions, 6000, 12), 2500)]
    found += [marked(chain.draw(rng)) for _ in range(5000)]
    found += [[word_string(load_words().spoken[:4000], rng, 4, 10)] for _ in range(2000)]
    found += [sentences_of(domain_sentence(rng)) for _ in range(900)]
    found += [[draw(rng)] for draw, count in ((numbers, 100), (few_words, 250), (shouted, 150)) for _ in range(count)]
    found += [long_text(plain, rng, 60, 150) for _ in range(700)]
    rng.shuffle(found)
    return found
