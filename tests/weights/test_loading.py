import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DacConfig, DacModel

from stretto.errors import CheckpointError
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_config, load_model

OPTIONAL = ("encoder",)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    config = DacConfig(
        encoder_hidden_size=2, downsampling_ratios=[2], decoder_hidden_size=4, n_codebooks=2, codebook_size=8
    )
    DacModel(config).save_pretrained(tmp_path)
    return tmp_path


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors in a checkpoint (`__` for a dot); None removes one."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    tensors = load_file(directory / "model.safetensors") | named
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def test_codec_directory_is_the_folder_or_its_codec_subfolder(directory: Path, tmp_path: Path) -> None:
    assert codec_directory(directory) == directory
    (tmp_path / "codec").mkdir()
    with pytest.raises(CheckpointError, match=r"codec/config\.json is missing"):
        codec_directory(tmp_path)
    (tmp_path / "codec" / "config.json").write_text("{}")
    assert codec_directory(tmp_path) == tmp_path / "codec"


def test_complete_checkpoint_loads_in_float32(directory: Path) -> None:
    rewrite(directory, decoder__conv1__bias=torch.full((4,), 0.5, dtype=torch.float16))
    model, is_complete = load_model(DacModel, directory, OPTIONAL)
    assert is_complete
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert model.decoder.conv1.bias.tolist() == [0.5] * 4


def test_optional_parts_may_only_be_omitted_as_a_whole(directory: Path) -> None:
    names = [name for name in load_file(directory / "model.safetensors") if name.startswith("encoder.")]
    rewrite(directory, **{name.replace(".", "__"): None for name in names[1:]})
    with pytest.raises(CheckpointError, match=r"missing: .*encoder"):
        load_model(DacModel, directory, OPTIONAL)
    rewrite(directory, **{names[0].replace(".", "__"): None})
    assert load_model(DacModel, directory, OPTIONAL)[1] is False
    with pytest.raises(CheckpointError, match=r"missing: .*encoder"):
        load_model(DacModel, directory)


def test_error_names_mismatched_tensors(directory: Path) -> None:
    rewrite(directory, decoder__conv1__bias=None, surplus=torch.zeros(1), decoder__conv2__bias=torch.zeros(3))
    expected = "missing: decoder.conv1.bias; unknown: surplus; wrong shape: decoder.conv2.bias"
    with pytest.raises(CheckpointError, match=expected):
        load_model(DacModel, directory, OPTIONAL)


def test_truncated_and_non_finite_weights_are_refused(directory: Path) -> None:
    rewrite(directory, decoder__conv1__bias=torch.tensor([0.0, math.inf, 0.0, 0.0]))
    with pytest.raises(CheckpointError, match=r"expected finite numbers, got .* decoder\.conv1\.bias"):
        load_model(DacModel, directory, OPTIONAL)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(directory)):
        load_model(DacModel, directory, OPTIONAL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "config.json"), ('{"model_type": "encodec"}', "model_type must be dac, got encodec")],
)
def test_codec_config_of_another_type_is_refused(directory: Path, text: str, expected: str) -> None:
    (directory / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=expected):
        load_config(DacConfig, directory)


def test_config_field_of_wrong_type_is_refused(directory: Path) -> None:
    record = json.loads((directory / "config.json").read_text()) | {"n_codebooks": "many"}
    (directory / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="n_codebooks"):
        load_config(DacConfig, directory)


def test_missing_weights_are_a_checkpoint_error(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(DacModel, directory)


def test_weights_index_with_outside_files_is_refused(directory: Path) -> None:
    elsewhere = directory.parent / f"{directory.name}.safetensors"
    (directory / "model.safetensors").rename(elsewhere)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(elsewhere), f"../{elsewhere.name}")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"expected a file name without a folder, got '\.\./"):
        load_model(DacModel, directory)


@pytest.mark.parametrize("key", ["attn_implementation", "quantization_config"])
def test_config_keys_that_load_external_code_are_dropped(key: str, directory: Path) -> None:
    """An implementation name with a slash would be a Hub kernel, which transformers downloads and runs."""
    path = directory / "config.json"
    value = "evil/kernel" if key == "attn_implementation" else {"quant_method": "awq"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert load_config(DacConfig, directory)._attn_implementation != "evil/kernel"
    load_model(DacModel, directory)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"semantic_model": [{key: value}]}))
    assert load_config(DacConfig, directory).semantic_model == [{}]
