"""The identity of a KV block: the ids of all streams, not of stream 0 alone, and the audio heard in its rows.

vLLM hashes the tokens of stream 0. Two prompts with the same stream 0 and different codes, or with placeholder rows for
different audio, would share KV blocks; and so would requests whose blocks modules fill, and those whose do not, or that
different adapters change.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from stretto.engine.request.track import Track
from stretto.records.prompt import HeardAudio

RowsOf = Callable[[int, int], np.ndarray]


def row_block_hasher(
    block_size: int,
    codes: RowsOf,
    audios: Sequence[HeardAudio] = (),
    is_read_by_modules: bool = False,
    track: Track | None = None,
) -> Callable[[Request], list[BlockHash]]:
    """A block hasher for one request; `codes(first, last)` are the ids of its streams 1 ... in rows first ... last - 1.

    Each hash covers its block and, through the hash before it, every row before that. A block in which an audio begins
    covers the whole audio. Rows that `track` does not know yet are in no block.
    """
    heard: dict[int, list[bytes]] = {audio.first_row // block_size: [] for audio in audios}
    for audio in audios:
        heard[audio.first_row // block_size].append(hashlib.sha256(audio.features.tobytes()).digest())

    def hash_new_blocks(request: Request) -> list[BlockHash]:
        num_rows = request.num_tokens if track is None else min(request.num_tokens, track.num_known)
        if num_rows // block_size == len(request.block_hashes):
            return []
        hashes = list[BlockHash]()
        before_first = b"modules" * is_read_by_modules + (request.cache_salt or "").encode()
        if request.lora_request is not None:
            before_first += b"adapter" + request.lora_request.lora_int_id.to_bytes(4)
        previous = request.block_hashes[-1] if request.block_hashes else before_first
        first = len(request.block_hashes) * block_size
        while first + block_size <= num_rows:
            last = first + block_size
            digest = hashlib.sha256(previous)
            digest.update(np.asarray(request.all_token_ids[first:last], np.int32).tobytes())
            digest.update(np.ascontiguousarray(codes(first, last), np.int32).tobytes())
            for features in heard.get(first // block_size, ()):
                digest.update(features)
            previous = BlockHash(digest.digest())
            hashes.append(previous)
            first = last
        return hashes

    return hash_new_blocks
