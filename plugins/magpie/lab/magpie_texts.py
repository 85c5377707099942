"""Store the ids that NeMo's tokenizers give to the texts in `random_texts.py`, in `tests/data/texts.json`.

    python -m plugins.magpie.lab.magpie_texts

Runs with nemo_toolkit 3.0.0, in its own environment. Words are never spelled at random.
"""

import copy
import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from plugins.magpie.lab.random_texts import FILES, LANGUAGES, TEXTS, TOKENIZERS

OUT = Path(__file__).parents[1] / "tests/data/texts.json"


def in_folder(value: Any, folder: Path) -> Any:
    """Return a config whose files lie in a folder."""
    if isinstance(value, list):
        return [in_folder(part, folder) for part in value]
    if isinstance(value, dict):
        return {name: in_folder(part, folder) for name, part in value.items()}
    return str(folder / value.removeprefix("nemo:")) if str(value).startswith("nemo:") else value


def instance(options: dict[str, Any], **others: Any) -> Any:
    """Return an instance of the class that a config names, with the other values of the config."""
    module, _, name = options.pop("_target_").rpartition(".")
    return getattr(import_module(module), name)(**options, **others)


def tokenizer(options: dict[str, Any], folder: Path) -> Any:
    """Return NeMo's tokenizer for a config."""
    from transformers import ByT5Tokenizer

    if options["_target_"] == "AutoTokenizer":
        return ByT5Tokenizer()
    options = in_folder(copy.deepcopy(options), folder)
    g2p = instance(options.pop("g2p"))
    g2p.phoneme_probability = 1.0
    return instance(options, g2p=g2p)


def main() -> None:
    """Write the file."""
    stored: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in FILES.items():
            (folder / file).write_text(content, encoding="utf-8")
        for language, texts in TEXTS.items():
            of_nemo = tokenizer(TOKENIZERS[LANGUAGES[language][0]], folder)
            size = len(of_nemo.tokens) if hasattr(of_nemo, "tokens") else len(of_nemo.get_vocab())
            stored[language] = {"size": size, "ids": [of_nemo.encode(text) for text in texts]}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
