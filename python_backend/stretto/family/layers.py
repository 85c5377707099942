"""Layers of Llama and Qwen3 in a release: their section of config.json, and the names and shapes of their tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from transformers import LlamaConfig, LlamaModel, PretrainedConfig, Qwen3Config, Qwen3Model

from stretto.errors import InvalidRequest, shown
from stretto.family.base import DepthSpec
from stretto.family.sections import Epsilon, Integer, NumLayers, Section, Size, Theta
from stretto.weights.backbones import LLAMA_NUMBERS, with_older_keys
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


class Layers(Section):
    """Hyperparameters that Llama and Qwen3 have in common.

    Attributes:
        defaults: Config class of transformers that supplies the defaults of fields that have none here, because it
            omits default values when it writes a section. None if the fields are required.
    """

    defaults: ClassVar[type[PretrainedConfig] | None] = None

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: NumLayers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    rms_norm_eps: Epsilon
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if cls.defaults is None:
            return
        theta = cls.defaults.default_theta
        rope = {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        for name, field in cls.model_fields.items():
            value = rope.get(name, getattr(cls.defaults, name, None))
            is_open = field.is_required() or field.default_factory is not None
            if is_open and value is not None and name != "model_type":
                field.default = value
                field.default_factory = None
        cls.model_rebuild(force=True)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            expected = f"a multiple of {self.num_key_value_heads} (num_key_value_heads)"
            raise InvalidRequest("num_attention_heads", expected, self.num_attention_heads)
        return self


class LlamaLayers(Layers):
    """Layers of Llama, with `rope_parameters`, or `rope_theta` and `rope_scaling` as in version 4 of transformers."""

    num_key_value_heads: Size = Field(default_factory=lambda fields: fields["num_attention_heads"])
    head_dim: Size = Field(default_factory=lambda fields: fields["hidden_size"] // fields["num_attention_heads"])
    max_position_embeddings: Integer
    rope_parameters: dict[str, Any]
    mlp_bias: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _with_newer_keys(cls, record: Any) -> Any:
        if not isinstance(record, Mapping):
            return record
        record = {name: value for name, value in record.items() if value is not None}  # treated as missing
        if record.keys().isdisjoint(("rope_theta", "rope_scaling")) or "rope_parameters" in record:
            return record
        default = None if cls.defaults is None else cls.defaults.default_theta
        theta = record.get("rope_theta", default)
        scaling = record.get("rope_scaling", {"rope_type": "default"})
        if not isinstance(scaling, Mapping):
            raise InvalidRequest("rope_scaling", "an object", shown(scaling))
        return record if theta is None else record | {"rope_parameters": {**scaling, "rope_theta": theta}}

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:  # vLLM's layers reject it
            expected = f"a multiple of {self.num_attention_heads} (num_attention_heads)"
            raise InvalidRequest("hidden_size", expected, self.hidden_size)
        return self

    @property
    def numbers(self) -> dict[str, Any]:
        """Hyperparameters by their key in config.json."""
        return {name: getattr(self, name) for name in LLAMA_NUMBERS}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors of all layers and the final norm, by their names in transformers."""
        return shapes_of(LlamaModel, LlamaConfig(vocab_size=1, **self.numbers))

    @property
    def record(self) -> dict[str, Any]:
        """Hyperparameters for the config.json of a checkpoint."""
        return {"architectures": ["StrettoLlamaForCausalLM"], "model_type": "llama", **self.numbers}


class Qwen3Layers(Layers):
    """Layers of Qwen3, with `rope_theta` or, as in version 5 of transformers, `rope_parameters`."""

    rope_theta: Theta

    @model_validator(mode="before")
    @classmethod
    def _with_older_keys(cls, record: Any) -> Any:
        return with_older_keys(record) if isinstance(record, Mapping) else record

    @property
    def numbers(self) -> dict[str, int | float]:
        return {name: getattr(self, name) for name in NUMBERS}

    @property
    def shapes(self) -> dict[str, Shape]:
        return shapes_of(Qwen3Model, Qwen3Config(vocab_size=1, **self.numbers))

    @property
    def rope(self) -> dict[str, Any]:
        """Parameters of the rotary embedding, as version 5 of transformers names them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta}


class Qwen3Backbone(Qwen3Layers):
    """Backbone of Qwen3, a section of its own in config.json."""

    defaults = Qwen3Config

    model_type: Literal["qwen3"] = "qwen3"
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    vocab_size: Integer
    max_position_embeddings: Integer

    @property
    def record(self) -> dict[str, Any]:
        return {
            "architectures": ["StrettoQwen3ForCausalLM"],
            "model_type": self.model_type,
            **{name: number for name, number in self.numbers.items() if name != "rope_theta"},
            "rope_parameters": self.rope,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": self.hidden_act,
            "attention_bias": self.attention_bias,
        }


def gpt2_layer(width: int) -> dict[str, Shape]:
    """Return the shapes of the tensors of a GPT-2 layer, by their names in transformers."""
    shapes: dict[str, Shape] = {
        f"{name}.{tensor}": (width,) for name in ("ln_1", "ln_2") for tensor in ("weight", "bias")
    }
    for name, rows, columns in (
        ("attn.c_attn", 1, 3),
        ("attn.c_proj", 1, 1),
        ("mlp.c_fc", 1, 4),
        ("mlp.c_proj", 4, 1),
    ):
        shapes |= {f"{name}.weight": (rows * width, columns * width), f"{name}.bias": (columns * width,)}
    return shapes


def depth_spec(layers: Any, rope: Mapping[str, Any], **others: Any) -> DepthSpec:
    """Return the specification of a depth transformer with these layers: a section, or a config of transformers."""
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
