"""Conversion of the CosyVoice 3 release (https://huggingface.co/FunAudioLLM/Fun-CosyVoice3-0.5B-2512).

Its `cosyvoice3.yaml` describes Python objects. The file is read as data, and its numbers must be those that this
implementation assumes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.glm4_voice import read_hyperpyyaml
from stretto.errors import CheckpointError
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    in_lower_case,
    merged,
    unchanged,
)
from stretto.family.layers import layers_plan
from stretto.family.text import TOKENIZER_FILE
from stretto.family.text import check_ids as check_token_ids
from stretto.untrusted_files import check_value, entry, read_text, released_file, released_folder
from stretto.weights.backbones import read_backbone, shapes
from stretto.weights.loading import Part, Plan, check, open_tensors, read_pickled, require
from stretto_cosyvoice3.codec import CHUNK, CosyVoice3Codec, CosyVoice3Config
from stretto_cosyvoice3.family import FILL, CosyVoice3Vocabulary
from stretto_cosyvoice3.tokens import ADDED, END_OF_PROMPT, with_added_tokens
from stretto_cosyvoice3.voices import (
    FOLDER,
    MAX_NAMED,
    NAMED,
    SPEAKER,
    TOKENIZER,
    check_ids,
    check_network,
    check_voice,
)

IS_BARE = True  # the config is read here, because it describes Python objects
CONFIG = "cosyvoice3.yaml"
OTHER_CONFIGS = ("cosyvoice2.yaml", "cosyvoice.yaml")
BACKBONE = "CosyVoice-BlankEN"
MODEL = "llm.pt"
LAYERS = "llm.model.model."
EMBEDDINGS = f"{LAYERS}embed_tokens.weight"
SPEECH = "speech_embedding.weight"
HEAD = "llm_decoder.weight"
DROPPED = ("llm.model.lm_head.weight",)  # Qwen's own head
NUM_CODES = CosyVoice3Vocabulary.num_codes
NUM_SPEECH_IDS = CosyVoice3Vocabulary.num_speech_ids
VOICES = "spk2info.pt"
# Numbers in cosyvoice3.yaml that this implementation assumes.
ASSUMED: dict[str, Any] = {
    "sample_rate": 24000,
    "token_frame_rate": 25,
    "token_mel_ratio": 2,
    "chunk_size": CHUNK,
    "num_decoding_left_chunks": -1,
    "llm.speech_token_size": NUM_CODES,
    "llm.mix_ratio": [5, 15],
    "llm.sampling.top_p": 0.8,
    "llm.sampling.top_k": 25,
    "llm.sampling.win_size": 10,
    "llm.sampling.tau_r": 0.1,
    "flow.pre_lookahead_len": 3,
    "flow.decoder.cfm_params.content.inference_cfg_rate": 0.7,
    "flow.decoder.cfm_params.content.t_scheduler": "cosine",
    "flow.decoder.estimator.dim_head": 64,
    "hift.nb_harmonics": 8,
    "hift.nsf_alpha": 0.1,
    "hift.nsf_sigma": 0.003,
    "hift.nsf_voiced_threshold": 10,
    "hift.upsample_rates": [8, 5, 3],
    "hift.conv_pre_look_right": 4,
}
NORMED = re.compile(
    r"hift\.(conv_pre|conv_post|ups\.\d+|(source_)?resblocks\.\d+\.convs[12]\.\d+|f0_predictor\.condnet\.\d+)\.weight"
)


def located(release: Release) -> Release:
    """Return the release with the paths of its language model and of Qwen's tokenizer."""
    folder = release.folder
    model = released_file(folder, MODEL) if release.model.is_dir() else release.model
    tokenizer = released_folder(folder, BACKBONE) if release.tokenizer == folder else release.tokenizer
    return replace(release, model=model, tokenizer=tokenizer, config=None)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint: text and speech embeddings in one table, and a head over the speech ids."""
    folder = release.model.parent
    check_config(folder)
    backbone = read_backbone(BACKBONE, release.backbone, release.tokenizer, {})
    tokenizer = extended(release.tokenizer, contents.tokenizer)
    vocab = vocabulary(contents.tensors, tokenizer)
    voices = named_voices(folder)
    for name, parts in voices.items():
        check_ids(folder / VOICES, name, parts, vocab.num_codes, tokenizer.size, vocab.end_of_prompt)
    vocab = replace(vocab, voices=tuple(voices))
    record = {
        "architectures": ["StrettoQwen2ForCausalLM"],
        **backbone,
        **common_record("cosyvoice3", vocab, vocab.layout.vocab_size, contents),
    }
    recording_encoder = {f"{FOLDER}/{name}": released_file(folder, name) for name in (TOKENIZER, SPEAKER)}
    for path in recording_encoder.values():
        check_network(path)
    networks = (decoder(folder), *([stored_voices(voices)] if voices else []))
    return Converted(
        record, plan(backbone, vocab), DROPPED, networks=networks, tokenizer=tokenizer, copies=recording_encoder
    )


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return a note on the voices."""
    return [f"voices come from recordings, and from {VOICES} if there is one"]


