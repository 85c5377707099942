"""Replies of the slow references with which parity jobs compare, computed before a GPU is available.

`python -m benchmarks.gpu.parity DIR`, which `bundling pack --replies` runs, computes those of all parity jobs. They are
part of a bundle, and on the GPU's host `STRETTO_REPLIES` names their folder. A file belongs to a checkpoint and its
prompts, both of which the job makes again: a reply is computed there only if one of them differs.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from stretto.records.prompt import Prompt

FOLDER = "STRETTO_REPLIES"
# For each prompt, the rows of its reply, and the smallest lead of the best logit.
Replies = dict[str, tuple[list[list[int]], float]]


@dataclass(frozen=True)
class Recalled:
    """Replies, and whether they were stored."""

    replies: Replies
    is_stored: bool


def digest_of(checkpoint: Path, prompts: Mapping[str, Prompt]) -> str:
    """Return a digest of a checkpoint's files and the prompts."""
    digest = sha256()
    for path in sorted(filter(Path.is_file, checkpoint.rglob("*"))):
        digest.update(str(path.relative_to(checkpoint)).encode())
        digest.update(path.read_bytes())
    for request_id, prompt in prompts.items():
        digest.update(f"{request_id} {prompt.task} {prompt.sampling}".encode())
        arrays = [prompt.rows, prompt.track, *(audio.features for audio in prompt.audios)]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def recall(
    name: str, checkpoint: Path, prompts: Mapping[str, Prompt], compute: Callable[[], Replies]
) -> Recalled:  # fmt: skip
    """Return the stored replies; compute them if there are none, and store them if there is a folder."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return Recalled(compute(), False)
    path = Path(folder, f"{name}-{digest_of(checkpoint, prompts)[:16]}.json")
    if path.exists():
        stored: dict[str, tuple[list[list[int]], float]] = json.loads(path.read_text())
        return Recalled({request_id: (rows, lead) for request_id, (rows, lead) in stored.items()}, True)
    replies = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(replies))
    return Recalled(replies, False)
