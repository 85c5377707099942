"""Conversion of the talker in a Qwen3-Omni release: names, shapes and ids as published by Qwen.

The converter of the whole release (`stretto_qwen3_omni/qwen3_omni/convert.py`) calls this one.
https://huggingface.co/Qwen/Qwen3-Omni-30B-A3B-Instruct contains the whole model; the `talker.…` tensors are a tenth of
it. Only the tensors in use are read. They include the thinker's embedding table, because the talker's text table is
computed from it. All hyperparameters come from config.json, because the defaults of the transformers classes belong to
another model. Everything else is as in Qwen3-TTS.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from stretto.errors import CheckpointError
from stretto.families.qwen3_tts.convert import (
    DEPTH,
    TALKER,
    CodePredictor,
    TextMarkers,
    check_talker,
    depth_of,
    rope_sections,
    text_and_codes,
    text_shapes,
)
from stretto.families.qwen3_tts.family import CodecIds
from stretto.family.audio_format import KEY
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Tokenizer,
    common_record,
    in_lower_case,
    linear,
    prefixed,
)
from stretto.family.image_format import KEY as IMAGE_KEY
from stretto.family.layers import Qwen3Layers, layers_plan
from stretto.family.sections import Integer, Section
from stretto.untrusted_files import check_value
from stretto.weights.backbones import with_older_keys
from stretto.weights.loading import Part, Plan, Shape, shapes_of
from stretto_qwen3_omni.code2wav import MODEL_TYPE, Code2Wav, read_shape
from stretto_qwen3_omni.qwen3_omni_talker.family import NAME, TalkerVocabulary

CODEC = "code2wav."
# The other keys concern the thinker.
GENERATION = prefixed("talker_", "audio") | {"talker_repetition_penalty": ("repetition_penalty",)}
EMBEDDINGS = "thinker.model.embed_tokens.weight"
PROJECTION = "talker.hidden_projection."
CODEC_IDS = ("pad", "bos", "nothink", "think_bos", "think_eos")


class ExpertLayers(Qwen3Layers):
    """Section `text_config` of the thinker or the talker: layers of Qwen3-MoE."""

    vocab_size: Integer
    max_position_embeddings: Integer
    moe_intermediate_size: Integer
    num_experts: Annotated[int, Field(ge=1, le=1024)]  # each has names and shapes of its own; 128 are published
    num_experts_per_tok: Integer
    norm_topk_prob: bool
    rope_scaling: dict[str, Any]

    @property
    def sections(self) -> list[int]:
        """Sections of the rotary embedding."""
        return rope_sections(self, self.rope_scaling)

    @property
    def record(self) -> dict[str, Any]:
        """Hyperparameters for config.json of a backbone with experts in every layer."""
        names = (
            "moe_intermediate_size",
            "num_experts",
            "num_experts_per_tok",
            "max_position_embeddings",
            "norm_topk_prob",
        )
        return {
            "architectures": ["StrettoQwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **self.numbers,
            **{name: getattr(self, name) for name in names},
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "hidden_act": "silu",
            "attention_bias": False,
        }

    def plan(self, published: str, num_shared: int = 0) -> Plan:
        """Return the plan of all layers and the final norm. `num_shared` is the shared expert's width, 0 for none."""
        width = self.hidden_size
        parts = layers_plan({name: shape for name, shape in self.shapes.items() if ".mlp." not in name}, published)
        for layer in range(self.num_hidden_layers):
            shapes: dict[str, Shape] = {"gate.weight": (self.num_experts, width)}
            for expert in range(self.num_experts):
                shapes |= expert_shapes(f"experts.{expert}.", width, self.moe_intermediate_size)
            if num_shared:
                shapes |= expert_shapes("shared_expert.", width, num_shared)
                shapes["shared_expert_gate.weight"] = (1, width)
            within = f"layers.{layer}.mlp."
            parts |= {
                f"{published}{within}{name}": Part(f"model.{within}{name}", shape) for name, shape in shapes.items()
            }
        return parts


