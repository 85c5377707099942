"""The training network against Hugging Face's Qwen3, which the engine runs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Qwen3Model

from stretto.families.tiny import family as tiny
from training.tiny.export import checkpoint_config, export, load_exported
from training.tiny.network import Network, NetworkConfig

SMALL = NetworkConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                      intermediate_size=96)  # fmt: skip


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    network = Network(SMALL).eval()
    for weight in network.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.1)
    return network


@pytest.fixture
def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, tiny.LAYOUT.vocab_size, (2, 13, 9), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.4] = tiny.PAD
    return ids


def test_row_embedding_sums_streams_with_pad_only_on_stream_0(network: Network, rows: torch.Tensor) -> None:
    table = network.model.embed_tokens.weight
    found = network.model.embed(rows)
    for b in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            expected = table[rows[b, t, 0]] + sum(table[i] for i in rows[b, t, 1:] if i != tiny.PAD)
            torch.testing.assert_close(found[b, t], expected)


@torch.inference_mode()
def test_hidden_states_match_hugging_face_qwen3(tmp_path: Path, network: Network, rows: torch.Tensor) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoint_config(SMALL)))
    model = Qwen3Model(AutoConfig.from_pretrained(tmp_path)).eval()
    trunk = {
        name.removeprefix("model."): weight for name, weight in network.state_dict().items() if "lm_head" not in name
    }
    model.load_state_dict(trunk)
    expected = model(inputs_embeds=network.model.embed(rows)).last_hidden_state
    torch.testing.assert_close(network(rows), expected, atol=1e-4, rtol=0)


def test_an_exported_checkpoint_loads_with_float16_weights(tmp_path: Path, network: Network) -> None:
    torch.save({"network": network.state_dict(), "config": vars(SMALL)}, tmp_path / "network.pt")
    export(tmp_path / "network.pt", tmp_path / "out")
    loaded = load_exported(tmp_path / "out").state_dict()
    for name, weight in network.state_dict().items():
        assert torch.equal(loaded[name], weight.half().float())
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["StrettoQwen3ForCausalLM"]
    assert config.speech_family == "tiny"
    assert config.eos_token_id == tiny.END_OF_REPLY
