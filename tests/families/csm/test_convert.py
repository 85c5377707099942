"""Conversion of CSM."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stretto.convert.command import main
from stretto.families.csm import PLUGIN
from stretto.families.csm.convert import CODES, CODES_OF_BACKBONE
from stretto.testing.releases import SmallRelease, assert_refused, edited
from stretto.testing.suite import FamilyCase
from stretto.weights.loading import open_tensors
from tests.family_suite import FamilySuite
from tests.installed_models import contents
from tests.published_csm import NUM_CODEBOOKS, CsmRelease, make_model, write_release, write_saved

pytestmark = pytest.mark.slow


def write(folder: Path, size: str) -> list[str]:
    return write_saved(folder / "release", make_model()).command


@pytest.fixture
def sharded(tmp_path: Path) -> CsmRelease:
    """A release as in Sesame's repository."""
    return write_release(tmp_path / "release", make_model())


class TestCsm(FamilySuite):
    """Releases that transformers has saved: their only file has the name of Sesame's in the published repository."""

    case = FamilyCase(
        PLUGIN,
        write,
        unneeded_tensors=(CODES, CODES_OF_BACKBONE),  # one of the two, if they are tied
        refused_configs=[
            ({"model_type": "llama"}, "model_type: expected 'csm', got 'llama'"),
            ({"attention_bias": True}, "attention_bias: expected False, got True"),
            ({"rms_norm_eps": "small"}, "invalid parameters for csm"),
            ({"codebook_eos_token_id": 1}, "codebook_eos_token_id: expected 0, got 1"),
            ({"text_vocab_size": 300}, "at most 300 tokens"),
            ({"codec_config.num_codebooks": 8}, "csm: property 'num_codebooks' of 'MimiConfig' object has no setter"),
            ({"codec_config.frame_size": 8}, "invalid parameters for csm"),
            (
                {"hidden_size": 65, "head_dim": 32},
                "config.json: expected hidden_size to be a multiple of num_attention_heads, got 65 and 2",
            ),
            ({"hidden_size": 32}, "tensors do not match: wrong shape"),
        ],
        needed_tokens=["<|end_of_text|>"],
    )

    def test_codec_has_the_codebooks_of_the_model(self, release: SmallRelease) -> None:
        assert release.preprocessor.codec.spec.num_codebooks == NUM_CODEBOOKS

    def test_release_of_several_files_gives_the_same_checkpoint(
        self, release: SmallRelease, sharded: CsmRelease, tmp_path: Path
    ) -> None:
        assert contents(sharded.convert(tmp_path / "out")) == contents(release.checkpoint)

    def test_conversion_drops_attn_implementation(self, copied: SmallRelease) -> None:
        """An implementation name with a slash would be a Hub kernel, which transformers downloads and runs."""
        with edited(copied.folder / self.case.config) as record:
            record["attn_implementation"] = "evil/kernel"
        assert "evil" not in (copied.checkpoint / "config.json").read_text()

    def test_float32_release_is_written_in_float32_with_a_hint(
        self, release: SmallRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hint = "written and served in float32; --dtype bfloat16 takes half the memory"
        assert main([*release.arguments, "--out", str(tmp_path / "a")]) == 0
        assert hint in capsys.readouterr().out
        for number, dtype in enumerate(("bfloat16", "float32")):  # no hint if the user has chosen
            assert main([*release.arguments, "--dtype", dtype, "--out", str(tmp_path / str(number))]) == 0
            assert hint not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("/etc/passwd", "expected a file name without a folder, got '/etc/passwd'"),
        ("missing.safetensors", "missing.safetensors"),
    ],
)
def test_index_with_other_files_is_refused(sharded: CsmRelease, file: str, message: str, tmp_path: Path) -> None:
    with edited(sharded.folder / sharded.weights) as record:
        record["weight_map"]["extra"] = file
    assert_refused(sharded.command, tmp_path / "out", message)


@pytest.mark.parametrize("left", [CODES, CODES_OF_BACKBONE])
def test_release_of_recent_transformers_is_converted(left: str, tmp_path: Path) -> None:
    """Its config ties word embeddings, by which it means the tables of codes. Tied tables are stored once."""
    model = make_model()
    model.backbone_model.embed_tokens.embed_audio_tokens.weight.copy_(model.depth_decoder.model.embed_tokens.weight)
    release = write_release(tmp_path / "release", model)
    before = open_tensors(release.convert(tmp_path / "before"))
    index = release.folder / "transformers.safetensors.index.json"
    with edited(release.folder / "config.json") as record:
        record["tie_word_embeddings"] = record["tie_codebooks_embeddings"]
    assert record["tie_word_embeddings"] is True
    with edited(index) as record:
        (other,) = {CODES, CODES_OF_BACKBONE} - {left}
        shard = release.folder / record["weight_map"].pop(other)
    with edited(shard) as tensors:
        tensors.pop(other)
    after = open_tensors(release.convert(tmp_path / "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("is_beside", [True, False])
def test_sesame_format_files_are_refused_by_name(sharded: CsmRelease, is_beside: bool, tmp_path: Path) -> None:
    """The release is the complete folder, which also contains the transformers files, or only Sesame's file."""
    folder = sharded.folder if is_beside else tmp_path / "sesame"
    folder.mkdir(exist_ok=True)
    save_file({"codebook0_head.weight": torch.zeros(35, 64)}, folder / "model.safetensors")
    command = list(sharded.command)
    command[command.index("--model") + 1] = str(folder)
    expected = "expected transformers.safetensors.index.json in transformers format, got Sesame's format"
    assert_refused(command, tmp_path / "out", f"{folder}: {expected}")