def named_voices(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Map the lower-case names of the voices in `spk2info.pt` to their tensors; empty if the file is missing."""
    if not (folder / VOICES).exists():
        return {}
    path = released_file(folder, VOICES)
    stored = read_pickled(path, "named voices")
    if not isinstance(stored, dict) or len(stored) > MAX_NAMED:
        got = len(stored) if isinstance(stored, dict) else type(stored).__name__
        raise CheckpointError(f"{path}: expected at most {MAX_NAMED} voices by name, got {got}")
    return {name: check_voice(path, name, voice) for name, voice in in_lower_case(stored, f"{path}").items()}


def stored_voices(voices: Mapping[str, Mapping[str, Tensor]]) -> Network:
    """Return the checkpoint's folder of named voices, to be written."""
    tensors = {
        f"{index}.{tensor_name}": tensor
        for index, voice in enumerate(voices.values())
        for tensor_name, tensor in voice.items()
    }
    plan = {name: Part(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return Network(NAMED, {"model_type": "cosyvoice3_voices"}, plan, tensors)


def check_config(folder: Path) -> None:
    """Raise CheckpointError unless `cosyvoice3.yaml` has the numbers in `ASSUMED`."""
    if not (folder / CONFIG).exists():
        others = [name for name in OTHER_CONFIGS if (folder / name).exists()]
        raise CheckpointError(f"{folder}: expected CosyVoice 3 with {CONFIG}, got {others[0] if others else 'none'}")
    record = read_hyperpyyaml(released_file(folder, CONFIG))
    file = str(folder / CONFIG)
    for name, wanted in ASSUMED.items():
        check_value(name, entry(record, name, file), wanted, file=file)


def extended(folder: Path, tokenizer: Tokenizer) -> Tokenizer:
    """Return the Qwen tokenizer with the tokens that the authors' code adds."""
    text = json.dumps(tokenizer.built) if tokenizer.built else read_text(folder / TOKENIZER_FILE)
    fast = FastTokenizer.from_str(text)
    check_token_ids(fast.get_vocab(), folder / TOKENIZER_FILE)
    ids = with_added_tokens(fast)
    new = [ids[name] for name in ADDED if ids[name] >= tokenizer.size]
    if new != list(range(tokenizer.size, tokenizer.size + len(ADDED))):
        expected = f"a tokenizer without {ADDED[0]} and {len(ADDED) - 1} others, which are added"
        raise CheckpointError(f"{folder}: expected {expected}, got one with {len(ADDED) - len(new)} of them")
    files = tuple(file for file in tokenizer.files if file.name != TOKENIZER_FILE)
    spelled = {token_id: spelling for spelling, token_id in fast.get_vocab().items()}
    return Tokenizer(folder, tokenizer.size + len(ADDED), spelled, json.loads(fast.to_str()), files)


def vocabulary(tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> CosyVoice3Vocabulary:
    """Return the vocabulary; raise CheckpointError if the release is not CosyVoice 3."""
    require(tensors, dict.fromkeys((EMBEDDINGS, SPEECH, HEAD)))
    num_text_ids = len(tensors[EMBEDDINGS])
    num_speech_ids = len(tensors[SPEECH])
    if num_speech_ids != NUM_SPEECH_IDS:
        expected = f"CosyVoice 3 with {NUM_SPEECH_IDS} speech ids"
        raise CheckpointError(f"{SPEECH}: expected {expected}, got {num_speech_ids}")
    ids = tokenizer.ids_of((END_OF_PROMPT,), num_text_ids)
    return CosyVoice3Vocabulary(num_text_ids=num_text_ids, end_of_prompt=ids[END_OF_PROMPT])


def plan(backbone: dict[str, Any], vocab: CosyVoice3Vocabulary) -> Plan:
    """Return the plan for writing the language model's tensors."""
    numbers = {**backbone, "vocab_size": vocab.num_text_ids, "tie_word_embeddings": False}
    stored = {f"llm.model.{name}": shape for name, shape in shapes(numbers).items()}
    codes = (vocab.num_speech_ids, backbone["hidden_size"])

    def whole_table(text: Tensor, speech: Tensor) -> Tensor:
        speech = speech.clone()
        # Rows of streamed text carry words on another stream; the authors' code never reads these ids.
        speech[[NUM_CODES + FILL, -1]] = 0.0
        return torch.cat([text, speech])

    return {
        **merged("model.embed_tokens.weight", whole_table, {EMBEDDINGS: stored[EMBEDDINGS], SPEECH: codes}),
        **layers_plan(stored, LAYERS),
        HEAD: Part("audio_head.weight", codes),
    }


def decoder(folder: Path) -> Network:
    """Return the decoder to be written."""
    tensors = {f"flow.{name}": tensor for name, tensor in open_tensors(released_file(folder, "flow.pt")).items()}
    hift = open_tensors(released_file(folder, "hift.pt"))
    tensors |= {f"hift.{name.removeprefix('generator.')}": tensor for name, tensor in hift.items()}
    plain = multiply_weight_norm_out(dict(tensors))
    config = CosyVoice3Config.from_shapes({name: tuple(tensor.shape) for name, tensor in plain.items()})
    if config.codebook_size != NUM_CODES:
        raise CheckpointError(f"{folder / 'flow.pt'}: expected {NUM_CODES} codes, got {config.codebook_size}")
    with torch.device("meta"):
        state = CosyVoice3Codec(config).state_dict()
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        if NORMED.fullmatch(name):
            stem = f"{name.removesuffix('weight')}parametrizations.weight.original"
            wanted |= {f"{stem}0": (shape[0], 1, 1), f"{stem}1": shape}
        else:
            wanted[name] = shape
    network = unchanged(wanted)
    check(network, tensors, ())
    return Network("codec", {"model_type": "cosyvoice3"}, network, tensors)
