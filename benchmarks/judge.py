"""Judge recordings of `benchmarks.checks` by pocketsphinx, which no check of speech uses.

    PYTHONPATH=… /path/to/environment/bin/python -m benchmarks.judge --folder DIR

The environment has pocketsphinx and wordfreq beside the packages of this repository. A recording is *spoiled* if at
least two words are missing, added or others, both with the grammar of the sentences' domain and with pocketsphinx's
own. The command prints the number of spoiled recordings for each label, and writes `judged.jsonl` into the folder.
"""

import argparse
import json
import wave
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.checks import SENT, shown
from benchmarks.faulty_speech import FULL_SCALE
from training.tiny.judge import Judge, word_errors
from training.tiny.words import spelled_words

GRAMMARS = ("domain", "everyday")
LEAST_ERRORS = 2


def wrong_words(judges: Mapping[str, Judge], path: Path, text: str) -> list[int]:
    """Return how many words are wrong with each grammar; the second one judges only recordings that seem spoiled."""
    with wave.open(str(path)) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16) / FULL_SCALE
    errors = list[int]()
    for judge in judges.values():
        errors.append(word_errors(spelled_words(text.lower()), judge.hear(pcm)))
        if errors[-1] < LEAST_ERRORS:
            break
    return errors


def main(folder: Path) -> None:
    judges = {grammar: Judge(grammar, folder / "judge") for grammar in GRAMMARS}
    stored = folder / "judged.jsonl"
    errors = dict[str, list[int]]()
    for line in stored.read_text().splitlines() if stored.exists() else ():
        errors |= json.loads(line)
    labels: defaultdict[str, list[list[int]]] = defaultdict(list)
    for line in (folder / SENT).read_text().splitlines():
        record = json.loads(line)
        clip = f"{record['file']} {record['text']}"
        if clip not in errors:
            errors[clip] = wrong_words(judges, folder / record["file"], record["text"])
            with stored.open("a") as file:
                file.write(json.dumps({clip: errors[clip]}) + "\n")
        labels[record["label"]].append(errors[clip])
    print("| recordings | number | spoiled per 1,000 | some word wrong, domain, % |\n|---|---|---|---|")
    for label, clips in labels.items():
        spoiled = sum(min(clip) >= LEAST_ERRORS for clip in clips)
        differs = sum(clip[0] > 0 for clip in clips)
        print(f"| {label} | {len(clips)} | {shown(spoiled, len(clips), 1000)} | {shown(differs, len(clips))} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the recordings")
    main(parser.parse_args().folder)
