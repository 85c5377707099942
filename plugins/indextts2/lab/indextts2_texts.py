"""Texts for IndexTTS-2's tests, and a fixture with their ids as the authors' code computes them.

    INDEX_TTS_SRC=index-tts python -m plugins.indextts2.lab.indextts2_texts plugins/indextts2/tests/data/texts.json

INDEX_TTS_SRC is a clone of https://github.com/index-tts/index-tts at revision ee40fa7, whose `indextts.utils.front`
needs WeTextProcessing. The tokenizer is that of the small random release.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.authors.reply_fixture import Replies, run

TEXTS = (
    "Hello there, how are you today?",
    "It's a good day; that's what he said: \"Where's the (old) door?\"",
    "The price is $12.50 for 3 books, 20% off.",
    "Call me at 8:30 on May 5th, 2025...",
    "GPT-5-nano and F5-TTS are 10 times faster.",
    "今天天气真不错，我们去公园散步吧。",
    "2002年的第一场雪，下在了2003年。",
    "他买了3.5公斤苹果，花了¥28元！",
    "电话：135-4567-8900",
    "速度是10km/h，比分3:2。",
    "最zhong4要的是：不要chong2蹈覆辙",
    "晕XUAN4是一种GAN3觉，女孩nü3孩lve4过jun4马",
    "约瑟夫·高登-莱维特和克里斯托弗·诺兰",
    "今天是个好日子 it's a good day",
    "《盗梦空间》——“梦”……？【完】",
    "1键3连 beta2 和 CosyVoice-2",
    "x",
    "我",
)


def main() -> None:
    """Write the fixture, or check an existing one."""
    run(__doc__, read, write, compare)


def read() -> Replies:
    """Return each text with its normalised form and its ids, as the authors' code gives them."""
    sys.path.insert(0, os.environ.get("INDEX_TTS_SRC", "index-tts"))
    from plugins.indextts2.lab.random_indextts2 import write_tokenizer

    front = import_module("indextts.utils.front")
    normalizer = front.TextNormalizer(enable_glossary=True)
    normalizer.load()
    with TemporaryDirectory() as folder:
        tokenizer = front.TextTokenizer(str(write_tokenizer(Path(folder))), normalizer)
        return [
            {
                "text": text,
                "normalised": normalizer.normalize(text),
                "ids": tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)),
            }
            for text in TEXTS
        ]


def write(fixture: Path, texts: Replies) -> None:
    """Write the fixture, and print it."""
    fixture.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n")
    for entry in texts:
        print(entry)


def compare(fixture: Path, texts: Replies) -> None:
    """Raise AssertionError if the fixture differs."""
    assert json.loads(fixture.read_text()) == texts, f"{fixture}: differs"


if __name__ == "__main__":
    main()
