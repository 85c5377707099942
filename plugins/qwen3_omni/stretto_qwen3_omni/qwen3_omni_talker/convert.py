"""Conversion of the talker in a Qwen3-Omni release: names, shapes and ids as published by Qwen.

The converter of the whole release (`stretto_qwen3_omni/qwen3_omni/convert.py`) calls this one.

https://huggingface.co/Qwen/Qwen3-Omni-30B-A3B-Instruct contains the whole model; the `talker.…` tensors are a tenth of
it. Only the tensors in use are read. They include the thinker's embedding table, because the talker's text table is
computed from it. All hyperparameters come from config.json, because the defaults of the transformers classes belong to
another model. Everything else is as in Qwen3-TTS.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stretto.codecs.qwen3_12hz.code2wav import MODEL_TYPE, Code2Wav, read_shape
from stretto.errors import CheckpointError
from stretto.families.qwen3_tts import convert as qwen3_tts
from stretto.families.qwen3_tts.convert import NUM_SUPPRESSED, Numbers, depth_spec, sections, text_ids
from stretto.families.qwen3_tts.family import CodecIds
from stretto.family.audio_format import KEY
from stretto.family.conversion import Contents, Converted, Network, Release, Tokenizer, common_record, prefixed
from stretto.family.image_format import KEY as IMAGE_KEY
from stretto.weights.backbones import with_older_keys
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_qwen3_omni.qwen3_omni_talker.family import NAME, TalkerVocabulary

CODEC = "code2wav."
# The other keys concern the thinker.
GENERATION = prefixed("talker_", "audio") | {"talker_repetition_penalty": ("repetition_penalty",)}
EMBEDDINGS = "thinker.model.embed_tokens.weight"
PROJECTION = "talker.hidden_projection."
CODEC_IDS = ("pad", "bos", "nothink", "think_bos", "think_eos")
MOE_NUMBERS = ("moe_intermediate_size", "num_experts", "num_experts_per_tok", "max_position_embeddings")
MAX_EXPERTS = 1024  # in a layer; the published models have 128


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    numbers = Numbers(contents.config)
    known = vocabulary(numbers, contents.tokenizer)
    talker = numbers.part("talker_config")
    text = talker.part("text_config")
    record = {
        # experts in every layer, because the transformers class ignores config.json
        **backbone_record(text),
        "shared_expert_intermediate_size": text.number("shared_expert_intermediate_size"),
        **common_record(NAME, known, known.layout.vocab_size, contents),
        KEY: {
            "model_type": "thinker_states",
            "hidden_size": talker.number("thinker_hidden_size"),
            "intermediate_size": text.number("intermediate_size"),
        },
        IMAGE_KEY: {
            "model_type": "thinker_image_states",
            "feature_size": talker.number("thinker_hidden_size"),
            "frames_per_row": 1,
            "num_levels": 0,
            "sections": sections(text),
        },
    }
    shapes = published_shapes(numbers, known)
    parts = plan(known, shapes, contents.tensors)
    folded = tuple(name for name in shapes if name not in parts)
    return Converted(record, parts, ("thinker.",), folded, (code2wav(numbers, known),))


def backbone_record(numbers: Numbers) -> dict[str, Any]:
    """Return the hyperparameters for config.json of a Qwen3-MoE backbone with experts in every layer."""
    return {
        "architectures": ["StrettoQwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **{name: numbers.number(name) for name in (*qwen3_tts.LAYER_NUMBERS, *MOE_NUMBERS)},
        "norm_topk_prob": numbers.flag("norm_topk_prob"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": False,
    }


def code2wav(numbers: Numbers, known: TalkerVocabulary) -> Network:
    """Return the codec, to be written to a separate folder."""
    record = with_older_keys(numbers.entry("code2wav_config", dict))
    try:
        shape = read_shape(record)
    except ValueError as error:
        raise CheckpointError(f"config.json: code2wav_config: {error}") from error
    found = (shape.num_quantizers, shape.codebook_size)
    expected = (known.num_codebooks, known.codebook_size)
    if found != expected:
        expectation = f"{expected[0]} codebooks of {expected[1]} codes, the talker's"
        raise CheckpointError(f"config.json: code2wav_config: expected {expectation}, got {found}")
    parts = {f"{CODEC}{name}": Part(name, shape) for name, shape in shapes_of(Code2Wav, shape).items()}
    return Network("codec", {"model_type": MODEL_TYPE, "decoder_config": record}, parts)


def vocabulary(numbers: Numbers, tokenizer: Tokenizer) -> TalkerVocabulary:
    """Return the vocabulary and voices; raise CheckpointError if the model is not supported."""
    numbers.same("model_type", "qwen3_omni_moe")
    talker = numbers.part("talker_config")
    thinker = numbers.part("thinker_config")
    text = talker.part("text_config")
    depth = talker.part("code_predictor_config")
    for part in (text, depth):
        part.same("hidden_act", "silu")
        part.same("attention_bias", False)
    depth.same("hidden_size", text.number("hidden_size"))  # codes are not projected
    num_ids = text.number("vocab_size")
    num_codes = depth.number("vocab_size")
    num_codebooks = talker.number("num_code_groups")
    if num_ids - NUM_SUPPRESSED != num_codes:
        expected = f"talker_config.text_config.vocab_size of {num_codes} codes and {NUM_SUPPRESSED} markers"
        raise CheckpointError(f"config.json: expected {expected}, got {num_ids}")
    if num_codebooks < 3:
        raise CheckpointError(f"config.json: expected talker_config.num_code_groups >= 3, got {num_codebooks}")
    depth.same("num_code_groups", num_codebooks)
    num_text_ids = thinker.part("text_config").number("vocab_size")
    codec = {name: talker.token(f"codec_{name}_id", num_ids) for name in CODEC_IDS}
    return TalkerVocabulary(
        takes_instructions=False,
        num_text_ids=num_text_ids,
        num_codec_ids=num_ids,
        num_codebooks=num_codebooks,
        codebook_size=num_codes,
        text=text_ids(numbers, tokenizer, num_text_ids),
        # The talker lacks the `think` marker, which announces a language in Qwen3-TTS.
        codec=CodecIds(**codec, think=codec["nothink"], eos=talker.token("codec_eos_token_id", num_ids)),
        speakers=talker.tokens("speaker_id", num_ids),
        max_model_len=text.number("max_position_embeddings"),
        depth=depth_spec(text, depth),
        heard=thinker.token("audio_token_id", num_text_ids),
        seen=(thinker.token("image_token_id", num_text_ids), thinker.token("video_token_id", num_text_ids)),
    )


def published_shapes(numbers: Numbers, known: TalkerVocabulary) -> dict[str, tuple[int, ...]]:
    """Map the names of all tensors in use to their shapes."""
    talker = numbers.part("talker_config")
    text = talker.part("text_config")
    thinker_width = talker.number("thinker_hidden_size")
    inner = text.number("intermediate_size")
    width = text.number("hidden_size")
    shapes = {
        EMBEDDINGS: (known.num_text_ids, thinker_width),
        **qwen3_tts.code_shapes(known, width),
        **_projection_shapes(qwen3_tts.TEXT_PROJECTION.removesuffix("linear_fc"), thinker_width, inner, width),
        **_projection_shapes(PROJECTION, thinker_width, inner, width),
        **qwen3_tts.layer_shapes(f"{qwen3_tts.DEPTH}model.", talker.part("code_predictor_config")),
    }
    layers = qwen3_tts.layer_shapes(qwen3_tts.TALKER, text).items()
    shapes |= {name: shape for name, shape in layers if ".mlp." not in name}
    for layer in range(text.number("num_hidden_layers")):
        prefix = f"{qwen3_tts.TALKER}layers.{layer}.mlp."
        width = text.number("hidden_size")
        size = text.number("shared_expert_intermediate_size")
        shapes |= expert_shapes(prefix, text) | projection_shapes(f"{prefix}shared_expert.", width, size)
        shapes[f"{prefix}shared_expert_gate.weight"] = (1, width)
    return shapes


def _projection_shapes(prefix: str, width: int, inner: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{prefix}linear_fc1.weight": (inner, width), f"{prefix}linear_fc2.weight": (hidden, inner)}
    return shapes | {f"{prefix}linear_fc1.bias": (inner,), f"{prefix}linear_fc2.bias": (hidden,)}


def expert_shapes(prefix: str, numbers: Numbers) -> dict[str, tuple[int, ...]]:
    """Map the tensor names of a layer's router and routed experts to their shapes."""
    width, number, size = (numbers.number(name) for name in ("hidden_size", "num_experts", "moe_intermediate_size"))
    if number > MAX_EXPERTS:  # each has names and shapes of its own here
        raise CheckpointError(f"config.json: num_experts: expected at most {MAX_EXPERTS}, got {number}")
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}gate.weight": (number, width)}
    for expert in range(number):
        shapes |= projection_shapes(f"{prefix}experts.{expert}.", width, size)
    return shapes


def projection_shapes(prefix: str, width: int, size: int) -> dict[str, tuple[int, ...]]:
    """Map the tensor names of one expert of this size to their shapes."""
    return {
        f"{prefix}gate_proj.weight": (size, width),
        f"{prefix}up_proj.weight": (size, width),
        f"{prefix}down_proj.weight": (width, size),
    }


def plan(known: TalkerVocabulary, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of tensors to write, which is the Qwen3-TTS plan plus the projection of the thinker's states."""
    parts = qwen3_tts.plan(known, {**shapes, qwen3_tts.EMBEDDINGS: shapes[EMBEDDINGS]}, tensors)
    parts[EMBEDDINGS] = parts.pop(qwen3_tts.EMBEDDINGS)
    for name, shape in shapes.items():
        if name.startswith(PROJECTION):
            parts[name] = Part(f"adaptor.{name.removeprefix(PROJECTION)}", shape)
    return parts
