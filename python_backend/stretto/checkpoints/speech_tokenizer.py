"""A tokenizer of audio that is served as its authors publish it: that of GLM-4-Voice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stretto.checkpoints import shards
from stretto.checkpoints.shards import Entry, Written
from stretto.codec.glm4_voice.tokenizer import CONFIG, FEATURES, FOLDER, read_tokenizer
from stretto.untrusted_files import released_file


@dataclass(frozen=True)
class PublishedTokenizer:
    """Files that will be copied to `ssl_tokenizer/`; no tensor is written anew, none is left out."""

    files: list[Path]
    entries: Sequence[Entry] = ()
    dropped: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, num_codes: int) -> "PublishedTokenizer":
        """Those in a folder; CheckpointError names what does not fit, or makes another number of codes."""
        read_tokenizer(folder, num_codes)
        names = [CONFIG, FEATURES, *sorted(path.name for path in folder.glob("model*.safetensors"))]
        return cls([released_file(folder, name) for name in names])

    def write(self, folder: Path, progress: shards.Progress) -> list[Written]:
        """Copies of the files."""
        return [shards.copy_file(path, folder / path.name, f"{FOLDER}/{path.name}") for path in self.files]
