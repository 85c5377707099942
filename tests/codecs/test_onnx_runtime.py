"""The ONNX runtime on tiny graphs, whose samples equal their codes and whose state counts frames."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from stretto.codecs.base import CodecSpec, Stateful, Window, Windowed
from stretto.codecs.onnx_runtime import FILE, SPEC_KEY, load, load_file, open_session, spec_from_json, spec_to_json
from stretto.errors import CheckpointError, InvalidRequest

SPEC = CodecSpec("small", 100, 1, num_codebooks=2, codebook_size=8, streaming=Windowed(2, 1))
INPUTS = {"codes": (TensorProto.INT64, ["batch", 2, "frames"])}
STATE_INPUTS = {
    "left": (TensorProto.INT64, [1]),
    "last": (TensorProto.INT64, [1]),
    "first": (TensorProto.INT64, ["batch"]),
    "state": (TensorProto.DOUBLE, ["batch", 1]),
}


def save(directory: Path, spec: CodecSpec, metadata: dict[str, str] | None = None) -> None:
    """pcm = (code 0 + code 1) / 4; next_state = state + last - left."""
    tensors = INPUTS | (STATE_INPUTS if isinstance(spec.streaming, Stateful) else {})
    outputs = {"pcm": (TensorProto.FLOAT, ["batch", "frames"])}
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Constant", [], ["quarter"], value_float=0.25),
        helper.make_node("ReduceSum", ["codes", "axis"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "quarter"], ["pcm"]),
    ]
    if isinstance(spec.streaming, Stateful):
        outputs["next_state"] = (TensorProto.DOUBLE, ["batch", 1])
        nodes += [
            helper.make_node("Sub", ["last", "left"], ["count"]),
            helper.make_node("Cast", ["count"], ["frames_done"], to=TensorProto.DOUBLE),
            helper.make_node("Add", ["state", "frames_done"], ["next_state"]),
        ]
    values = [
        [helper.make_tensor_value_info(name, *shape) for name, shape in each.items()] for each in (tensors, outputs)
    ]
    graph = helper.make_graph(nodes, "small", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    helper.set_model_props(model, {SPEC_KEY: spec_to_json(spec)} if metadata is None else metadata)
    directory.mkdir(exist_ok=True)
    onnx.save(model, str(directory / FILE))


@pytest.mark.parametrize("streaming", [Windowed(2, 1), Stateful(2, 1)])
def test_codec_spec_is_stored_in_the_onnx_file(streaming: Windowed | Stateful, tmp_path: Path) -> None:
    spec = CodecSpec("small", 100, 1, 2, 8, streaming, tail_samples=1)
    assert spec_from_json(spec_to_json(spec)) == spec
    save(tmp_path, spec)
    assert load_file(tmp_path / FILE).spec == spec


def test_onnx_decode_drops_context_and_clips_samples(tmp_path: Path) -> None:
    save(tmp_path, SPEC)
    codec = load_file(tmp_path / FILE)
    codes = torch.tensor([[[1, 2, 3, 0, 1], [0, 1, 7, 1, 1]]])
    pcm, state = codec.decode(Window(codes, 1, 1, torch.tensor([1]), codec.initial_state(1)))
    assert pcm.tolist() == [[0.75, 1.0, 0.25]]
    assert pcm.dtype == torch.float32
    assert state.shape == (1, 0)


def test_final_window_omits_the_tail_samples(tmp_path: Path) -> None:
    save(tmp_path, CodecSpec("small", 100, 1, 2, 8, Windowed(2, 1), tail_samples=1))
    pcm, _ = load_file(tmp_path / FILE).decode(
        Window(torch.ones(2, 2, 4, dtype=torch.int64), 1, 0, torch.tensor([1, 1]), torch.zeros(2, 0))
    )
    assert pcm.shape == (2, 2)


def test_onnx_codec_carries_its_state(tmp_path: Path) -> None:
    save(tmp_path / "codec", CodecSpec("small", 100, 1, 2, 8, Stateful(2, 1)))
    codec = load_file(tmp_path / "codec" / FILE)
    state = codec.initial_state(2)
    assert state.dtype == torch.float64
    assert state.tolist() == [[0.0], [0.0]]
    for _ in range(2):
        window = Window(torch.ones(2, 2, 5, dtype=torch.int64), 1, 1, torch.tensor([1, 1]), state)
        pcm, state = codec.decode(window)
    assert pcm.shape == (2, 3)
    assert state.tolist() == [[6.0], [6.0]]


def test_onnx_file_without_stretto_metadata_is_refused(tmp_path: Path) -> None:
    save(tmp_path, SPEC, metadata={})
    with pytest.raises(CheckpointError, match=f"it has no {SPEC_KEY}"):
        load_file(tmp_path / FILE)


def test_missing_onnx_file_error_names_the_export_script(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"codec\.onnx is missing: scripts/export_onnx\.py writes it"):
        load("tiny", tmp_path)


def test_onnx_device_without_a_provider_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, SPEC)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="no CUDAExecutionProvider here; device must be cpu, got cuda:1"):
        load_file(tmp_path / FILE, "cuda:1")


@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("cpu", ("CPUExecutionProvider", {})),
        ("cuda", ("CUDAExecutionProvider", {"device_id": 0})),
        ("cuda:1", ("CUDAExecutionProvider", {"device_id": 1})),
    ],
)
def test_onnx_session_runs_on_the_device_that_is_named(
    device: str, provider: tuple[str, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    session = "onnxruntime.InferenceSession"
    monkeypatch.setattr(session, lambda file, options, providers: SimpleNamespace(file=file, providers=providers))
    opened = open_session(tmp_path / FILE, device)
    assert (opened.file, opened.providers) == (str(tmp_path / FILE), [provider])


def test_exported_decoder_refuses_to_encode(tmp_path: Path) -> None:
    save(tmp_path, SPEC)
    with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(an exported small can only decode\)"):
        load_file(tmp_path / FILE).encode(np.zeros(3, dtype=np.float32))
