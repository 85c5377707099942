"""Small randomly initialised Higgs Audio v3 releases in the published layout, identical on every machine.

    python -m plugins.higgs_audio.lab.random_higgs_audio_v3 FOLDER [KIND]

`small`, the default, has the published codebooks. `narrow` has four codebooks of 16 codes and other dimensions. The
codec's parameters are in `codec_config` of config.json, because the codec is not of the published size.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import HiggsAudioV2TokenizerConfig

from lab.releases.random_codecs import acoustic_config, hubert_config, randomize
from lab.releases.random_espnet import write_tokenizer
from lab.releases.random_qwen3_tts import layer_shapes
from lab.releases.random_tensors import INDEX, random_tensors
from stretto_higgs_audio.codec import HiggsModel
from stretto_higgs_audio.higgs_audio_v3.convert import CODEC, CODES, RATIOS, TEXTS
from stretto_higgs_audio.higgs_audio_v3.family import MARKERS, NUM_MARKS

# the tokenizer leaves the last four words unused
NUM_TEXT_IDS = 360
NUM_WORDS = 310
TAGS = ("<|emotion:elation|>", "<|style:whispering|>", "<|sfx:cough|>", "<|prosody:pause|>")
# In the order of the published ids, between tokens that occur in no prompt; `<|endoftext|>` is among the words' ids.
ADDED = ("<|tts|>", "<|streaming_tts|>", "<|audio|>", "<|text|>", "<|ref_audio|>", "<|ref_text|>", *TAGS, "<|chatml|>")
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_codebooks": 8,
    "num_codes": 1024,
    "seed": 5,
    "end_scale": 2.0,
}
NARROW = SMALL | {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_codebooks": 4,
    "num_codes": 16,
    "seed": 7,
    "end_scale": 1.0,
}
KINDS = {"small": SMALL, "narrow": NARROW}
NUMBERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def config(kind: str = "small") -> dict[str, Any]:
    """Return config.json of a release, with the keys that the published one has."""
    sizes = KINDS[kind]
    return {
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "model_type": "higgs_multimodal_qwen3",
        "audio_token_id": -100,
        "ignore_index": -100,
        "mel_per_sample": 8,
        "audio_encoder_config": {
            "model_type": "higgs_audio_encoder",
            "encoder_type": "discrete",
            "num_codebooks": sizes["num_codebooks"],
            "vocab_size": sizes["num_codes"] + NUM_MARKS,
            "out_dim": sizes["hidden_size"],
            "tie_word_embeddings": True,
            "use_delay_pattern": True,
        },
        "text_config": {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "dtype": "float32",
            **{name: sizes[name] for name in (*NUMBERS, "head_dim")},
            "vocab_size": NUM_TEXT_IDS,
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
            "tie_word_embeddings": True,
        },
        "codec_config": codec_config(kind).to_diff_dict(),  # the keys that a saved config has
    }


def codec_config(kind: str = "small") -> HiggsAudioV2TokenizerConfig:
    """Return the parameters of a narrow codec with the codebooks of a release."""
    sizes = KINDS[kind]
    bits = int(np.log2(sizes["num_codes"]))
    semantic = hubert_config(is_narrow=True).to_dict() | {"mask_time_prob": 0.0}
    return HiggsAudioV2TokenizerConfig(
        acoustic_model_config=acoustic_config(RATIOS, is_narrow=True).to_dict(),
        semantic_model_config=semantic,
        target_bandwidths=[25 * bits * sizes["num_codebooks"] / 1000],
        codebook_size=sizes["num_codes"],
        codebook_dim=8,
    )


def language_model(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the tensors of the language model by published name, without the copies of its tables."""
    sizes = KINDS[kind]
    width = sizes["hidden_size"]
    size = sizes["num_codes"] + NUM_MARKS
    layers = layer_shapes("body.", {name: sizes[name] for name in (*NUMBERS, "head_dim")})
    tensors = random_tensors(
        {**layers, TEXTS: (NUM_TEXT_IDS, width), CODES: (size * sizes["num_codebooks"], width)}, sizes["seed"]
    )
    tensors[CODES][size - 1] *= sizes["end_scale"]  # of codebook 0, so that some replies end
    return tensors


def tensors(kind: str = "small") -> dict[str, torch.Tensor]:
    """Return all tensors of a release by published name."""
    found = {name: torch.from_numpy(each) for name, each in language_model(kind).items()}
    torch.manual_seed(0)  # for weights that `randomize` does not set
    codec = randomize(HiggsModel(codec_config(kind)), 0)
    found |= {f"{CODEC}{name}": each for name, each in codec.state_dict().items()}
    found[f"{CODEC}semantic_model.masked_spec_embed"] = torch.ones(codec.config.semantic_model_config.hidden_size)
    heads = {"tied.head.text_head.weight": TEXTS, "tied.head.modality_heads.0.weight": CODES}
    return found | {name: found[table].clone() for name, table in heads.items()}


def added_tokens() -> dict[str, int]:
    """Return the ids of the tokens that are added to the words."""
    return {name: NUM_WORDS - 4 + index for index, name in enumerate(ADDED)}


def write_release(folder: Path, kind: str = "small", **changes: Mapping[str, Any]) -> Path:
    """Write a release to a folder and return the folder; `changes` replace parts of config.json."""
    write_tokenizer(folder, NUM_WORDS)
    path = folder / "tokenizer.json"
    record = json.loads(path.read_text())
    assert not {*MARKERS} - {*ADDED} - {each["content"] for each in record["added_tokens"]}
    like = record["added_tokens"][0]
    record["added_tokens"] += [like | {"id": token_id, "content": name} for name, token_id in added_tokens().items()]
    path.write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps(config(kind) | changes))
    found = tensors(kind)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    listed = dict.fromkeys((name for name in found if not name.startswith("tied.head.")), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), *sys.argv[2:]))
