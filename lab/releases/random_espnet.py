"""Small randomly initialised checkpoints in ESPnet's published layouts: Bagpiper, and OpusLM with its codec.

    bagpiper   model.pt {"module": …}, config.yaml, tokenizer/ (with the backbone's config.json), codec/ (X-codec)
    opuslm     model.pth or 2epoch.pth, config.yaml, tokenizer/, backbone/config.json (another repository's)

Weights are so large that the best logit leads by a clear margin. Norm weights vary across channels. Row 0 of the
embedding tables, which old checkpoints use for padding, is not zero.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3OmniMoeAudioEncoderConfig,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from lab.releases.random_codecs import randomize, xcodec
from stretto.families.bagpiper import family as bagpiper
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm import family as opuslm
from stretto.families.opuslm.family import OpusVocabulary

BACKBONES: dict[str, tuple[type, type]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}


@dataclass(frozen=True)
class Size:
    """Size of the backbone."""

    hidden: int = 64
    layers: int = 2


SMALL = Size()
TAG = "small/{}"  # in place of a public repository's name
AUDIO_WIDTH = 48
AUDIO_TOWER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 1,  # vLLM's attention on the CPU needs heads of at least 32
    "encoder_ffn_dim": 64,
    "num_mel_bins": 128,
    "output_dim": AUDIO_WIDTH,
    "downsample_hidden_size": 8,
}
STORED_HEADS = 12  # rows of head_emb; the model uses nine of them
SENTENCES = (
    "the birch canoe slid on the smooth planks, and the garden door was open.",
    "glue the sheet to the dark blue background; it is easy to tell the depth of a well.",
    "what do you hear? a man says hello, how are you today? someone answers: i am fine, thank you!",
)


@dataclass(frozen=True)
class Published:
    """Files of one release.

    Attributes:
        codec: Directory of the codec, or None if none has been written yet.
        audio: Configuration of the audio encoder, which a real release takes from another repository.
    """

    model: Path
    config: Path
    tokenizer: Path
    backbone: Path
    codec: Path | None = None
    audio: Path | None = None


def write_tokenizer(folder: Path, size: int, seed_text: tuple[str, ...] = SENTENCES) -> Path:
    """Write a byte-level BPE tokenizer in Hugging Face's layout.

    At most `size` - 4 ids are tokens, so that some stay unused. If `size` is below 280, the tokenizer knows only the
    characters of `seed_text`.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    whole = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 4 - len(special), initial_alphabet=whole if size >= 280 else [], show_progress=False
    )
    tokenizer.train_from_iterator(seed_text, trainer)
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.save_pretrained(folder)
    return folder


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a random tensor scaled by its role.

    Norm weights are near 1, embedding tables and heads are large, and other matrices preserve the magnitude of their
    input.
    """
    if name.endswith(("layernorm.weight", "layer_norm.weight", "norm.weight", "ln_post.weight")):
        return torch.linspace(0.9, 1.1, shape[0])[torch.randperm(shape[0], generator=generator)]
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if "emb" in name:
        return 0.5 * noise
    return noise * (0.3 if "lm_head" in name else 1.5 * noise[0].numel() ** -0.5)


def _tensors(model_class: type, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random tensor for each parameter name of a Hugging Face model."""
    with torch.device("meta"):
        model: nn.Module = model_class(config)
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: random_tensor(name, shape, generator) for name, shape in names.items()}


def backbone_config(backbone: str, vocab_size: int, size: Size = SMALL) -> Any:
    """Return the config of the backbone's own repository. Only Qwen3 shares keys between heads."""
    is_qwen = backbone == "qwen3"
    hidden = size.hidden
    record = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4 if is_qwen else hidden // 32,
        "num_key_value_heads": 2 if is_qwen else hidden // 32,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5 if backbone == "llama" else 1e-6,
        "rope_theta": {"qwen3": 1e6, "llama": 130000.0, "olmo2": 5e5}[backbone],
        "tie_word_embeddings": backbone == "llama",  # as in SmolLM2; OpusLM has a separate head
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    return BACKBONES[backbone][0](**record, architectures=[BACKBONES[backbone][1].__name__])


