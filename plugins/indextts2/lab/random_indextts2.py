"""Small random IndexTTS-2 releases in the published layout, with the other repositories in `hf_cache`.

python -m plugins.indextts2.lab.random_indextts2 FOLDER
"""

import sys
from pathlib import Path

import sentencepiece
import torch
import yaml

from plugins.indextts2.lab.indextts2_texts import TEXTS
from plugins.indextts2.lab.random_acoustics import gpt_tensors, write_networks
from plugins.indextts2.lab.random_gpt import CONFIG, language_model
from stretto.convert.command import main as convert_command
from stretto_indextts2.text import CHARACTERS

CHARACTERS_OF_NUMBERS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ'-.,!?…", "零一二三四五六七八九十百千点公里每小时元")


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with the characters of the texts, in capitals, and some of their pairs; return its path."""
    corpus = folder / "texts.txt"
    split = (" ".join(part.strip().upper() for part in CHARACTERS.split(text)) for text in TEXTS)
    corpus.write_text("\n".join([*split, *map(" ".join, CHARACTERS_OF_NUMBERS)]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "bpe"),
        vocab_size=CONFIG["gpt"]["number_text_tokens"],
        character_coverage=1.0,
        hard_vocab_limit=False,
        bos_id=0,
        eos_id=1,
        unk_id=2,
        model_type="bpe",
        minloglevel=2,
        num_threads=1,
    )
    corpus.unlink()
    (folder / "bpe.vocab").unlink()
    return folder / "bpe.model"


def write_release(folder: Path) -> Path:
    """Write a small release to a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    torch.save({**language_model(), **gpt_tensors()}, folder / "gpt.pth")
    write_tokenizer(folder)
    write_networks(folder)
    return folder


def convert(folder: Path) -> Path:
    """Write a small release and convert it; return the checkpoint's folder."""
    words = ["indextts2", "--model", str(write_release(folder / "release")), "--out", str(folder / "checkpoint")]
    assert convert_command(words) == 0
    return folder / "checkpoint"


if __name__ == "__main__":
    write_release(Path(sys.argv[1]))
