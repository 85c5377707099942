"""Small models of the published families are created on demand, and the server can load them."""

from pathlib import Path

import pytest

from lab.releases.random_espnet import Size
from lab.releases.small_models import SMALL_MODELS, write_checkpoint
from stretto.codecs.base import load_codec
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm.family import OpusVocabulary
from stretto.families.qwen3_tts.family import DEPTH
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM

pytestmark = pytest.mark.slow

SMALLER = Size(hidden=64, layers=1)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_model_has_its_tasks_and_a_matching_codec(tmp_path: Path, name: str) -> None:
    model = SMALL_MODELS[name]
    vocabulary: BagpiperVocabulary | OpusVocabulary = SMALL_BAGPIPER if name == "bagpiper-small" else SMALL_OPUSLM
    checkpoint = write_checkpoint(model.family, tmp_path / "checkpoint", vocabulary, SMALLER)
    family = family_at(checkpoint)
    assert family.name == model.family.replace("-", "_")
    assert len(family.task(model.speak).segments) == 1 + model.has_text
    assert family.guided_streams or model.guidance_scale is None
    spec = load_codec(family.codec, checkpoint).spec
    assert (spec.num_codebooks, spec.codebook_size) == (family.layout.num_codebooks, family.layout.codebook_size)
    assert spec.frame_rate == family.frame_rate


def test_small_qwen3_tts_has_the_published_proportions(tmp_path: Path) -> None:
    family = family_at(write_checkpoint("qwen3-tts", tmp_path / "checkpoint"))
    assert family.depth is not None
    assert (family.layout.num_codebooks, family.layout.codebook_size) == (16, 2048)
    assert family.depth.num_layers == 1
    for name in ("hidden", "intermediate", "num_heads", "num_kv_heads"):
        assert getattr(DEPTH, name) == 4 * getattr(family.depth, name)
    prompt = Preprocessor(tmp_path / "checkpoint").prepare(RawRequest(text="The train to Oslo leaves in 10 minutes."))
    assert len(prompt.rows) == 10 + len("The train to Oslo leaves in _ 1 0 minutes .".split())
    decoder = load_codec(family.codec, tmp_path / "checkpoint").get_submodule("decoder")
    size = sum(each.numel() for name, each in decoder.named_parameters() if "_codebook" not in name)
    assert 1.6e6 < size < 1.9e6
