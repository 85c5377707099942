"""Hashes of KV blocks over the ids of all streams and the audio input in their rows.

vLLM hashes the tokens of stream 0 only. Two prompts with equal stream 0 but different codes, or different audio behind
the same placeholder rows, would share KV blocks. So would requests with and without MCTP modules or LoRA adapters.
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
    """Return a block hasher for one request.

    Each hash covers its block and, through the previous hash, all rows before it. A block in which an audio input
    begins covers that whole input. Rows that `track` does not know yet belong to no block.

    Args:
        block_size: Rows per block.
        codes: Function of (first, last) that returns the ids of streams 1 and up in rows `first` to `last` - 1.
        audios: Audio inputs with the row at which each begins.
        is_read_by_modules: True if MCTP modules process the rows.
        track: Streamed text input, if any.
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
