"""Small random releases with the file names of published ones, of the core and of plug-ins.

A plug-in lists facts about its releases in `lab/releases.py`, each a mapping that tests of all families read:

    LAYOUTS        releases that the converter accepts, by repository
    REFUSED        listings that are refused, each with the message
    DETECTED       listings that are accepted, each with fields of the entry that is detected
    CPU_CACHES_MB  MB of the KV cache on a CPU in 16 and in 32 bits (latents: only 32), by family and bytes of a row
    BY_HAND        for a release in one repository: arguments of `stretto convert`, and those only for small releases
    WITHOUT_SHAPE  names of releases whose sizes are unknown, each with the reason

The file names come from listings of the repositories and from programs that load them. Some are patterns, because small
releases have fewer shards and voices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"
SHARD = "model-0000?-of-0000?.safetensors"
BPE = ("vocab.json", "merges.txt", "tokenizer_config.json")
TOKENIZER = ("tokenizer.json", *BPE)  # some repositories have no BPE files
SAVED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Layout:
    """Layout of a published release.

    Attributes:
        family: Name of the family on the command line.
        write: Function that writes a release to a new folder and returns the converter's further arguments.
        files: Names of the files by folder: a repository, or a folder of one. The first is that of the release.
        added: Files of the small releases that no repository has.
        unused: Files that the converter does not open, because it uses others.
        is_checked: False if the converter reads numbers in the files before it compares their shapes.
    """

    family: str
    write: Callable[[Path], list[str | Path]]
    files: dict[str, tuple[str, ...]]
    added: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    is_checked: bool = True

    def command(self, folder: Path) -> list[str]:
        """Write the release and return the converter's arguments, except `--out`."""
        return [self.family, *(str(word) for word in self.write(folder))]


def whole(release: Path) -> list[str | Path]:
    """Return the arguments for a converter that finds all files in one folder."""
    return ["--model", release]


def hugging_face(release: Path) -> list[str | Path]:
    """Return the arguments for a release with config and tokenizer in the folder of the weights."""
    return ["--model", release, "--config", release / "config.json", "--tokenizer", release]
