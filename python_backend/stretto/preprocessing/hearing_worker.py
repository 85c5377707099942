"""Program of the process that encodes live audio: reads jobs from standard input, writes results to standard output.

    job      {"parts": [[stream, num_samples, rate, is_last], …], "closed": [stream, …]}      a line of JSON
    answer   {"frames": [[stream, num_frames, is_done], …]}                                   a line of JSON

The samples of a job's parts, float32, follow one another in a shared-memory file that both processes have open. The ids
of the answer's frames, int32 [num_frames, K], replace them. A job encodes a few frames of each stream. The parent sends
jobs until all streams are done, so a long part delays other streams by only a few frames.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from stretto.codecs.base import load_codec
from stretto.codecs.encoded_stream import EncodedStream, encode_round
from stretto.family.live_audio import FrameIds, LiveInput
from stretto.family.plugin import family_at, plugin_at

FRAMES_AT_ONCE = 4


class Resampler:
    """Streaming sample-rate conversion that gives the same output as converting the whole stream in one call."""

    def __init__(self, rate: int, target_rate: int):
        self._rate = rate
        self._target_rate = target_rate
        self._num_in = self._num_out = 0
        self._stream = None if rate == target_rate else soxr.ResampleStream(rate, target_rate, 1, dtype="float32")

    def push(self, pcm: np.ndarray, is_last: bool) -> np.ndarray:
        """Resample the next samples, float32 [n]; flush the resampler if `is_last`."""
        if self._stream is None:
            return pcm
        self._num_in += len(pcm)
        resampled = self._stream.resample_chunk(pcm, last=is_last)
        if is_last:  # return as many samples in total as `preprocessing.audio.resample` does
            left = -(-self._num_in * self._target_rate // self._rate) - self._num_out
            resampled = np.pad(resampled[: max(0, left)], (0, max(0, left - len(resampled))))
        self._num_out += len(resampled)
        return resampled


class Streams:
    """Streams of all sessions by name."""

    def __init__(self, live: LiveInput):
        self._live = live
        self._streams: dict[str, tuple[EncodedStream, Resampler, FrameIds]] = {}
        self._ended: set[str] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def push(self, name: str, pcm: np.ndarray, rate: int, is_last: bool) -> None:
        """Append samples, float32 [n], to a stream; start a new stream if there is none with this name.

        The rate, in Hz, does not change within a stream.
        """
        live = self._live
        if name not in self._streams:
            encoded = EncodedStream(live.encoder)
            encoded.push(_silence(live.before_s, live.sample_rate))
            self._streams[name] = encoded, Resampler(rate, live.sample_rate), live.open_ids()
        encoded, resampler, _ = self._streams[name]
        encoded.push(resampler.push(pcm, is_last))
        if is_last:
            encoded.push(_silence(live.after_s, live.sample_rate))
            encoded.complete_frame()
            self._ended.add(name)

    def encode(self) -> list[tuple[str, np.ndarray, bool]]:
        """Encode a few frames of each stream that has complete frames, and remove streams that are complete.

        For each stream, return its name, ids int32 [n, K], and True if no complete frame is left.
        """
        encode_round(self._live.encoder, [encoded for encoded, *_ in self._streams.values()], max_frames=FRAMES_AT_ONCE)
        encoded_streams = []
        for name, (encoded, _, ids) in list(self._streams.items()):
            encoded_streams.append((name, ids.push(encoded.pop_codes()), not encoded.num_ready))
            if name in self._ended and not encoded.num_ready:
                self.close(name)
        return encoded_streams

    def close(self, name: str) -> None:
        """Free the state of a stream, if there is one with this name."""
        self._streams.pop(name, None)
        self._ended.discard(name)


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(int(seconds * rate), np.float32)


def answer(streams: Streams, memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job whose samples are in the file descriptor `memory`, and return its answer."""
    for name in job["closed"]:
        streams.close(name)
    at = 0
    for name, num_samples, rate, is_last in job["parts"]:
        pcm = np.empty(num_samples, np.float32)
        at += os.preadv(memory, [pcm.data], at) if num_samples else 0
        streams.push(name, pcm, rate, is_last)
    encoded = streams.encode()
    write(memory, [ids for _, ids, _ in encoded])
    return {"frames": [[name, len(ids), is_done] for name, ids, is_done in encoded]}


def write(memory: int, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays to the start of the file descriptor `memory`, one after the other."""
    at = 0
    data = b"".join(array.tobytes() for array in arrays)
    while at < len(data):  # the kernel may write fewer bytes than requested
        at += os.pwrite(memory, data[at:], at)


def main() -> None:
    """Process jobs until standard input is closed."""
    checkpoint = Path(sys.argv[1])
    device = sys.argv[2]
    memory = int(sys.argv[3])
    niceness = int(sys.argv[4])
    # Absolute, because the parent's priority may be raised temporarily while models load (launcher/processes.py).
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    family = family_at(checkpoint)
    open_live_input = plugin_at(checkpoint).open_live_input
    assert open_live_input is not None, f"{family.name} reads no live audio"
    codec = load_codec(family.codec, checkpoint, device, family.num_codebooks)
    streams = Streams(open_live_input(checkpoint, codec))
    for line in sys.stdin:
        print(json.dumps(answer(streams, memory, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
