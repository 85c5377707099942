import pytest
import torch
from transformers import MimiConfig, MimiModel

from stretto.codecs.seanet import keep_lengths_on_host

SMALL = {"num_filters": 2, "hidden_size": 16, "upsample_groups": 16, "num_hidden_layers": 1}


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
