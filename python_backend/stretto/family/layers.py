"""Layers of Qwen3 in a release: their section of config.json, and the names and shapes of their tensors."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator
from transformers import Qwen3Config, Qwen3Model

from stretto.errors import InvalidRequest
from stretto.family.base import DepthSpec
from stretto.family.sections import Epsilon, Integer, NumLayers, Section, Size, Theta
from stretto.weights.backbones import with_older_keys
from stretto.weights.loading import Part, Plan, Shape, shapes_of

NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
)


class Qwen3Layers(Section):
    """Hyperparameters under the names of either version of transformers: with `rope_theta` or `rope_parameters`."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: NumLayers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    rms_norm_eps: Epsilon
    rope_theta: Theta
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _with_older_keys(cls, record: Any) -> Any:
        return with_older_keys(record) if isinstance(record, Mapping) else record

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            expected = f"a multiple of {self.num_key_value_heads} (num_key_value_heads)"
            raise InvalidRequest("num_attention_heads", expected, self.num_attention_heads)
        return self

    @property
    def numbers(self) -> dict[str, int | float]:
        """Hyperparameters by their key in config.json."""
        return {name: getattr(self, name) for name in NUMBERS}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors of all layers and the final norm, by their names in transformers."""
        return shapes_of(Qwen3Model, Qwen3Config(vocab_size=1, **self.numbers))

    @property
    def rope(self) -> dict[str, Any]:
        """Parameters of the rotary embedding, as version 5 of transformers names them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta}


class Qwen3Backbone(Qwen3Layers):
    """Backbone of Qwen3, with the defaults of transformers, which leaves them out of the sections that it writes."""

    model_type: Literal["qwen3"] = "qwen3"
    hidden_size: Size = 4096
    intermediate_size: Size = 22016
    num_hidden_layers: NumLayers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    head_dim: Size = 128
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta = 1e4
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    vocab_size: Integer = 151936
    max_position_embeddings: Integer = 32768

    @property
    def record(self) -> dict[str, Any]:
        """Hyperparameters for the config.json of a checkpoint."""
        return {
            "architectures": ["StrettoQwen3ForCausalLM"],
            "model_type": self.model_type,
            **{name: number for name, number in self.numbers.items() if name != "rope_theta"},
            "rope_parameters": self.rope,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": self.hidden_act,
            "attention_bias": self.attention_bias,
        }


def depth_spec(layers: Any, rope: Mapping[str, Any], **others: Any) -> DepthSpec:
    """Return the specification of a depth transformer.

    Args:
        layers: Its layers: a section, or a config of transformers.
    """
    return DepthSpec(
        hidden=layers.hidden_size,
        intermediate=layers.intermediate_size,
        num_layers=layers.num_hidden_layers,
        num_heads=layers.num_attention_heads,
        num_kv_heads=layers.num_key_value_heads,
        head_dim=layers.head_dim,
        eps=layers.rms_norm_eps,
        rope=dict(rope),
        **others,
    )


def layers_plan(shapes: Mapping[str, Shape], published: str, prefix: str = "model.") -> Plan:
    """Return the plan of layers and their final norm, which keep their names except for the prefix.

    Args:
        shapes: Shapes of tensors by published name, or by the name without its prefix. Other tensors are left out.
        published: Prefix of the published names, with a dot at the end.
        prefix: Prefix of our names. In a depth transformer (`depth.`), parts of a layer have no prefix of their own.
    """
    parts: Plan = {}
    for name, shape in shapes.items():
        within = name.removeprefix(published)
        if within.startswith(("layers.", "norm.")):
            ours = within if prefix != "depth." else within.replace("self_attn.", "").replace("mlp.", "")
            parts[f"{published}{within}"] = Part(f"{prefix}{ours}", shape)
    return parts
