"""Small random releases have the same names, layout and oddities as the published ones."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from lab.releases.random_espnet import token_list
from stretto.families.opuslm import family as opuslm
from stretto.families.opuslm.family import OpusVocabulary
from tests.published_checkpoints import FAMILIES, write_bagpiper, write_opuslm, write_release
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM


def kinds(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """Count tensors by the first one or two parts of their names."""
    counts: dict[str, int] = {}
    for name in tensors:
        kind = ".".join(name.split(".")[: 2 if not name.startswith("multimodal") else 4])
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_random_bagpiper_file_has_the_published_tensors(tmp_path: Path) -> None:
    """The published file has 11 tensors for each of 36 layers, and 16 for each of 32 encoder layers plus 13 others."""
    published = write_bagpiper(tmp_path)
    module = torch.load(published.model, weights_only=True)["module"]
    counts = kinds(module)
    assert counts.pop("multimodal_io_dict.discrete_audio.codec_model.acoustic_decoder") > 0
    counts = {kind: count for kind, count in counts.items() if "codec_model" not in kind}
    assert counts == {
        "model.embed_tokens": 1,
        "model.layers": 2 * 11,
        "model.norm": 1,
        "lm_head.weight": 1,
        "stream_emb.weight": 1,
        "adaptor.continuous_audio": 2,
        "multimodal_io_dict.continuous_audio.model.audio_tower": 16 + 13,
        "vocab_weight": 1,
    }
    assert module["model.embed_tokens.weight"].shape == (SMALL_BAGPIPER.vocab_size, 64)
    assert module["stream_emb.weight"][0].abs().min() > 0, "the row that the model never uses"
    assert module["vocab_weight"].dtype == torch.float32


@pytest.mark.parametrize(("backbone", "per_layer"), [("llama", 9), ("olmo2", 11)])
def test_opuslm_random_checkpoint_has_the_published_tensors(backbone: str, per_layer: int, tmp_path: Path) -> None:
    published = write_opuslm(tmp_path, backbone=backbone)
    tensors = torch.load(published.model, weights_only=True)
    assert published.model.name == "model.pth"
    assert sum(bool(re.match(r"corelm\.decoders\.model\.layers\.\d", name)) for name in tensors) == 2 * per_layer
    others = {name: tuple(tensor.shape) for name, tensor in tensors.items() if ".layers." not in name}
    table = (SMALL_OPUSLM.vocab_size, 64)
    assert others == {
        "corelm.emb.weight": table,
        "corelm.lm_head.weight": table,
        "corelm.head_emb.weight": (12, 64),
        "corelm.decoders.model.norm.weight": (64,),
        "criterion.lm_head.weight": table,
    }
    assert tensors["corelm.emb.weight"][0].abs().min() > 0
    assert tensors["corelm.head_emb.weight"][0].abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_random_tokenizers_leave_some_text_ids_unused(family: str, tmp_path: Path) -> None:
    published = write_release(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(published.tokenizer)
    first, stop = SMALL_BAGPIPER.text if family == "bagpiper" else SMALL_OPUSLM.text
    span = stop - first
    assert span - 8 < len(tokenizer) < span
    ids = tokenizer("the garden door").input_ids
    assert tokenizer.decode(ids) == "the garden door"
    assert len(ids) < len("the garden door")


def test_token_list_matches_the_published_one(tmp_path: Path) -> None:
    """Names and numbers come from espnet2/speechlm/definitions.py and the released models."""
    published = write_opuslm(tmp_path)
    names = token_list(OpusVocabulary(), published.tokenizer)
    assert len(names) == len(set(names)) == 113870
    assert [names[token_id] for token_id in (0, 5, 8, 9, 10, 34, 35, 37)] == [
        *("<pad>", "<sos/eos>", "<system_prompt>", "<user_input>", "<assistant_output>"),
        *("<codec_ssl_start/end>", "<text_bpe_start/end>", "<spk_start/end>"),
    ]
    assert names[82] == "<codec_ssl_plain_tts_task>"
    assert names[opuslm.NEVER_READ] == "<unused_token_255>"
    assert (names[256], names[5256], names[5256 + 7 * 1024]) == (
        *("<ssl_code1>", "<codec_layer0_code0>", "<codec_layer7_code0>"),
    )
    record = yaml.safe_load(published.config.read_text())
    assert len(record["token_list"]) == SMALL_OPUSLM.vocab_size
    assert record["token_bias"]["codec"] == [276, 276 + 8 * 12]
