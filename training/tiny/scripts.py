"""Scripts of the training speech: python -m training.tiny.scripts --wordnet DIR --out DIR

The command writes `scripts.json.gz` (speech to synthesise), `reading.json.gz` (sentences without audio) and
`pronunciations.json.gz` (single words).
"""

import argparse
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from stretto.families.tiny.letters import NAMES as LETTER_NAMES
from training.tiny.prose import everyday, texts, wordnet
from training.tiny.script_files import MAX_PHONEMES, PRONUNCIATIONS, PROSE, READING, SCRIPTS, write
from training.tiny.teacher import Reader, Script, Unreadable
from training.tiny.test_sets import domain_sentences, open_sentences
from training.tiny.words import load_words

CONTEXTUAL = 150  # most frequent words, which are learned only from sentences
NAMES = "monday tuesday wednesday thursday friday saturday sunday january february march april june july august " \
    "september october november december london paris berlin tokyo boston chicago denver madrid rome sydney toronto " \
    "dublin oslo vienna seattle dallas athens cairo lisbon geneva alice david maria peter susan robert anna michael " \
    "laura james emma daniel i".split()  # fmt: skip


def cased(sentence: str) -> str:
    """Return a sentence with names in capitals, as the teacher's rules expect."""
    return " ".join(word.capitalize() if word.strip(",.?!") in NAMES else word for word in sentence.split(" "))


def scripts_of(reader: Reader, texts: Iterable[list[str]], avoid: set[str]) -> list[Script]:
    """Return the scripts of readable texts, without those in `avoid` or with a held-out word."""
    held_out = set(load_words().held_out) - set(LETTER_NAMES.values())
    found = []
    for sentences in texts:
        try:
            script = reader.script([cased(sentence) for sentence in sentences])
        except Unreadable:
            continue
        words = {word.strip(",.?!") for word in script.text.split(" ")}
        if words & held_out or script.text.strip(".?!") in avoid or len(script.phonemes) > MAX_PHONEMES:
            continue
        found.append(script)
    return found


def pronunciations(reader: Reader) -> dict[str, tuple[int, ...]]:
    """Return the phonemes of every taught word by itself, except words that sound different in a sentence."""
    words = load_words()
    found = {}
    for word in (*words.spoken[CONTEXTUAL:], *words.read):
        try:
            found[word] = reader.pronounce(cased(word))
        except Unreadable:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of texts")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    reader = Reader()
    examples, definitions = wordnet(arguments.wordnet)
    prose = everyday(examples)
    examples = [each for each in examples if each not in set(prose)]
    avoid = {*domain_sentences(), *open_sentences()}
    write(arguments.out / PROSE, prose)
    write(arguments.out / PRONUNCIATIONS, pronunciations(reader))
    speech = scripts_of(reader, texts(examples, definitions, random.Random(1), arguments.scale), avoid)
    write(arguments.out / SCRIPTS, [asdict(script) for script in speech])
    print(f"{len(speech)} scripts, {sum(len(each.text) for each in speech)} characters", flush=True)
    unspoken = [[each] for each in (*examples, *definitions)]
    reading = scripts_of(reader, unspoken[: round(len(unspoken) * arguments.scale)], avoid)
    write(arguments.out / READING, [asdict(script) | {"sentences": (), "owners": ()} for script in reading])
    print(f"{len(reading)} sentences without audio", flush=True)


if __name__ == "__main__":
    main()
