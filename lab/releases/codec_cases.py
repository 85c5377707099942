"""Codecs with random weights, of the core and of plug-ins, for tests and measurements of all codecs.

A plug-in lists its codecs in `lab/codecs.py`: `CASES`, and `MODELS` for codecs that are models of transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from stretto.codecs.base import Codec
from stretto.convert.command import main
from stretto.entry_points import FAMILIES, installed

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CodecCase:
    """An installed codec with random weights.

    Attributes:
        make: Function that returns the codec on the CPU, narrow or with its published sizes.
        write: Function that writes a narrow checkpoint into a folder, and returns the folder for `load_codec`.
        chunks: First and steady chunk size in frames of a family that uses the codec.
        counted: Codecs of published size whose operations are counted, keyed by the name of the decoder's size; empty
            for `make(False)` under the codec's name.
        add_voice: Function that adds a voice of 3 s to the codec on torch's device `meta`, and returns its number; None
            for a codec that needs none.
    """

    make: Callable[[bool], Any]
    write: Callable[[Path], Path]
    chunks: tuple[int, int]
    counted: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    add_voice: Callable[[Any], int] | None = None

    def codec(self, is_narrow: bool) -> Codec:
        codec: Codec = self.make(is_narrow).eval().requires_grad_(False)
        return codec


def converted(family: str, release: Path, *words: str) -> Path:
    """Convert a release to a new folder beside it. `words` are further arguments of `stretto convert`."""
    out = release.parent / "checkpoint"
    assert main([family, "--model", str(release), *words, "--out", str(out)]) == 0
    return out


@cache
def of_plugins(name: str, file: str = "codecs") -> dict[str, Any]:
    """Return the entries that all installed plug-ins list under `name` in a file of their folder `lab`."""
    packages = {family.entry_point.module.partition(".")[0] for family in installed(FAMILIES)}
    listed = dict[str, Any]()
    for path in sorted(ROOT.glob(f"plugins/*/lab/{file}.py")):
        folder = path.parents[1].name
        if f"stretto_{folder}" in packages:
            listed |= getattr(import_module(f"plugins.{folder}.lab.{file}"), name, {})
    return listed
