"""Hashes of a request's KV blocks, which cover all streams and everything else that its rows depend on."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from stretto.engine.tracks import Track
from stretto.records.prompt import Condition, InputAudio, InputImage

RowsOf = Callable[[int, int], np.ndarray]


def row_block_hasher(
    block_size: int,
    codes: RowsOf,
    inputs: Sequence[InputAudio | InputImage] = (),
    is_read_by_modules: bool = False,
    track: Track | None = None,
    condition: Condition | None = None,
) -> Callable[[Request], list[BlockHash]]:
    """Return a block hasher for one request that covers all streams.

    As in vLLM, each hash also covers all rows before its block, because it includes the previous hash. If an audio
    input or an image begins in a block, the hash covers all its features, and the size of the image. Rows whose
    streamed text has not arrived are not hashed.

    Args:
        block_size: Rows per block.
        codes: Function of (first, last) that returns the ids of streams 1 to S - 1 in rows `first` to `last` - 1.
        is_read_by_modules: True if MCTP modules process the rows. Such requests share blocks only with each other.
        condition: Vectors that condition all rows, or None. Only requests with equal vectors share blocks.
    """
    conditioned = b"" if condition is None else b"condition" + condition.digest
    input_digests: dict[int, list[bytes]] = {model_input.first_row // block_size: [] for model_input in inputs}
    for model_input in inputs:
        size = f"{model_input.height} {model_input.width} ".encode() if isinstance(model_input, InputImage) else b""
        digest = hashlib.sha256(size + model_input.features.tobytes()).digest()
        input_digests[model_input.first_row // block_size].append(digest)

    def hash_new_blocks(request: Request) -> list[BlockHash]:
        num_rows = request.num_tokens
        if num_rows // block_size == len(request.block_hashes):
            return []
        hashes = list[BlockHash]()
        before_first = conditioned + b"modules" * is_read_by_modules + (request.cache_salt or "").encode()
        if request.lora_request is not None:
            before_first += b"adapter" + request.lora_request.lora_int_id.to_bytes(4)
        previous = request.block_hashes[-1] if request.block_hashes else before_first
        first = len(request.block_hashes) * block_size
        while first + block_size <= num_rows:
            last = first + block_size
            rows = np.ascontiguousarray(codes(first, last), np.int32)
            if track is not None and not track.are_known(rows, last):
                break
            digest = hashlib.sha256(previous)
            digest.update(np.asarray(request.all_token_ids[first:last], np.int32).tobytes())
            digest.update(rows.tobytes())
            for features in input_digests.get(first // block_size, ()):
                digest.update(features)
            previous = BlockHash(digest.digest())
            hashes.append(previous)
            first = last
        return hashes

    return hash_new_blocks
