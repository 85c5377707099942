"""Randomly initialised checkpoints in Chatterbox's published layout (Resemble AI): small or of published size.

English        t3_cfg.safetensors   s3gen.safetensors   ve.safetensors   tokenizer.json   conds.pt   voices/anna.pt
               backbone.json (not part of the published release)
Multilingual   t3_mtl23ls_v3.safetensors   s3gen.pt   ve.pt   grapheme_mtl_merged_expanded_v1.json   Cangjie5_TC.json
               conds.pt   voices/anna.pt   backbone.json (not part of the published release)
Turbo, Nano    t3_turbo_v1.safetensors or t3_nano_v1.safetensors   s3gen_meanflow.safetensors   ve.safetensors
               conds.pt   voices/anna.pt   vocab.json   merges.txt   added_tokens.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.releases.random_tensors import drawn_by_name, random_tensors
from plugins.chatterbox.lab import random_s3gen
from stretto.convert.command import main
from stretto.family.layers import gpt2_layer
from stretto.family.text import BYTE_OF
from stretto_chatterbox.convert import (
    LLAMA_520M,
    MULTILINGUAL_TOKENIZER,
    NUM_MULTILINGUAL_IDS,
    published_shapes,
)
from stretto_chatterbox.family import (
    END_OF_SPEECH,
    END_OF_TEXT,
    SPACE,
    START_OF_SPEECH,
    START_OF_TEXT,
    ChatterboxVocabulary,
)
from stretto_chatterbox.languages import CANGJIE_FILE, LANGUAGES
from stretto_chatterbox.release import (
    FILE,
    HEAD,
    HEAD_BIAS,
    MULTILINGUAL_FILE,
    MULTILINGUAL_VOICE_ENCODER,
    TURBO_FILE,
    VOICE_ENCODER_FILE,
)
from stretto_chatterbox.voices import RecordingEncoder

SMALL: dict[str, Any] = {
    **LLAMA_520M,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# A voice has 8 rows instead of 34; the number of ids is as published.
KNOWN = ChatterboxVocabulary(num_text_positions=66, num_speech_positions=260, num_voice_rows=8, max_model_len=256)
MULTILINGUAL = replace(
    KNOWN,
    num_text_ids=NUM_MULTILINGUAL_IDS,
    num_text_positions=514,
    languages=tuple(LANGUAGES),
    has_cangjie=True,
)
T3_FILE = "t3_cfg.safetensors"
MULTILINGUAL_T3_FILE = "t3_mtl23ls_v3.safetensors"
VOICES = {"default": 3, "anna": 4}  # seeds
PUBLISHED_HEARING = (1280, 6)  # width and layers of the tokenizer
ENDING = 3.0  # factor on the end token's logit, so that some replies end by themselves
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.!?'\"-"
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("o", "u"), ("e", "r"), ("a", "n"))


def tensors(known: ChatterboxVocabulary = KNOWN, seed: int = 1) -> dict[str, np.ndarray]:
    """Return a dict from published tensor name to random T3 tensor."""
    made = random_tensors(published_shapes(SMALL, known), seed)
    made[HEAD][END_OF_SPEECH] *= ENDING
    return made


def voice(seed: int, num_codes: int = 15, num_tokens: int | None = None) -> dict[str, Any]:
    """Return the contents of a voice as the authors' `Conditionals.save` writes it.

    Args:
        seed: Seed of all numbers.
        num_codes: Number of codes for T3.
        num_tokens: Number of codes for S3Gen; None for a few, with an odd number of mel frames for some seeds.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    t3 = {
        "speaker_emb": torch.from_numpy(random.standard_normal((1, 256)).astype(np.float32)),
        "clap_emb": None,
        "cond_prompt_speech_tokens": torch.from_numpy(random.integers(6561, size=(1, num_codes))),
        "cond_prompt_speech_emb": None,
        "emotion_adv": 0.5 * torch.ones(1, 1, 1),
    }
    is_odd = num_tokens is None and seed % 2 == 0
    return {"t3": t3, "gen": random_s3gen.conditions(seed, num_tokens or 4 + seed, is_odd)}