def expert_shapes(prefix: str, width: int, size: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = dict.fromkeys((f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight"), (size, width))
    return shapes | {f"{prefix}down_proj.weight": (width, size)}


class TalkerText(ExpertLayers):
    """Section `talker_config.text_config`."""

    shared_expert_intermediate_size: Integer


class Talker(Section):
    """Section `talker_config`."""

    ids_below = "text_config.vocab_size"

    text_config: TalkerText
    code_predictor_config: CodePredictor
    num_code_groups: int
    thinker_hidden_size: Integer
    codec_pad_id: int
    codec_bos_id: int
    codec_eos_token_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    speaker_id: dict[str, int]
    accept_hidden_layer: int = 0


class ThinkerText(ExpertLayers):
    """Section `thinker_config.text_config`: experts in every layer, and no shared one."""

    tie_word_embeddings: Literal[False] = False
    shared_expert_intermediate_size: Literal[0] = 0
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: Annotated[tuple[int, ...], Field(max_length=0, strict=False)] = ()


class Thinker(Section):
    """Section `thinker_config`."""

    ids_below = "text_config.vocab_size"

    text_config: ThinkerText
    audio_token_id: int
    image_token_id: int
    vision_start_token_id: int
    video_token_id: int


class ThinkerRelease(Section):
    """config.json of a release, whose talker may be missing."""

    model_type: Literal["qwen3_omni_moe"]
    enable_audio_output: bool = True
    thinker_config: Thinker


class WholeRelease(ThinkerRelease, TextMarkers):
    """config.json of a release with a talker."""

    ids_below = "thinker_config.text_config.vocab_size"

    talker_config: Talker
    code2wav_config: dict[str, Any]


def convert(config: WholeRelease, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    vocab = vocabulary(config, contents.tokenizer)
    talker = config.talker_config
    text = talker.text_config
    width = talker.thinker_hidden_size
    inner = text.intermediate_size
    record = {
        # experts in every layer, because the transformers class ignores config.json
        **text.record,
        "shared_expert_intermediate_size": text.shared_expert_intermediate_size,
        **common_record(NAME, vocab, vocab.layout.vocab_size, contents),
        KEY: {"model_type": "thinker_states", "hidden_size": width, "intermediate_size": inner},
        IMAGE_KEY: {
            "model_type": "thinker_image_states",
            "feature_size": width,
            "frames_per_row": 1,
            "num_levels": 0,
            "sections": text.sections,
        },
    }
    shapes = text_shapes(EMBEDDINGS, vocab.num_text_ids, width, inner, text.hidden_size)
    parts = text_and_codes(vocab, shapes, text.hidden_size)
    parts |= text.plan(TALKER, text.shared_expert_intermediate_size)
    parts |= layers_plan(talker.code_predictor_config.shapes, f"{DEPTH}model.", "depth.")
    for layer, (rows, columns) in (("linear_fc1", (inner, width)), ("linear_fc2", (text.hidden_size, inner))):
        parts |= linear(f"{PROJECTION}{layer}.", f"adaptor.{layer}.", rows, columns)
    return Converted(record, parts, ("thinker.",), networks=(code2wav(config.code2wav_config, vocab),))


def code2wav(published: dict[str, Any], vocab: TalkerVocabulary) -> Network:
    """Return the codec, to be written to a folder of its own."""
    record = with_older_keys(published)
    try:
        shape = read_shape(record)
    except ValueError as error:
        raise CheckpointError(f"config.json: code2wav_config: {error}") from error
    sizes = (shape.num_quantizers, shape.codebook_size)
    expected = (vocab.num_codebooks, vocab.codebook_size)
    if sizes != expected:
        expectation = f"{expected[0]} codebooks of {expected[1]} codes, the talker's"
        raise CheckpointError(f"config.json: code2wav_config: expected {expectation}, got {sizes}")
    parts = {f"{CODEC}{name}": Part(name, shape) for name, shape in shapes_of(Code2Wav, shape).items()}
    return Network("codec", {"model_type": MODEL_TYPE, "decoder_config": record}, parts)


def vocabulary(config: WholeRelease, tokenizer: Tokenizer) -> TalkerVocabulary:
    """Return the vocabulary and voices; raise CheckpointError if the tokenizer or a voice's name is unsuitable."""
    talker = config.talker_config
    thinker = config.thinker_config
    depth = talker.code_predictor_config
    check_talker(depth, talker.text_config.vocab_size, talker.num_code_groups, "talker_config.text_config.")
    # codes are not projected
    check_value("talker_config.code_predictor_config.hidden_size", depth.hidden_size, talker.text_config.hidden_size)
    num_text_ids = thinker.text_config.vocab_size
    codec = {name: getattr(talker, f"codec_{name}_id") for name in CODEC_IDS}
    return TalkerVocabulary(
        takes_instructions=False,
        num_text_ids=num_text_ids,
        num_codec_ids=talker.text_config.vocab_size,
        num_codebooks=talker.num_code_groups,
        codebook_size=depth.vocab_size,
        text=config.text_ids(tokenizer, num_text_ids),
        # The talker lacks the `think` marker, which announces a language in Qwen3-TTS.
        codec=CodecIds(**codec, think=codec["nothink"], eos=talker.codec_eos_token_id),
        speakers=in_lower_case(talker.speaker_id, "config.json: talker_config.speaker_id"),
        max_model_len=talker.text_config.max_position_embeddings,
        depth=depth_of(talker.text_config, depth),
        heard=thinker.audio_token_id,
        seen=(thinker.image_token_id, thinker.video_token_id),
    )
