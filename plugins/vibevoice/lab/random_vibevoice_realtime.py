"""Randomly initialised VibeVoice Realtime releases in the authors' layout: models, tokenizer and voices.

    python -m plugins.vibevoice.lab.random_vibevoice_realtime FOLDER [KIND]

The kind `published` has the published sizes; `small` (the default) and `deep` are small. One voice is a file as the
authors publish it, the other one a safetensors file.
"""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from stretto_vibevoice.codec import TokenizerConfig, codec_shapes, published_name
from stretto_vibevoice.vibevoice.convert import authors_name, network_from_authors

NUM_IDS = 264
NUM_NUMBERS = 8
SCALE = 0.1962
OFFSET = -0.0493
VOICES = {"en-Ann_woman": (7, 15), "en-Bob_man": (4, 21)}  # rows of the text and of the speech model
PICKLED = "en-Ann_woman"
KINDS = ("small", "deep")
# How Qwen2.5's tokenizer splits a text: a line end belongs to the punctuation before it.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": NUM_IDS,
}
SIZES = {  # of the language models, and the number of layers of the speech model
    "small": ({"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}, (4, 2), 2),
    "deep": ({"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 5}, (6, 2), 3),
    "published": ({"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}, (14, 2), 20),
}
END_BIAS = {"small": -2.05, "deep": -2.35, "published": -2.0}  # of the classifier, so that replies end
ACOUSTIC: dict[str, Any] = {
    "causal": True,
    "channels": 1,
    "conv_bias": True,
    "conv_norm": "none",
    "decoder_depths": None,
    "disable_last_norm": True,
    "fix_std": 0.5,
    "layer_scale_init_value": 1e-6,
    "layernorm": "RMSNorm",
    "layernorm_elementwise_affine": True,
    "layernorm_eps": 1e-5,
    "mixer_layer": "depthwise_conv",
    "model_type": "vibevoice_acoustic_tokenizer",
    "pad_mode": "constant",
    "std_dist_type": "gaussian",
}


def config(kind: str = "small") -> dict[str, Any]:
    """Return the release's config.json."""
    sizes, (heads, kv_heads), num_speech_layers = SIZES[kind]
    is_small = kind != "published"
    ratios, filters = ([20, 8, 5, 4], 2) if is_small else ([8, 5, 5, 4, 2, 2], 32)
    numbers = NUM_NUMBERS if is_small else 64
    vocabulary = {} if is_small else {"vocab_size": 151936, "max_position_embeddings": 8192}
    width = sizes["hidden_size"]
    return {
        "acoustic_vae_dim": numbers,
        "acoustic_tokenizer_config": ACOUSTIC
        | {
            "decoder_n_filters": filters,
            "decoder_ratios": ratios,
            "encoder_depths": "1-1-1-1-2" if is_small else "3-3-3-3-3-3-8",
            "encoder_n_filters": filters,
            "encoder_ratios": ratios,
            "vae_dim": numbers,
        },
        "architectures": ["VibeVoiceStreamingForConditionalGenerationInference"],
        "decoder_config": TEXT | sizes | {"num_attention_heads": heads, "num_key_value_heads": kv_heads} | vocabulary,
        "diffusion_head_config": {
            "ddpm_batch_mul": 4,
            "ddpm_beta_schedule": "cosine",
            "ddpm_num_inference_steps": 20,
            "ddpm_num_steps": 1000,
            "diffusion_type": "ddpm",
            "head_ffn_ratio": 3.0,
            "head_layers": 2 if is_small else 4,
            "hidden_size": width,
            "latent_size": numbers,
            "model_type": "vibevoice_diffusion_head",
            "prediction_type": "v_prediction",
            "rms_norm_eps": 1e-5,
            "speech_vae_dim": numbers,
        },
        "model_type": "vibevoice_streaming",
        "torch_dtype": "bfloat16",
        "tts_backbone_num_hidden_layers": num_speech_layers,
    }


def shapes(kind: str = "small") -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape."""
    record = config(kind)
    text = record["decoder_config"]
    head = record["diffusion_head_config"]
    numbers = record["acoustic_vae_dim"]
    width = text["hidden_size"]
    inner = text["intermediate_size"]
    num_speech = record["tts_backbone_num_hidden_layers"]
    kv_width = width // text["num_attention_heads"] * text["num_key_value_heads"]
    wide = int(head["head_ffn_ratio"] * width)
    found: dict[str, tuple[int, ...]] = {
        "model.language_model.embed_tokens.weight": (text["vocab_size"], width),
        "model.tts_language_model.embed_tokens.weight": (text["vocab_size"], width),  # not used
        "model.tts_language_model.norm.weight": (width,),
        "model.tts_input_types.weight": (2, width),
        "model.acoustic_connector.norm.weight": (width,),
        "model.speech_scaling_factor": (),
        "model.speech_bias_factor": (),
        "model.prediction_head.noisy_images_proj.weight": (width, numbers),
        "model.prediction_head.cond_proj.weight": (width, width),
        "model.prediction_head.t_embedder.mlp.0.weight": (width, 256),
        "model.prediction_head.t_embedder.mlp.2.weight": (width, width),
        "model.prediction_head.final_layer.linear.weight": (numbers, width),
        "model.prediction_head.final_layer.adaLN_modulation.1.weight": (2 * width, width),
    }
    for name, rows, columns in (
        ("model.acoustic_connector.fc1", width, numbers),
        ("model.acoustic_connector.fc2", width, width),
        ("tts_eos_classifier.fc1", width, width),
        ("tts_eos_classifier.fc2", 1, width),
    ):
        found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    stacks = ("language_model", text["num_hidden_layers"] - num_speech), ("tts_language_model", num_speech)
    for stack, number in stacks:
        for index in range(number):
            name = f"model.{stack}.layers.{index}."
            for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
                found |= {f"{name}self_attn.{part}_proj.weight": (rows, width)}
                found |= {f"{name}self_attn.{part}_proj.bias": (rows,)}
            found |= {f"{name}self_attn.o_proj.weight": (width, width)}
            found |= {f"{name}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
            found |= {f"{name}mlp.down_proj.weight": (width, inner)}
            found |= {f"{name}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    for index in range(head["head_layers"]):
        name = f"model.prediction_head.layers.{index}."
        found |= {f"{name}norm.weight": (width,), f"{name}adaLN_modulation.1.weight": (3 * width, width)}
        found |= {f"{name}ffn.{part}_proj.weight": (wide, width) for part in ("gate", "up")}
        found |= {f"{name}ffn.down_proj.weight": (width, wide)}
    codec = TokenizerConfig.from_record(network_from_authors(record, "acoustic_tokenizer_config"))
    for own, shape in codec_shapes(codec, has_encoder=False).items():
        found[authors_name(f"model.audio_tower.{published_name(own)}")] = shape
    return found


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a random tensor that depends only on its name and shape."""
    random = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if "gamma" in name:
        return 0.5 + 0.1 * random
    if "norm" in name:
        return 1 + 0.1 * random.clamp(-2, 2)
    if len(shape) == 1:
        return 0.05 * random
    if "embed_tokens" in name or "input_types" in name:
        return 0.5 * random
    scale = 0.3 if "connector.fc2" in name or "final_layer.linear" in name else 0.8  # differences shall not grow
    return scale * random * torch.Size(shape[1:]).numel() ** -0.5


def tensors(kind: str = "small") -> dict[str, Tensor]:
    """Return the weights of a release."""
    found = {name: tensor(name, shape) for name, shape in shapes(kind).items()}
    found["model.speech_scaling_factor"] = torch.tensor(SCALE)
    found["model.speech_bias_factor"] = torch.tensor(OFFSET)
    found["tts_eos_classifier.fc2.weight"] *= 3
    found["tts_eos_classifier.fc2.bias"] = torch.tensor([END_BIAS[kind]])
    return found


def voice(name: str, kind: str = "small") -> dict[str, Tensor]:
    """Return the tensors of a voice, with the names that they have in a safetensors file."""
    text = config(kind)["decoder_config"]
    num_speech = config(kind)["tts_backbone_num_hidden_layers"]
    heads = text["num_key_value_heads"]
    size = text["hidden_size"] // text["num_attention_heads"]
    num_text, (num_text_rows, num_rows) = text["num_hidden_layers"] - num_speech, VOICES[name]
    found: dict[str, Tensor] = {}
    parts = (
        ("lm", num_text, num_text_rows, name),
        ("tts_lm", num_speech, num_rows, name),
        ("neg_lm", num_text, 1, "all"),
        ("neg_tts_lm", num_speech, 1, "all"),
    )
    for part, layers, rows, of in parts:
        found[f"{part}_hidden"] = torch.randn(
            1, rows, text["hidden_size"], generator=torch.Generator().manual_seed(crc32(f"{of}.{part}".encode()))
        )
        for index in range(layers):
            for kind_of in ("key", "value"):
                seed = crc32(f"{of}.{part}.{kind_of}.{index}".encode())
                values = torch.randn(1, heads, rows, size, generator=torch.Generator().manual_seed(seed))
                found[f"{part}_{kind_of}_{index}"] = 0.7 * values
    return found


def inputs() -> dict[str, Tensor]:
    """Return all random numbers of the small releases and their voices by name."""
    found = {f"{kind}.{name}": values for kind in KINDS for name, values in tensors(kind).items()}
    voices = {(kind, name): voice(name, kind) for kind in KINDS for name in VOICES}
    return found | {
        f"{kind}.{name}.{each}": values for (kind, name), of in voices.items() for each, values in of.items()
    }


class Output(dict[str, Any]):
    """Pickled as transformers' `BaseModelOutputWithPast`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Output, (*self.values(), None, None), dict(self), None, iter(self.items())


class Cache:
    """Pickled as transformers' `DynamicCache` of version 4.51."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]):
        self._seen_tokens = keys[0].shape[2]
        self.key_cache = keys
        self.value_cache = values


NAMES = {
    Output: "transformers.modeling_outputs\nBaseModelOutputWithPast\n",
    Cache: "transformers.cache_utils\nDynamicCache\n",
}


PythonPickler: Any = pickle._Pickler


class Pickler(PythonPickler):
    """Writes the classes of this module under their names in transformers."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a reference to a class or function."""
        if obj not in NAMES:
            super().save_global(obj, name)
            return
        self.write(pickle.GLOBAL + NAMES[obj].encode())
        self.memoize(obj)


def save_voice(path: Path, found: dict[str, Tensor]) -> None:
    """Write a voice as the authors publish it, in bfloat16."""

    def layers(part: str, kind: str) -> Iterator[Tensor]:
        index = 0
        while (name := f"{part}_{kind}_{index}") in found:
            yield found[name]
            index += 1

    outputs = {
        part: Output(
            last_hidden_state=found[f"{part}_hidden"],
            past_key_values=Cache([*layers(part, "key")], [*layers(part, "value")]),
        )
        for part in ("lm", "tts_lm", "neg_lm", "neg_tts_lm")
    }
    torch.save(outputs, path, pickle_module=SimpleNamespace(Pickler=Pickler, __name__="pickle"), pickle_protocol=2)


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer whose words keep a line end that follows them, as those of Qwen2.5 do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {".\u010a": 256}
    made = Tokenizer(models.BPE(vocabulary, [(".", "\u010a")]))
    by_word = pre_tokenizers.Split(Regex(WORDS), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([by_word, plain])
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    made.save(str(folder / "tokenizer.json"))


def write_release(folder: Path, kind: str = "small") -> Path:
    """Write a release and return its folder."""
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(kind), indent=1))
    dtype = torch.bfloat16 if kind == "published" else torch.float32
    save_file({name: values.to(dtype) for name, values in tensors(kind).items()}, folder / "model.safetensors")
    write_tokenizer(folder)
    for name in VOICES:
        found = voice(name, kind)
        if name == PICKLED:
            save_voice(folder / "voices" / f"{name}.pt", found)
        else:
            save_file(found, folder / "voices" / f"{name}.safetensors")
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"written": str(write_release(Path(sys.argv[1]), (*sys.argv[2:], "small")[0]))}))
