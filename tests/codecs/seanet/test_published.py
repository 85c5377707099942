import pytest
import torch
from transformers import EncodecConfig, EncodecModel, MimiConfig

from stretto.codecs.seanet import SeanetShape, keep_lengths_on_host, multiply_weight_norm_out, shape_of
from stretto.errors import CheckpointError


def small_encodec() -> EncodecModel:
    torch.manual_seed(0)
    return EncodecModel(EncodecConfig(num_filters=2, hidden_size=8, codebook_size=32)).eval().requires_grad_(False)


def test_seanet_shapes_match_the_published_configs() -> None:
    assert shape_of(EncodecConfig()) == SeanetShape(ratios=(8, 5, 4, 2), is_causal=True)
    assert shape_of(MimiConfig()) == SeanetShape(ratios=(8, 6, 5, 4), last_kernel=3, is_causal=True)


@pytest.mark.parametrize("values", [{"audio_channels": 2}, {"trim_right_ratio": 0.5}], ids=str)
def test_unsupported_encodec_configs_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(values))):
        shape_of(EncodecConfig(**values))


def test_multiplied_out_weight_norm_decodes_identically() -> None:
    model = small_encodec()
    codes = torch.randint(32, (1, 1, len(model.quantizer.layers), 9))
    before = model.decode(codes, [None]).audio_values
    multiply_weight_norm_out(model)
    assert not [name for name, _ in model.named_parameters() if "parametrizations" in name]
    assert torch.equal(model.decode(codes, [None]).audio_values, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_encodec_padding_lengths_stay_on_the_host() -> None:
    model = small_encodec().to("cuda")
    keep_lengths_on_host(model)
    assert {buffer.device.type for name, buffer in model.named_buffers() if name.endswith("padding_total")} == {"cpu"}
    codes = torch.randint(32, (1, 1, len(model.quantizer.layers), 9), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.decoder(model.quantizer.decode(codes[0].transpose(0, 1)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
