"""First frames of replies, decoded in the engine's process so that their samples are sent together with the rows.

The decoder sends these samples, then decodes the same codes again to update its state.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

from stretto.codecs.base import Codec, Window, load_codec, use_whole_float32
from stretto.decoding.convolutions import check_mode, convolutions_in
from stretto.decoding.graphs import CudaGraphs, GraphCache, padded_batch
from stretto.decoding.states import StateTable, decode_in_rows, row_numbers
from stretto.engine.protocol import is_unconditional
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker.run_slots import RunSlots
from stretto.records.prompt import MAX_FIRST_FRAMES

KEY = "first_chunk"  # in vLLM's `additional_config`: mode of convolutions
MAX_BATCH = 8  # replies that are decoded together


@dataclass(frozen=True, slots=True)
class EarlySamples:
    """Codes and samples of a reply's first frames, which vLLM copies to the host with a step's results.

    Attributes:
        numbers: Codes, frame by frame within each codebook, then samples, float32 [K * n + samples].
        done: Event after which they are computed; None on the host.
    """

    numbers: torch.Tensor
    done: torch.cuda.Event | None = None

    def to_cpu_nonblocking(self) -> torch.Tensor:
        """Copy the numbers to the host once they are computed, on the current stream (vLLM's stream for copies)."""
        if self.done is None:
            return self.numbers
        stream = torch.cuda.current_stream()
        stream.wait_event(self.done)
        self.numbers.record_stream(stream)
        return self.numbers.to("cpu", non_blocking=True)


class Lane(Protocol):
    """Interface of `HostLane` and `CudaLane`, which run the codec on the host or on a CUDA stream."""

    def capture(self) -> None:
        """Capture CUDA graphs, if there are any."""

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Decode the first codes of B replies, int64 [B, K, T].

        Returns:
            `EarlySamples.numbers` of all replies, [B, K * T + n], and `EarlySamples.done`.
        """


def packed(codes: torch.Tensor, pcm: torch.Tensor) -> torch.Tensor:
    """Return codes [B, K, T] and samples [B, n] as one tensor, float32 [B, K * T + n]."""
    return torch.cat([codes.flatten(1).float(), pcm.float()], 1)


class HostLane:
    """Codec that runs on the host."""

    def __init__(self, codec: Codec, convolutions: str) -> None:
        self._codec = codec
        self._convolutions = convolutions_in(convolutions)

    def capture(self) -> None:
        """Do nothing, because the host has no graphs."""

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, None]:
        state = self._codec.initial_state(len(codes))
        with self._convolutions:
            pcm, _ = self._codec.decode(Window(codes, 0, 0, codes.new_zeros(len(codes)), state))
        return packed(codes, pcm), None


class CudaLane:
    """Codec that runs on a CUDA stream of its own, for which the engine's stream never waits."""

    def __init__(self, codec: Codec, convolutions: str, device: torch.device) -> None:
        use_whole_float32()
        self._codec = codec
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)  # short, and a client waits for it
        context = convolutions_in(convolutions)
        decode_window = decode_in_rows(codec)
        # Every window begins a reply, and no state after it is needed.
        self._states = StateTable(codec.initial_state(1), 0).states
        self._first = torch.zeros(MAX_BATCH, dtype=torch.int64, device=device)
        self._rows = row_numbers([], [], MAX_BATCH).to(device)

        def decode(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            with context:
                return decode_window(window)

        longest_s = MAX_FIRST_FRAMES * MAX_BATCH / codec.spec.frame_rate
        self._graphs = GraphCache(decode, CudaGraphs(self._stream), codec.spec, MAX_BATCH, longest_s)

    def capture(self) -> None:
        """Capture graphs for all numbers of frames and for 1, 2, 4… replies, the largest first to share its memory."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            for num_frames in range(MAX_FIRST_FRAMES, 0, -1):
                for power in range(MAX_BATCH.bit_length() - 1, -1, -1):
                    shape = 1 << power, self._codec.spec.num_codebooks, num_frames
                    codes = torch.zeros(shape, dtype=torch.int64, device=self._device)
                    self._graphs.capture(self._window(codes))

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        gathered = torch.cuda.Event()
        gathered.record()
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._stream.wait_event(gathered)
            codes.record_stream(self._stream)
            pcm, _ = self._graphs.decode(self._window(codes))
            numbers = packed(codes, pcm)
            done = torch.cuda.Event()
            done.record()
        return numbers, done

    def _window(self, codes: torch.Tensor) -> Window:
        batch = len(codes)
        return Window(codes, 0, 0, self._first[:batch], self._states, self._rows[:, : padded_batch(batch)])


class FirstFrames(PromptLogprobsWorker):
    """Decoder of the first frames of replies in the engine, in the hooks of vLLM for log probabilities of prompts.

    If a reply is preempted before these frames are complete, only the decoder's process decodes them.

    Args:
        drawn: Function that returns the ids of stream 0 that the step has sampled, [B, 1].
    """

    def __init__(self, lane: Lane, slots: RunSlots, drawn: Callable[[], torch.Tensor]) -> None:
        self._lane = lane
        self._slots = slots
        self._drawn = drawn
        self._waiting = dict[str, int]()  # number of frames to decode, by request id
        layout = slots.rules.family.layout
        streams = layout.codebook_streams
        device = slots.tables.codes.device

        def upload(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=device)

        self._most_delay = layout.max_delay
        self._streams = upload(list(streams))
        self._delays = upload([layout.delays[stream] for stream in streams])
        self._first_ids = upload([layout.audio[stream].start for stream in streams])
        self._last_codes = upload([len(layout.audio[stream]) - 1 for stream in streams])

    @classmethod
    def open(
        cls, config: VllmConfig, slots: RunSlots, device: torch.device, drawn: Callable[[], torch.Tensor]
    ) -> "FirstFrames":
        """Load the checkpoint's codec.

        Raises:
            CheckpointError: If the codec cannot decode first frames alone, or has no convolutions for the mode.
        """
        assert isinstance(config.additional_config, dict)
        mode = config.additional_config[KEY]
        family = slots.rules.family
        codec = load_codec(family.codec, Path(config.model_config.model), str(device), family.num_codebooks)
        codec.spec.check_decodes_first(mode)
        check_mode(codec, mode)
        lane = HostLane(codec, mode) if device.type == "cpu" else CudaLane(codec, mode, device)
        return cls(lane, slots, drawn)

    def capture(self) -> None:
        """Capture CUDA graphs."""
        self._lane.capture()

    def begin(self, data: SpeechRequestData) -> None:
        """Prepare for a request that enters the batch."""
        assert data.prompt is not None
        assert data.prefill_token_ids is not None
        self._waiting.pop(data.req_id, None)
        is_new = len(data.prefill_token_ids) == data.prompt_len
        if data.prompt.num_first_frames and is_new and not is_unconditional(data.req_id):
            self._waiting[data.req_id] = data.prompt.num_first_frames

    def add_request(self, req_id: str, req_idx: int, sampling_params: Any) -> None:
        """Do nothing, because `begin` has prepared for the request (vLLM's hook)."""

    def remove_request(self, req_id: str) -> None:
        """Forget a request that has ended or was preempted (vLLM's hook)."""
        self._waiting.pop(req_id, None)

    def compute_prompt_token_id_logprobs(self, *arguments: Any) -> dict[str, torch.Tensor]:
        """Return nothing, because no request asks for log probabilities of its prompt (vLLM's hook)."""
        return {}

    def compute_prompt_logprobs(
        self,
        logits_fn: Callable[[torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        input_batch: InputBatch,
        all_token_ids: torch.Tensor,
        num_computed_tokens: torch.Tensor,
        prompt_lens: np.ndarray,
    ) -> dict[str, Any]:
        """Return the samples of replies whose first frames this step completes, by request id (vLLM's hook).

        Args:
            all_token_ids: Ids of stream 0 by slot and position, without those that this step has sampled.
        """
        samples = dict[str, Any]()
        for num_frames, rows in self._due(input_batch).items():
            for first in range(0, len(rows), MAX_BATCH):
                batch = rows[first : first + MAX_BATCH]
                numbers, done = self._lane.decode(self._gather(batch, input_batch, num_frames, all_token_ids))
                for row, of_reply in zip(batch, numbers, strict=True):
                    samples[input_batch.req_ids[row]] = EarlySamples(of_reply, done)
        return samples

    def _due(self, batch: InputBatch) -> dict[int, list[int]]:
        """Return the rows of a step that complete first frames, keyed by the number of these frames."""
        due = defaultdict[int, list[int]](list)
        if not self._waiting:
            return due
        positions = batch.num_computed_tokens_np + batch.num_scheduled_tokens  # positions of the sampled rows
        for row, req_id in enumerate(batch.req_ids):
            num_frames = self._waiting.get(req_id)
            start = self._slots.audio_start(int(batch.idx_mapping_np[row]))
            if num_frames is None or start < 0:
                continue
            last = start + num_frames - 1 + self._most_delay
            if positions[row] >= last:
                del self._waiting[req_id]
            if positions[row] == last:
                due[num_frames].append(row)
        return due

    def _gather(self, rows: list[int], batch: InputBatch, num_frames: int, all_token_ids: torch.Tensor) -> torch.Tensor:
        """Return the codes of the first frames of some rows' replies, int64 [B, K, num_frames].

        An id that is not a code is replaced by the nearest code, as in the chunks (`FrameCodes`).
        """
        arrays = self._slots.arrays
        index = np.asarray(rows)
        slots = batch.idx_mapping_np[index].astype(np.int64)
        starts = np.array([self._slots.audio_start(int(slot)) for slot in slots])
        slot, begin, row = (arrays.tensor(arrays.upload(column))[:, None, None] for column in (slots, starts, index))
        positions = begin + self._delays[:, None] + torch.arange(num_frames, device=self._delays.device)
        column = (self._streams - 1).clamp(min=0)[:, None]
        others = self._slots.tables.codes[slot, positions, column]
        is_newest = positions == begin + num_frames - 1 + self._most_delay
        firsts = torch.where(is_newest, self._drawn()[row, 0], all_token_ids[slot, positions])
        ids = torch.where(self._streams[:, None] == 0, firsts, others).long()
        return (ids - self._first_ids[:, None]).clamp(min=0).minimum(self._last_codes[:, None])
