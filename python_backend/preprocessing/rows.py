"""How text ids and codes lie in the rows of a prompt. It knows no family's special ids."""

import numpy as np

from python_backend.streams.delay import delay_codes
from python_backend.streams.layout import StreamLayout


def stream0_rows(layout: StreamLayout, ids: list[int]) -> np.ndarray:
    """Rows [len(ids), S] int32 that carry `ids` on stream 0 and pad on every other."""
    rows = np.full((len(ids), layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, 0] = ids
    return rows


def code_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Rows [T + max_delay, S] int32: `codes` [K, T] as absolute ids, delayed; pad elsewhere.

    row      0    1    2    3
    stream 1 c0,0 c0,1 pad  pad      delay 0
    stream 2 pad  pad  c1,0 c1,1     delay 2
    """
    num_codebooks, num_frames = codes.shape
    if num_codebooks != layout.num_codebooks or not ((codes >= 0) & (codes < layout.codebook_size)).all():
        raise ValueError(f"expected {layout.num_codebooks} codebooks of {layout.codebook_size}, got {codes.shape}")
    streams = list(layout.codebook_streams)
    first_ids = np.array([layout.audio[stream].start for stream in streams])
    delayed = delay_codes(codes + first_ids[:, None], tuple(layout.delays[stream] for stream in streams), layout.pad_id)
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[: len(delayed), streams] = delayed
    return rows