def write_bagpiper(
    folder: Path, vocabulary: BagpiperVocabulary, seed: int = 0, dtype: str = "float32", size: Size = SMALL
) -> Published:
    """Write a Bagpiper release: backbone, stream embeddings, audio encoder, adaptor, codec copy, loss weights."""
    generator = torch.Generator().manual_seed(seed)
    config = backbone_config("qwen3", vocabulary.vocab_size, size)
    module = _tensors(Qwen3ForCausalLM, config, generator)
    hidden = config.hidden_size
    streams = bagpiper.NUM_STREAMS
    module["stream_emb.weight"] = 0.5 * torch.randn(streams, hidden, generator=generator)
    module["adaptor.continuous_audio.weight"] = 0.2 * torch.randn(
        hidden, AUDIO_TOWER["output_dim"], generator=generator
    )
    module["adaptor.continuous_audio.bias"] = 0.1 * torch.randn(hidden, generator=generator)
    encoder = Qwen3OmniMoeAudioEncoderConfig.from_dict(AUDIO_TOWER)
    tower = _tensors(Qwen3OmniMoeAudioEncoder, encoder, generator)
    prefix = "multimodal_io_dict.continuous_audio.model.audio_tower."
    module |= {f"{prefix}{name}": tensor for name, tensor in tower.items()}
    codec = randomize(xcodec(is_narrow=True, codebook_size=vocabulary.codebook_size), seed)
    prefix = "multimodal_io_dict.discrete_audio.codec_model."
    module |= {f"{prefix}{name}": tensor.clone() for name, tensor in codec.state_dict().items()}
    names = ("model.pt", "config.yaml", "tokenizer", "tokenizer", "codec", "audio")
    published = Published(*[folder / name for name in names])
    num_text_ids = vocabulary.text[1] - vocabulary.text[0]
    write_tokenizer(published.tokenizer, num_text_ids)
    config.vocab_size = num_text_ids  # the public backbone knows only text ids
    config.save_pretrained(published.tokenizer)
    codec.save_pretrained(folder / "codec")
    encoder.save_pretrained(folder / "audio")
    module = {name: tensor.to(getattr(torch, dtype)) for name, tensor in module.items()}
    module["vocab_weight"] = torch.ones(vocabulary.vocab_size)
    torch.save({"module": module}, published.model)
    published.config.write_text(yaml.safe_dump(_bagpiper_yaml(dtype), sort_keys=False))
    return published


def _bagpiper_yaml(dtype: str) -> dict[str, Any]:
    """Return the entries of train_stage3_qwen3_base.yaml that describe the model."""
    io = {
        "text": {"tokenizer_name": TAG.format("qwen3")},
        "discrete_audio": {
            "codec_choice": "Xcodec",
            "codec_hf_model_tag": TAG.format("xcodec"),
            "ssl_choice": None,
            "ssl_hf_model_tag": None,
            "delay_interleave": True,
            "stream_weights": [0.125] * bagpiper.NUM_STREAMS,
        },
        "continuous_audio": {
            "encoder_choice": "huggingface",
            "encoder_hf_model_tag": TAG.format("qwen3-omni"),
            "dtype": dtype,
        },
    }
    model = {"model_choice": "parallel", "model_hf_tag": TAG.format("qwen3"), "model_conf": {"dtype": dtype}}
    preprocessor = {"audio_input": "continuous_audio", "audio_output": "discrete_audio", "loss_region": "assistant"}
    return {"job_type": "speechlm", "multimodal_io": io, "model": model, "preprocessor": preprocessor}


def write_opuslm(
    folder: Path,
    vocabulary: OpusVocabulary,
    backbone: str = "olmo2",
    is_dialogue: bool = False,
    seed: int = 0,
    size: Size = SMALL,
) -> Published:
    """Write an OpusLM release, or a dialogue release, which also contains a reference model and a criterion."""
    generator = torch.Generator().manual_seed(seed)
    config = backbone_config(backbone, vocabulary.vocab_size, size)
    untied = {**config.to_dict(), "tie_word_embeddings": False}
    plain = _tensors(BACKBONES[backbone][1], type(config).from_dict(untied), generator)
    tensors = {
        "corelm.emb.weight": plain.pop("model.embed_tokens.weight"),
        "corelm.lm_head.weight": plain.pop("lm_head.weight"),
        "corelm.head_emb.weight": 0.5 * torch.randn(STORED_HEADS, config.hidden_size, generator=generator),
    }
    tensors |= {f"corelm.decoders.{name}": tensor for name, tensor in plain.items()}
    tensors["criterion.lm_head.weight"] = tensors["corelm.lm_head.weight"]
    if is_dialogue:
        tensors["reflm.corelm.emb.weight"] = torch.zeros(2, 2)
        tensors["corelm.decoders.lm_head.weight"] = torch.zeros(2, 2)
    name = "2epoch.pth" if is_dialogue else "model.pth"
    published = Published(*[folder / name for name in (name, "config.yaml", "tokenizer", "backbone")])
    write_tokenizer(published.tokenizer, vocabulary.text[1] - vocabulary.text[0])
    config.vocab_size = vocabulary.text[1] - vocabulary.text[0]
    config.save_pretrained(published.backbone)
    torch.save(tensors, published.model)
    record = _opuslm_yaml(vocabulary, published.tokenizer, backbone, is_dialogue)
    published.config.write_text(yaml.safe_dump(record, sort_keys=False))
    return published


