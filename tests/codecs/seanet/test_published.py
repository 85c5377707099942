import pytest
import torch
from transformers import MimiConfig, MimiModel

from stretto.codecs.seanet import SeanetShape, keep_lengths_on_host, shape_of
from stretto.errors import CheckpointError

SMALL = {"num_filters": 2, "hidden_size": 16, "upsample_groups": 16, "num_hidden_layers": 1}


def test_seanet_shape_matches_the_published_config() -> None:
    assert shape_of(MimiConfig()) == SeanetShape(ratios=(8, 6, 5, 4), last_kernel=3, is_causal=True)


@pytest.mark.parametrize("values", [{"audio_channels": 2}, {"trim_right_ratio": 0.5}], ids=str)
def test_unsupported_configs_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(values))):
        shape_of(MimiConfig(**values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_padding_lengths_stay_on_the_host() -> None:
    model = MimiModel(MimiConfig(**SMALL)).eval().requires_grad_(False).to("cuda")
    keep_lengths_on_host(model)
    assert {buffer.device.type for name, buffer in model.named_buffers() if name.endswith("padding_total")} == {"cpu"}
    latents = torch.zeros(1, SMALL["hidden_size"], 9, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.decoder(latents)
    finally:
        torch.cuda.set_sync_debug_mode("default")
