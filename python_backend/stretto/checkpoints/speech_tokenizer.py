"""Audio tokenizer that is served as published: that of GLM-4-Voice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stretto.checkpoints import shards
from stretto.checkpoints.shards import Entry, Written
from stretto.codec.glm4_voice.tokenizer import CONFIG, FEATURES, FOLDER, read_tokenizer
from stretto.untrusted_files import released_file


@dataclass(frozen=True)
class PublishedTokenizer:
    """Files to be copied to `ssl_tokenizer/`; no tensor is converted or dropped."""

    files: list[Path]
    entries: Sequence[Entry] = ()
    dropped: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, num_codes: int) -> "PublishedTokenizer":
        """Return the files in a folder; CheckpointError if they do not fit, or make another number of codes."""
        read_tokenizer(folder, num_codes)
        names = [CONFIG, FEATURES, *sorted(path.name for path in folder.glob("model*.safetensors"))]
        return cls([released_file(folder, name) for name in names])

    def write(self, folder: Path, progress: shards.Progress) -> list[Written]:
        """Copy the files."""
        return [shards.copy_file(path, folder / path.name, f"{FOLDER}/{path.name}") for path in self.files]
