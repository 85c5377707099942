"""Work on a text takes time that is proportional to its length, whatever it consists of."""

import resource
import subprocess
import sys
from collections.abc import Callable

from stretto_client.long_speech import split
from stretto_client.markup import has_marks
from stretto_client.places import Places
from stretto_client.tags import TagFilter
from stretto_contract.normal_forms import normalized
from stretto_contract.pronunciation import Dictionary, Pronouncer, folded, occurring
from stretto_contract.scripts import foreign_words, latin_surplus

NUM_CHARS = 50_000
CPU_S = 100  # a few are needed; in quadratic time, each of several kinds of work would take four minutes
PUMPS = {
    "letters": "a",
    "words": "word ",
    "combining marks": "\u0323\u0300",
    "begun tags": "<a ",
    "begun names of tags": "<think",
    "begun tags of reasoning": "think",
    "ends of links": "](",
    "brackets": "[",
    "begun entities": "&a",
    "line ends": "a\n",
    "spaces": " ",
    "backslashes": "\\",
    "backticks": "`a ",
}
CLAUSE = " ".join(f"w{number}" for number in range(100))
DICTIONARY = Dictionary({"a " * 19 + "b": "x", "." * 19 + "b": "y"})
WORK: dict[str, Callable[[str], object]] = {
    "folded": folded,
    "normalized": lambda text: [normalized(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")],
    "occurring": lambda text: occurring(["a", "New York"] * 500, text),
    "latin_surplus": latin_surplus,
    "foreign_words": foreign_words,
    "has_marks": has_marks,
    "split": lambda text: split(text, 300),
    "TagFilter": lambda text: TagFilter(()).add(text),
    "Places": lambda text: Places(text).find(CLAUSE),
    "Places after a tag": lambda text: Places("<" + text).find(CLAUSE),
    "Places after code": lambda text: Places("`<think>` " + text).find(CLAUSE),
    "Pronouncer": lambda text: Pronouncer((DICTIONARY,)).after(text),
}


def main() -> None:
    """Do all work, and print the name of each piece of it once it is done."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    for what, work in WORK.items():
        for name, pump in PUMPS.items():
            work("a" + pump * (NUM_CHARS // len(pump)))
            print(f"{what} of {name}", flush=True)


def test_no_text_takes_more_than_linear_time() -> None:
    """Killed by the kernel is what a hang looks like here; the time itself does not matter."""
    done = subprocess.run([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True, check=False)
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"hangs after: {last}"
    assert len(done.stdout.splitlines()) == len(WORK) * len(PUMPS)


if __name__ == "__main__":
    main()
