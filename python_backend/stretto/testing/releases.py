"""Small releases for tests: their conversion, edits of their files, and refusals of edited ones."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from stretto.codecs.base import Codec
from stretto.convert.command import main
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor

Edit = Callable[[Any], object]
REMOVED = object()  # value of a field to be removed


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """Yield the content of a JSON, YAML, safetensors or torch file for editing, then write it to a new file.

    For a folder, yield its path; the edit writes to new files, because the folder may share files with others.
    """
    if path.is_dir():
        yield path
        return
    formats: dict[str, tuple[Callable[[Path], Any], Edit]] = {
        ".json": (lambda file: json.loads(file.read_text()), lambda content: path.write_text(json.dumps(content))),
        ".yaml": (lambda file: yaml.safe_load(file.read_text()), lambda content: path.write_text(yaml.dump(content))),
        ".safetensors": (load_file, lambda content: save_file(content, path, {"format": "pt"})),
        ".pth": (torch.load, lambda content: torch.save(content, path)),
        ".pt": (torch.load, lambda content: torch.save(content, path)),
        ".bin": (torch.load, lambda content: torch.save(content, path)),
    }
    read, write = formats[path.suffix]
    content = read(path)
    yield content
    path.unlink()  # which may be a link
    write(content)


def set_fields(record: Any, changes: Mapping[str, object]) -> None:
    """Set the fields at dotted paths of a parsed config; REMOVED removes one."""
    for path, value in changes.items():
        *sections, name = path.split(".")
        section = record
        for key in sections:
            section = section[int(key) if isinstance(section, list) else key]
        if value is REMOVED:
            del section[name]
        else:
            section[name] = value


def assert_refused(arguments: Sequence[str], out: Path, *messages: str) -> None:
    """Assert that `stretto convert` refuses arguments in one line with all messages, and writes nothing to `out`."""
    errors = StringIO()
    with redirect_stderr(errors):
        status = main([*arguments, "--out", str(out)])
    said = errors.getvalue()
    assert status == 1, f"expected a refusal with {messages}, got status {status}"
    assert not out.exists(), f"a refused conversion left {out}"
    assert said.count("\n") == 1, f"expected one line, got {said!r}"
    for message in messages:
        assert message in said, f"expected {message!r} in the error, got {said!r}"


@dataclass(frozen=True)
class SmallRelease:
    """A small random release in a folder of its own, and its checkpoint, which is written when it is first read.

    Attributes:
        arguments: Arguments of `stretto convert`, without `--out`.
        codec: Codec of the preprocessor; None for the checkpoint's.
    """

    folder: Path
    size: str
    arguments: Sequence[str]
    codec: Codec | None = None

    @classmethod
    def written(
        cls,
        folder: Path,
        size: str,
        write: Callable[[Path, str], Sequence[str | Path]],
        codec: Codec | None = None,
    ) -> "SmallRelease":
        """Return the release that `write` writes; it returns the arguments of `stretto convert`, without `--out`."""
        folder.mkdir()
        return cls(folder, size, [str(word) for word in write(folder, size)], codec)

    def copied(self, folder: Path) -> "SmallRelease":
        """Return a copy for edits by `edited`; other files are shared."""
        shutil.copytree(self.folder, folder, copy_function=os.link)
        arguments = [word.replace(str(self.folder), str(folder)) for word in self.arguments]
        return SmallRelease(folder, self.size, arguments, self.codec)

    def assert_refused(self, *messages: str) -> None:
        """Assert that the conversion is refused in one line with all messages, and writes nothing."""
        assert_refused(self.arguments, self._out, *messages)

    @cached_property
    def checkpoint(self) -> Path:
        """Folder of the converted checkpoint; tests do not change it."""
        assert main([*self.arguments, "--out", str(self._out)]) == 0
        return self._out

    @property
    def _out(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-checkpoint")

    @cached_property
    def family(self) -> Family:
        return family_at(self.checkpoint)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        return Preprocessor(self.checkpoint, self.codec)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        shards = sorted(self.checkpoint.glob("model-*.safetensors"))
        return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def split_weights(weights: Path, num_shards: int = 3) -> None:
    """Replace a safetensors file by shards and their index, as published releases have them."""
    tensors = load_file(weights)
    weights.unlink()
    shard_of = dict[str, str]()
    for number in range(num_shards):
        shard = f"{weights.stem}-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        names = sorted(tensors)[number::num_shards]
        save_file({name: tensors[name] for name in names}, weights.with_name(shard), {"format": "pt"})
        shard_of |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": shard_of}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
