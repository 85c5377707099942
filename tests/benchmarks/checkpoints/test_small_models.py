"""Small models of the published families are made on the spot, and are what the server loads."""

from pathlib import Path

import pytest

from benchmarks.checkpoints.random_published import Size
from benchmarks.checkpoints.small_models import SMALL_MODELS, write_checkpoint
from stretto.codec.registry import load_codec
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm.family import OpusVocabulary
from stretto.families.registry import family_at
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM

SMALLER = Size(hidden=64, layers=1)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_small_model_has_the_tasks_that_it_is_asked_for_and_a_codec_of_its_codes(tmp_path: Path, name: str) -> None:
    model = SMALL_MODELS[name]
    vocabulary: BagpiperVocabulary | OpusVocabulary = SMALL_BAGPIPER if name == "bagpiper-small" else SMALL_OPUSLM
    checkpoint = write_checkpoint(model.family, tmp_path / "checkpoint", vocabulary, SMALLER)
    family = family_at(checkpoint)
    assert family.name == model.family.replace("-", "_")
    assert len(family.task(model.speak).segments) == 1 + model.has_text
    assert "audio" in family.task(model.listen).needs
    assert bool(family.guided_streams) == (model.guidance_scale is not None)
    spec = load_codec(family.codec, checkpoint).spec
    assert (spec.num_codebooks, spec.codebook_size) == (family.layout.num_codebooks, family.layout.codebook_size)
    assert spec.frame_rate == family.frame_rate