def recording_encoder(width: int = 128, num_layers: int = 2) -> dict[str, torch.Tensor]:
    """Return random tensors for the networks that encode recordings.

    Each tensor depends only on its name and shape. Names are as published; names from `ve.safetensors` get the prefix
    `ve.`. Only the tokenizer is smaller than published, where `width` is 1280 and `num_layers` is 6.
    """
    return dict(_recording_encoder(width, num_layers))


@lru_cache(1)
def _recording_encoder(width: int, num_layers: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {
            name: tuple(each.shape) for name, each in RecordingEncoder(width, num_layers, 192, 80).state_dict().items()
        }
    shapes |= {"ve.similarity_weight": (1,), "ve.similarity_bias": (1,)}
    found = {name: torch.from_numpy(drawn_by_name(name, shape)) for name, shape in shapes.items()}
    found["tokenizer._mel_filters"] = torch.ones(2, 3)
    return found | {"speaker_encoder.head.bn1.num_batches_tracked": torch.tensor(1)}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer for letters and some letter pairs, with the published marker ids.

    It splits text at spaces and punctuation.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    spelled = ["[STOP]", "[UNK]", SPACE, *LETTERS, *("".join(pair) for pair in MERGES)]
    ids = {token: token_id for token_id, token in enumerate(spelled)} | {"[START]": START_OF_TEXT}
    assert ids["[STOP]"] == END_OF_TEXT
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(MERGES), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[STOP]", "[UNK]", SPACE, "[START]"])
    tokenizer.save(str(folder / "tokenizer.json"))


# Unicode ranges of the characters that the multilingual tokenizer knows after decomposition.
ALPHABETS = (
    range(0x21, 0x41),
    range(0x5B, 0x7F),
    (0xBF, 0xE6, 0xF8, 0x131, 0xDF),  # ¿ æ ø ı ß
    range(0x300, 0x340),  # combining marks
    range(0x3B1, 0x3CA),
    range(0x430, 0x460),
    range(0x5B0, 0x5EB),
    range(0x621, 0x653),
    range(0x900, 0x970),
    range(0x1100, 0x1113),  # Jamo
    range(0x1161, 0x1176),
    range(0x11A8, 0x11C3),
    range(0x3001, 0x3003),
    range(0x3041, 0x30FD),  # kana
)
MULTILINGUAL_MERGES = (*MERGES, ("ㄱ", "ㅏ"), ("か", "ら"), ("с", "т"), ("ा", "र"), ("ו", "ם"), ("ו", "ל"))
SPELLED = (  # Cangjie code -> characters; some codes have several
    "你好今天气真不错希望有一个愉快的周末他说中文很吃过饭了吗欢迎来到北京图书馆在哪里我们明见"
)


def write_multilingual_tokenizer(folder: Path) -> None:
    """Write a character tokenizer with tokens for languages and Cangjie codes, and a table of these codes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = [chr(code) for alphabet in ALPHABETS for code in alphabet]
    characters += [each for each in "\u3131\u314f" if each not in characters]
    cangjie = [f"[cj_{each}]" for each in ".abcdefghijklmnopqrstuvwxyz123"]
    markers = [*cangjie, *(f"[{code}]" for code in LANGUAGES)]
    spelled = ["[STOP]", "[UNK]", SPACE, *characters, *("".join(pair) for pair in MULTILINGUAL_MERGES)]
    spelled.insert(START_OF_TEXT, "[START]")
    ids = {token: token_id for token_id, token in enumerate([*spelled, *markers])}
    assert ids["[START]"] == START_OF_TEXT
    assert len(ids) <= NUM_MULTILINGUAL_IDS
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(MULTILINGUAL_MERGES), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(["[STOP]", "[UNK]", SPACE, "[START]", *markers])
    tokenizer.save(str(folder / MULTILINGUAL_TOKENIZER))
    table = [f"{each}\t{'abcdefghij'[at % 7]}{'klmnopqrst'[at % 5]}\t1" for at, each in enumerate(SPELLED)]
    (folder / CANGJIE_FILE).write_text(json.dumps(table, ensure_ascii=False))


def write_networks(
    folder: Path, file: str, encoder: str, codec: Mapping[str, torch.Tensor], is_wide: bool = False
) -> None:
    """Write S3Gen with the networks that encode recordings, and the voice encoder, to the files of these names."""
    from safetensors.torch import save_file

    networks = recording_encoder(*PUBLISHED_HEARING) if is_wide else recording_encoder()
    codec = {name: each for name, each in codec.items() if name not in networks}
    if is_wide:
        del networks["tokenizer._mel_filters"]  # of no published size
    parts = {
        encoder: {name.removeprefix("ve."): each for name, each in networks.items() if name.startswith("ve.")},
        file: {**codec, **{name: each for name, each in networks.items() if not name.startswith("ve.")}},
    }
    for name, stored in parts.items():
        if name.endswith(".pt"):
            torch.save(stored, folder / name)
        else:
            save_file(stored, folder / name)


def write_voices(folder: Path, seeds: Mapping[str, int]) -> None:
    """Write one random voice for each name in `seeds`."""
    (folder / "voices").mkdir(parents=True)
    for name, seed in seeds.items():
        torch.save(voice(seed), folder / ("conds.pt" if name == "default" else f"voices/{name}.pt"))


def write_release(folder: Path, is_multilingual: bool = False) -> Path:
    """Write a small English or multilingual release to `folder`, in the published layout."""
    from safetensors.numpy import save_file

    write_voices(folder, VOICES)
    (folder / "backbone.json").write_text(json.dumps(SMALL))
    if is_multilingual:
        save_file(tensors(MULTILINGUAL, MULTILINGUAL_SEED), folder / MULTILINGUAL_T3_FILE)
        write_networks(folder, MULTILINGUAL_FILE, MULTILINGUAL_VOICE_ENCODER, random_s3gen.tensors())
        write_multilingual_tokenizer(folder)
    else:
        save_file(tensors(), folder / T3_FILE)
        write_networks(folder, FILE, VOICE_ENCODER_FILE, random_s3gen.tensors())
        write_tokenizer(folder)
    return folder


def write_published(folder: Path, num_codes: int = 150, num_tokens: int = 75) -> Path:
    """Write the English release at the published size, whose replies have no end and only codes.

    Args:
        folder: Folder to create.
        num_codes: Number of codes of the voice for T3.
        num_tokens: Number of codes of the voice for S3Gen.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    made = random_tensors(published_shapes(LLAMA_520M, ChatterboxVocabulary()), seed=1)
    made[HEAD][START_OF_SPEECH:] = 0  # far below the best of the other logits
    save_file(made, folder / T3_FILE)
    del made
    write_networks(folder, FILE, VOICE_ENCODER_FILE, random_s3gen.tensors(random_s3gen.WIDE), is_wide=True)
    torch.save(voice(3, num_codes, num_tokens), folder / "conds.pt")
    write_tokenizer(folder)
    return folder


MULTILINGUAL_SEED = 2


def command(release: Path, out: Path) -> list[str]:
    """Return the converter's command line for the English or the multilingual release."""
    names = (T3_FILE, MULTILINGUAL_T3_FILE)
    model = next(release / name for name in names if (release / name).exists())
    words = ["chatterbox", "--model", str(model), "--tokenizer", str(release)]
    return [*words, "--backbone", str(release / "backbone.json"), "--codec", str(release), "--out", str(out)]


def convert(folder: Path, is_multilingual: bool = False) -> Path:
    """Write a small English or multilingual release and convert it; return the checkpoint's folder."""
    assert main(command(write_release(folder / "release", is_multilingual), folder / "checkpoint")) == 0
    return folder / "checkpoint"


TAGS = ("[clear throat]", "[laugh]", "[sigh]")
NUM_TURBO_IDS = 256 + len(MERGES) + len(TAGS)


@dataclass(frozen=True)
class Gpt2Sizes:
    """Sizes of a Turbo or Nano model.

    Attributes:
        file: Name of the T3 file.
        width: Width of the backbone.
        num_layers: Number of backbone layers.
        num_text_ids: Number of text ids.
        num_positions: Number of positions.
        seed: Seed of the weights.
    """

    file: str
    width: int
    num_layers: int
    num_text_ids: int = NUM_TURBO_IDS
    num_positions: int = 512
    seed: int = 1


TURBO = Gpt2Sizes("t3_turbo_v1.safetensors", 128, 2)
NANO = Gpt2Sizes("t3_nano_v1.safetensors", 192, 3)
PUBLISHED_TURBO = Gpt2Sizes(TURBO.file, 1024, 24, 50276, 8196)
PUBLISHED_NANO = Gpt2Sizes(NANO.file, 768, 12, 50276, 8196)
HEAD_WIDTH = 64
TURBO_VOICES = {"default": 5, "anna": 6}  # seeds


def turbo_shapes(sizes: Gpt2Sizes = TURBO) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for the T3 model of Turbo or Nano."""
    width = sizes.width
    num_speech_ids = END_OF_SPEECH + 1
    layers = {
        f"tfmr.h.{layer}.{name}": shape
        for layer in range(sizes.num_layers)
        for name, shape in gpt2_layer(width).items()
    }
    return {
        "tfmr.wte.weight": (sizes.num_text_ids, width),
        "tfmr.wpe.weight": (sizes.num_positions, width),
        **layers,
        "tfmr.ln_f.weight": (width,),
        "tfmr.ln_f.bias": (width,),
        "cond_enc.spkr_enc.weight": (width, 256),
        "cond_enc.spkr_enc.bias": (width,),
        "text_emb.weight": (sizes.num_text_ids, width),
        "speech_emb.weight": (num_speech_ids, width),
        "text_head.weight": (sizes.num_text_ids, width),
        HEAD: (num_speech_ids, width),
        HEAD_BIAS: (num_speech_ids,),
    }


def turbo_tensors(sizes: Gpt2Sizes = TURBO) -> dict[str, np.ndarray]:
    """Return a dict from published tensor name to random tensor for the T3 model of Turbo or Nano."""
    random = np.random.Generator(np.random.PCG64(sizes.seed))
    made = dict[str, np.ndarray]()
    for name, shape in turbo_shapes(sizes).items():
        noise = random.standard_normal(shape)
        if len(shape) == 1:
            noise = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        else:
            noise *= 0.5 if "emb" in name or "tfmr.w" in name else 1.5 * shape[0] ** -0.5
        made[name] = noise.astype(np.float32)
    made[HEAD][END_OF_SPEECH] *= ENDING
    return made


def write_turbo_tokenizer(folder: Path) -> None:
    """Write the files of a byte-level BPE tokenizer with tags as added tokens."""
    spelled = [*BYTE_OF, *("".join(pair) for pair in MERGES)]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(spelled)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in MERGES))
    added = {tag: len(spelled) + at for at, tag in enumerate(TAGS)}
    (folder / "added_tokens.json").write_text(json.dumps(added))


def write_turbo(folder: Path, sizes: Gpt2Sizes = TURBO) -> Path:
    """Write a small Turbo or Nano release to `folder`, in the published layout."""
    from safetensors.numpy import save_file

    write_voices(folder, TURBO_VOICES)
    save_file(turbo_tensors(sizes), folder / sizes.file)
    write_networks(folder, TURBO_FILE, VOICE_ENCODER_FILE, random_s3gen.tensors(random_s3gen.MEANFLOW))
    write_turbo_tokenizer(folder)
    return folder


def write_published_turbo(folder: Path, sizes: Gpt2Sizes, num_codes: int = 375, num_tokens: int = 75) -> Path:
    """Write Turbo or Nano at the published size; replies and further arguments as for `write_published`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    made = turbo_tensors(sizes)
    made[HEAD][START_OF_SPEECH:] = 0  # far below the best of the other logits
    save_file(made, folder / sizes.file)
    del made
    codec = random_s3gen.tensors(random_s3gen.WIDE_MEANFLOW)
    write_networks(folder, TURBO_FILE, VOICE_ENCODER_FILE, codec, is_wide=True)
    torch.save(voice(3, num_codes, num_tokens), folder / "conds.pt")
    write_turbo_tokenizer(folder)
    return folder


def convert_turbo(folder: Path, sizes: Gpt2Sizes = TURBO) -> Path:
    """Write a small Turbo or Nano release and convert it; return the checkpoint's folder."""
    words = ["chatterbox", "--model", str(write_turbo(folder / "release", sizes)), "--out", str(folder / "checkpoint")]
    assert main(words) == 0
    return folder / "checkpoint"
