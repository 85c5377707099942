"""Codec that runs a decoder exported to ONNX (`scripts/export_onnx.py`), without the codec's own weights and modules.

The graph of a stateless codec maps `codes` to `pcm` for all frames. The graph of a codec with a state also takes that
state and the position of the frames to decode, as far as it needs them, and returns `next_state`. The file's metadata
contains the `CodecSpec`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from stretto.codecs.base import CodecSpec, Stateful, Window, Windowed
from stretto.entry_points import CODECS, find, names
from stretto.errors import CheckpointError, InvalidRequest

FILE = "codec.onnx"
SPEC_KEY = "stretto.codec_spec"
STREAMING = {"windowed": Windowed, "stateful": Stateful}
STATE_DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}


def spec_to_json(spec: CodecSpec) -> str:
    """Return the spec as text for the metadata of an ONNX file."""
    return json.dumps(asdict(spec) | {"kind": type(spec.streaming).__name__.lower()})


def spec_from_json(text: str) -> CodecSpec:
    """Return the spec from the metadata of an ONNX file."""
    record = json.loads(text)
    streaming = STREAMING[record.pop("kind")](**record.pop("streaming"))
    return CodecSpec(**record, streaming=streaming)


class OnnxCodec:
    """Exported codec; it can only decode."""

    def __init__(self, spec: CodecSpec, session: onnxruntime.InferenceSession) -> None:
        self.spec = spec
        self._session = session
        self._inputs = {model_input.name: model_input for model_input in session.get_inputs()}
        self._state = self._inputs.get("state")

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because the file contains only the decoder."""
        raise InvalidRequest("audio", f"no audio (an exported {self.spec.name} can only decode)", "audio")

    def initial_state(self, batch: int) -> Tensor:
        if self._state is None:
            return torch.zeros(batch, 0)
        return torch.zeros(batch, self._state.shape[1], dtype=STATE_DTYPES[self._state.type])

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        last = window.codes.shape[2] - window.right
        start = window.left * self.spec.samples_per_frame
        stop = start + self.spec.num_samples(last - window.left, window.right)
        feeds: dict[str, Any] = {"codes": window.codes.cpu().numpy()}
        if self._state is None:
            [pcm] = self._session.run(["pcm"], feeds)
            return torch.from_numpy(pcm[:, start:stop]).clamp(-1, 1), window.state
        feeds |= {"left": np.array([window.left]), "last": np.array([last])}
        feeds |= {"first": window.first.cpu().numpy(), "state": window.state.cpu().numpy()}
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        pcm, state = self._session.run(["pcm", "next_state"], feeds)
        return torch.from_numpy(pcm[:, start:stop]).clamp(-1, 1), torch.from_numpy(state)


def open_session(file: Path, device: str = "cpu", threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session on `cpu` or `cuda:<n>`; raise ValueError if no provider supports the device."""
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(f"onnxruntime has no {provider} here; device must be cpu, got {device}")
    settings = {"device_id": torch.device(device).index or 0} if device != "cpu" else {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings)])


def load(name: str, directory: Path, device: str = "cpu", threads: int = 1) -> OnnxCodec:
    """Return the exported codec called `name`, from a checkpoint folder or its subfolder `codec/`.

    Raises:
        KeyError: If the name is unknown.
        CheckpointError: If the file is missing, or contains another codec.
    """
    if find(CODECS, name) is None:
        raise KeyError(f"unknown codec {name!r}; installed: {names(CODECS)}")
    folders = [folder for folder in (directory / "codec", directory) if (folder / FILE).is_file()]
    if not folders:
        raise CheckpointError(f"{directory / FILE} is missing: scripts/export_onnx.py writes it")
    codec = load_file(folders[0] / FILE, device, threads)
    if codec.spec.name != name:
        raise CheckpointError(f"{directory}: expected an exported {name}, got an exported {codec.spec.name}")
    return codec


def load_file(file: Path, device: str = "cpu", threads: int = 1) -> OnnxCodec:
    """Return the codec in an exported file; raise CheckpointError if the file is not an exported codec."""
    session = open_session(file, device, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    if SPEC_KEY not in metadata:
        raise CheckpointError(f"{file} was not written by scripts/export_onnx.py: it has no {SPEC_KEY}")
    return OnnxCodec(spec_from_json(metadata[SPEC_KEY]), session)
