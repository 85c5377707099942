"""Reader of the voices published with PersonaPlex in `voices.tgz`.

The archive contains a file NAME.pt, written by `torch.save`, for each voice. For a recording of V frames, its
`embeddings` [V - 1, 1, 1, H] are the summed embeddings of rows 0 to V - 2, and its `cache` [1, S, C] contains the ids
of the last rows. The id of row p is at index p mod C of a stream. The last row is V - 1, or V - 1 + d on streams with
delay d.
"""

import gzip
import io
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import BOUNDED, is_bounded
from stretto.weights.loading import is_plain, read_pickled
from stretto_kyutai.moshi.family import MoshiVocabulary
from stretto_kyutai.personaplex.family import PublishedVoice

VOICES = "voices.tgz"
SUFFIX = ".pt"
NAME = re.compile("[A-Za-z0-9_]{1,64}")
MAX_VOICES = 64
MAX_MEMBERS = 1024
MAX_FRAMES = 1024
# unpacked; published files have about 1 MB each
MAX_FILE_BYTES = 64 << 20
MAX_BYTES = 256 << 20
RING = 3  # number of rows by which a cache exceeds the largest delay
UNREADABLE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError)


def read_voices(path: Path, vocabulary: MoshiVocabulary, width: int) -> list[tuple[PublishedVoice, Tensor]]:
    """Return the voices in an archive, sorted by name, each with its vectors [V - 1, `width`].

    No file is ever written under its stored name, because the archive is not trusted.
    """
    voices: dict[str, tuple[PublishedVoice, Tensor]] = {}
    try:
        for name, content in _files(path):
            stem = PurePosixPath(name).name.removesuffix(SUFFIX)
            if not NAME.fullmatch(stem) or stem.lower() in voices or len(voices) >= MAX_VOICES:
                expected = f"at most {MAX_VOICES} different names of letters, digits and underscores"
                raise CheckpointError(f"{path}: expected {expected}, got {shown(name)}")
            voices[stem.lower()] = _voice(stem.lower(), content, f"{path}: {name}", vocabulary, width)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected a gzipped tar archive, got {error!r}") from error
    if not voices:
        raise CheckpointError(f"{path}: expected files NAME{SUFFIX}, got none")
    return [voices[name] for name in sorted(voices)]


class _Unpacked(io.RawIOBase):
    """Unpacked bytes of a gzip file, up to MAX_BYTES.

    `tarfile` reads headers of any size, such as long names, into memory before it returns the member.
    """

    def __init__(self, packed: gzip.GzipFile):
        super().__init__()
        self._packed = packed
        self._num_left = MAX_BYTES

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; raise ValueError after MAX_BYTES."""
        data = self._packed.read(size)
        self._num_left -= len(data)
        if self._num_left < 0:
            raise ValueError(f"expected at most {MAX_BYTES} bytes in all, got more")
        return data


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each non-hidden file in an archive that may be a voice."""
    with gzip.open(path) as packed, tarfile.open(fileobj=_Unpacked(packed), mode="r|") as archive:
        for number, member in enumerate(archive):
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isreg() or member.isdir()) or member.issparse():
                raise CheckpointError(f"{path}: expected plain files in its own folders, got {shown(member.name)}")
            if number >= MAX_MEMBERS or member.size > MAX_FILE_BYTES:
                expected = f"at most {MAX_MEMBERS} files of {MAX_FILE_BYTES} bytes"
                raise CheckpointError(f"{path}: expected {expected}, got more at {shown(member.name)}")
            if member.isdir() or name.suffix != SUFFIX or name.name.startswith("."):
                continue
            content = archive.extractfile(member)
            assert content is not None, "it is a regular file"
            yield member.name, content.read()


def _voice(
    name: str, content: bytes, where: str, vocabulary: MoshiVocabulary, width: int
) -> tuple[PublishedVoice, Tensor]:
    """Return the voice in a file; raise CheckpointError if it does not belong to this release."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"voice{SUFFIX}"
        file.write_bytes(content)
        try:
            stored = read_pickled(file)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {str(error).removeprefix(f'{file}: ')}") from error
    kinds = {"embeddings": torch.is_floating_point, "cache": lambda tensor: tensor.dtype == torch.int64}
    is_voice = isinstance(stored, dict) and {*stored} == {*kinds}
    if not is_voice or not all(
        isinstance(tensor, Tensor) and is_plain(tensor) and kinds[key](tensor) for key, tensor in stored.items()
    ):
        expected = "embeddings of floating-point numbers and a cache of int64"
        raise CheckpointError(f"{where}: expected {expected}, got {shown(stored, 200)}")
    vectors = stored["embeddings"]
    cache = stored["cache"]
    delays = (0, *vocabulary.delays, *vocabulary.delays)
    size = (1, len(delays), max(delays) + RING)
    num_vectors = len(vectors) if vectors.ndim else 0
    if vectors.shape != (num_vectors, 1, 1, width) or not 1 <= num_vectors < MAX_FRAMES:
        expected = f"embeddings [n, 1, 1, {width}] with n in [1, {MAX_FRAMES})"
        raise CheckpointError(f"{where}: expected {expected}, got {list(vectors.shape)}")
    if cache.shape != size:
        raise CheckpointError(f"{where}: expected a cache {list(size)}, got {list(cache.shape)}")
    if not is_bounded(vectors):
        raise CheckpointError(f"{where}: embeddings: expected {BOUNDED}, got others")
    frames = [[0] * len(delays) for _ in range(1 + max(delays))]
    for stream, delay in enumerate(delays):
        most = vocabulary.num_text_ids if stream == 0 else vocabulary.codebook_size
        for ahead in range(1 + delay):  # rows V - 1 to V - 1 + d
            token = int(cache[0, stream, (num_vectors + ahead) % size[2]])
            if not 0 <= token <= most:
                raise CheckpointError(f"{where}: cache: expected ids of stream {stream} in [0, {most}], got {token}")
            frames[max(delays) - delay + ahead][stream] = token
    return PublishedVoice(name, num_vectors, tuple(map(tuple, frames))), vectors[:, 0, 0]
