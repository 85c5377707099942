"""Conversion of Higgs Audio."""

from pathlib import Path

import torch

from plugins.higgs_audio.lab.random_higgs_audio import make_model, write_release
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import FamilyCase, assert_same_checkpoints
from stretto_higgs_audio.higgs_audio import PLUGIN
from tests.family_suite import FamilySuite


def write(folder: Path, size: str) -> list[str]:
    return write_release(folder / "release", make_model(4, num_codes=16)).command


class TestHiggsAudio(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        refused_configs=[
            ({"model_type": "higgs_audio"}, "model_type: expected 'higgs_audio_v2'"),
            ({"attention_bias": True}, "attention_bias: expected False, got True"),
            ({"rms_norm_eps": "small"}, "invalid parameters for higgs_audio_v2"),
            ({"audio_stream_eos_id": 16}, "the last two ids"),
            ({"eos_token_id": [5, 6]}, "expected integers as eos_token_id"),
            ({"intermediate_size": 32}, "tensors do not match: wrong shape"),
            ({"num_codebooks": 5}, "embed_audio_tokens.weight [72, 64] instead of [90"),
        ],
        refused_edits=[
            (
                "release/model.safetensors",
                lambda tensors: tensors.update({"audio_codebook_embeddings.weight": torch.ones(1)}),
                "got Boson AI's format",
            ),
        ],
        needed_tokens=["<|end_header_id|>"],
        has_usual_requests=False,  # without a codec
    )

    def test_training_only_tensors_are_omitted(self, release: SmallRelease, copied: SmallRelease) -> None:
        with edited(copied.folder / self.case.weights) as tensors:
            tensors["text_lm_head.weight"] = torch.ones(330, 64)
        assert_same_checkpoints(release, copied)