def _opuslm_yaml(vocabulary: OpusVocabulary, tokenizer: Path, backbone: str, is_dialogue: bool) -> dict[str, Any]:
    """Return the entries of config.yaml that describe the model."""
    return {
        "token_list": token_list(vocabulary, tokenizer),
        "token_bias": {
            "special_token": [0, vocabulary.ssl[0]],
            "ssl": [*vocabulary.ssl],
            "codec": [vocabulary.codec, vocabulary.codec + (opuslm.NUM_STREAMS - 1) * vocabulary.codebook_size],
            "text_bpe": [*vocabulary.text],
        },
        "subword_choice": "huggingface",
        "subword_model": TAG.format("tokenizer"),
        "codec_token_per_frame": opuslm.NUM_STREAMS,
        "codec_token_in_use": opuslm.NUM_STREAMS,
        "speaker_prompt_length": opuslm.VOICE_FRAMES,
        "corelm": "ar_delay",
        "corelm_conf": {},
        "transformer": "huggingface",
        "transformer_conf": {"hf_model_tag": TAG.format(backbone), "n_ctx": 1024},
        "model": "dpo" if is_dialogue else "espnet",
        "train_dtype": "float32",
        "ds_config_dict": {"bf16": {"enabled": False}},
    }


def token_list(vocabulary: OpusVocabulary, tokenizer: Path) -> list[str]:
    """Return ESPnet's names of all ids (espnet2/speechlm/definitions.py), with the tokenizer's names last."""
    named = {0: "<pad>", 1: "<unk>", 2: "<blank>", 3: "<space>", 4: "<continuous_placeholder>", 5: "<sos/eos>"}
    named |= {6: "<local_sos/eos>", 7: "<unkown_task_identifer>", 8: "<system_prompt>", 9: "<user_input>"}
    named |= {10: "<assistant_output>", 11: "<eou>"}
    named |= {token_id: f"<{name}_start/end>" for name, token_id in vocabulary.modalities.items()}
    named |= {token_id: f"<{name}_task>" for name, token_id in vocabulary.tasks.items()}
    names = [named.get(token_id, f"<unused_token_{token_id}>") for token_id in range(vocabulary.ssl[0])]
    names += [f"<ssl_code{index + 1}>" for index in range(vocabulary.ssl[1] - vocabulary.ssl[0])]
    for codebook in range(opuslm.NUM_STREAMS - 1):
        names += [f"<codec_layer{codebook}_code{code}>" for code in range(vocabulary.codebook_size)]
    return names + tokenizer_words(tokenizer, len(names), vocabulary.vocab_size)


def tokenizer_words(tokenizer: Path, first: int, stop: int) -> list[str]:
    """Return names for the ids from `first` to `stop`: the tokenizer's tokens, then unused ids."""
    record = json.loads((tokenizer / "tokenizer.json").read_text())
    words = record["model"]["vocab"] | {token["content"]: token["id"] for token in record["added_tokens"]}
    found = sorted(words, key=lambda word: words[word])
    return found + [f"<unused_text_bpe_{token_id}>" for token_id in range(first + len(found), stop)]


