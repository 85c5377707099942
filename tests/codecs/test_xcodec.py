import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.releases.random_codecs import make_model
from stretto.codecs import xcodec
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError, InvalidRequest
from tests.codecs.streaming import random_codes, stream


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a checkpoint folder with a codec next to a speech model."""
    make_model("xcodec").save_pretrained(tmp_path / "codec")
    return tmp_path


def keep(directory: Path, names: set[str]) -> None:
    """Remove all other parts from a checkpoint."""
    file = directory / "codec" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name.split(".")[0] in names}
    save_file(tensors, file, metadata={"format": "pt"})


def test_xcodec_checkpoint_without_encoder_can_decode(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the missing parts is undefined: transformers does not initialise HuBERT's weight norm."""
    whole = load_codec("xcodec", directory)
    keep(directory, {"acoustic_decoder", "quantizer", "fc2"})
    monkeypatch.setattr(torch, "empty_like", partial(torch.full_like, fill_value=math.nan))
    bare = xcodec.load(directory)
    codes = random_codes(bare, 1, 12)
    assert torch.equal(stream(bare, codes, [12]), stream(whole, codes, [12]))
    with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(this checkpoint of xcodec can only decode\)"):
        bare.encode(np.zeros(320, dtype=np.float32))
    assert sum(map(torch.numel, bare.parameters())) < sum(map(torch.numel, whole.parameters())) / 2


def test_checkpoint_with_an_incomplete_encoder_is_refused(directory: Path) -> None:
    keep(directory, {"acoustic_decoder", "quantizer", "fc2", "fc"})
    with pytest.raises(CheckpointError, match=r"missing: .*semantic_model"):
        xcodec.load(directory)


def set_ratios(directory: Path, ratios: list[int]) -> None:
    file = directory / "codec" / "config.json"
    record = json.loads(file.read_text())
    record["acoustic_model_config"]["upsampling_ratios"] = ratios
    file.write_text(json.dumps(record))


def test_reversed_strides_do_not_match_the_weights(directory: Path) -> None:
    """The order changes the decoder's receptive field threefold, so it must not be guessed."""
    set_ratios(directory, [2, 4, 5, 8])
    with pytest.raises(CheckpointError, match=r"wrong shape: .*acoustic_decoder\.block\.0\.conv_t1\.weight"):
        xcodec.load(directory)


def test_decoder_with_mismatched_strides_is_refused(directory: Path) -> None:
    set_ratios(directory, [4, 5, 4, 2])
    with pytest.raises(CheckpointError, match=r"wrong shape|expected the product"):
        xcodec.load(directory)
    model = make_model("xcodec")
    model.config.acoustic_model_config.downsampling_ratios = [8, 5, 4, 4]
    with pytest.raises(CheckpointError, match=r"with the product of \[8, 5, 4, 4\], got \[8, 5, 4, 2\]"):
        xcodec.SemanticCodec("xcodec", model, can_encode=True)
