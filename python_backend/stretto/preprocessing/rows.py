"""Layout of text ids and codes in prompt rows. Independent of a family's special ids."""

import numpy as np

from stretto.errors import InvalidRequest
from stretto.families.base import Family
from stretto.streams.layout import StreamLayout, delay_codes


def stream0_rows(layout: StreamLayout, ids: list[int]) -> np.ndarray:
    """Return rows with `ids` on stream 0 and pad ids on the other streams.

    Args:
        layout: The family's streams.
        ids: N absolute token ids.

    Returns:
        int32 [N, S].
    """
    rows = np.full((len(ids), layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, 0] = ids
    return rows


def code_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Return rows with codes as absolute ids, delayed, and pad ids elsewhere.

    row      0    1    2    3
    stream 1 c0,0 c0,1 pad  pad      delay 0
    stream 2 pad  pad  c1,0 c1,1     delay 2

    Args:
        layout: The family's streams.
        codes: Codes, int [K, T].

    Returns:
        int32 [T + max_delay, S].
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


def frame_rows(layout: StreamLayout, codes: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Return rows with codes of all output streams as absolute ids, delayed.

    row      0    1    2    3
    stream 0 c0,0 c0,1 f0   f0       delay 0
    stream 1 f1   c1,0 c1,1 f1       delay 1; fill f1 without a frame

    Args:
        layout: The family's streams.
        codes: Codes, int [S, T], one row per output stream.
        fill: Id of each output stream for rows without a frame.

    Returns:
        int32 [T + max_delay, S].
    """
    num_frames = codes.shape[1]
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, : layout.num_output_streams] = fill
    for stream, delay in enumerate(layout.delays):
        rows[delay : delay + num_frames, stream] = layout.audio[stream].start + codes[stream]
    return rows


def check_codes(codes: np.ndarray, family: Family, path: str) -> None:
    """Check codes of a request.

    Args:
        codes: Codes, int [S, T].
        family: The model's family.
        path: Name of the codes in error messages.

    Raises:
        InvalidRequest: The number of streams, the duration or a code is outside the family's limits.
    """
    layout, max_frames = family.layout, int(family.max_audio_s * family.frame_rate)
    if len(codes) != layout.num_output_streams:
        raise InvalidRequest(path, f"{layout.num_output_streams} streams", f"{len(codes)} streams")
    if codes.shape[1] > max_frames:
        raise InvalidRequest(
            path, f"at most {max_frames} frames ({family.max_audio_s:g} s)", f"{codes.shape[1]} frames"
        )
    for stream, ids in enumerate(layout.audio):
        if codes[stream].max() >= len(ids):
            raise InvalidRequest(f"{path}[{stream}]", f"codes in [0, {len(ids)})", codes[stream].max())