RATIOS = (8, 5, 4, 2)
BLOCKS = 3
BASE = 2
LATENT = 16
CODEBOOKS = 3
SIZE = 32
CONFIG: dict[str, Any] = {
    "codec": "dac",
    "codec_conf": {
        "sampling_rate": 16000,
        "generator_params": {
            "hidden_dim": LATENT,
            "codebook_dim": LATENT,
            "encdec_n_filters": BASE,
            "encdec_n_residual_layers": BLOCKS,
            "encdec_ratios": list(RATIOS),
            "encdec_activation": "Snake",
            "encdec_norm": "weight_norm",
            "encdec_causal": False,
            "quantizer_n_q": CODEBOOKS,
            "quantizer_bins": SIZE,
            "quantizer_target_bandwidth": [0.25, 0.75],  # 5 bits at 50 Hz are 0.25 kb/s per codebook
        },
    },
}


def published_tensors(seed: int = 0, codebooks: int = CODEBOOKS, size: int = SIZE) -> dict[str, Tensor]:
    """Return random tensors with an ESPnet checkpoint's names and shapes, large enough for distinct samples."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {"codec.discriminator.unused": torch.zeros(1)}

    def convolution(name: str, kind: str, shape: tuple[int, int, int], gain: float = 1.0) -> None:
        stem = f"codec.generator.{name}.{kind}.{kind}"
        tensors[f"{stem}.parametrizations.weight.original0"] = gain * (0.8 + 0.4 * torch.rand(shape[0], 1, 1))
        tensors[f"{stem}.parametrizations.weight.original1"] = torch.randn(shape)
        tensors[f"{stem}.bias"] = 0.1 * torch.randn(shape[0] if kind == "conv" else shape[1])

    def residual(name: str, width: int) -> None:
        convolution(f"{name}.block.1", "conv", (width // 2, width, 7), 0.5)
        convolution(f"{name}.block.3", "conv", (width, width // 2, 1), 0.5)
        convolution(f"{name}.shortcut", "conv", (width, width, 1), 0.7)

    def lstm(name: str, width: int) -> None:
        for layer in range(2):
            for part in ("ih", "hh"):
                weight = 1.5 * torch.randn(4 * width, width) / math.sqrt(width)
                tensors[f"codec.generator.{name}.lstm.weight_{part}_l{layer}"] = weight
                tensors[f"codec.generator.{name}.lstm.bias_{part}_l{layer}"] = 0.1 * torch.randn(4 * width)

    width = BASE << len(RATIOS)
    number = 2
    convolution("decoder.model.0", "conv", (width, LATENT, 7))
    lstm("decoder.model.1", width)
    for ratio in RATIOS:
        convolution(f"decoder.model.{number + 1}", "convtr", (width, width // 2, 2 * ratio))
        width //= 2
        for block in range(BLOCKS):
            residual(f"decoder.model.{number + 2 + block}", width)
        number += 2 + BLOCKS
    convolution(f"decoder.model.{number + 1}", "conv", (1, width, 7), 0.4)

    convolution("encoder.model.0", "conv", (width, 1, 7))
    number = 1
    for ratio in reversed(RATIOS):
        for block in range(BLOCKS):
            residual(f"encoder.model.{number + block}", width)
        convolution(f"encoder.model.{number + BLOCKS + 1}", "conv", (2 * width, width, 2 * ratio))
        width *= 2
        number += 2 + BLOCKS
    lstm(f"encoder.model.{number}", width)
    convolution(f"encoder.model.{number + 2}", "conv", (LATENT, width, 7))
    for codebook in range(codebooks):
        stem = f"codec.generator.quantizer.vq.layers.{codebook}._codebook"
        table = torch.randn(size, LATENT) / (codebook + 1)
        tensors |= {f"{stem}.embed": table, f"{stem}.embed_avg": table, f"{stem}.inited": torch.ones(1)}
        tensors[f"{stem}.cluster_size"] = torch.ones(size)
    return tensors


def publish(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(tensors, directory / "360epoch.pth")
    return directory


def write_codec(directory: Path, codebook_size: int, seed: int = 0) -> Path:
    """Write OpusLM's codec: eight codebooks at 16 kHz and 50 Hz."""
    codebooks = 8
    conf = CONFIG["codec_conf"]
    bandwidth = math.log2(codebook_size) * 50 * codebooks / 1000 + 0.01
    numbers = {"quantizer_n_q": codebooks, "quantizer_bins": codebook_size, "quantizer_target_bandwidth": [bandwidth]}
    config = {"codec": "dac", "codec_conf": {**conf, "generator_params": conf["generator_params"] | numbers}}
    directory.mkdir(parents=True, exist_ok=True)
    return publish(directory, published_tensors(seed, codebooks, codebook_size), config)
