"""Conversion of CSM: mismatches give a clear one-line message, and nothing is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stretto.codecs.mimi import load
from stretto.convert.command import main
from stretto.families.csm.convert import CODES, CODES_OF_BACKBONE
from stretto.weights.loading import open_tensors
from tests.published_csm import NUM_CODEBOOKS, CsmRelease, make_model, write_release, write_saved
from tests.refused_conversion import Edit, Refuses, edited
from tests.tiers import by_night
from tests.transformers_releases import assert_equal_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture
def release(tmp_path: Path) -> CsmRelease:
    return write_release(tmp_path / "release", make_model())


def test_converted_codec_loads(release: CsmRelease, tmp_path: Path) -> None:
    assert load(release.convert(tmp_path / "out") / "codec").spec.num_codebooks == NUM_CODEBOOKS


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("config.json", lambda record: record.update(model_type="llama"), "model_type: expected 'csm', got 'llama'"),
        (
            "config.json",
            lambda record: record.update(attention_bias=True),
            "attention_bias: expected False, got True",
        ),
        *by_night(("config.json", lambda record: record.update(rms_norm_eps="small"), "invalid parameters for csm")),
        (
            "config.json",
            lambda record: record.update(codebook_eos_token_id=1),
            "codebook_eos_token_id: expected 0, got 1",
        ),
        ("config.json", lambda record: record.update(text_vocab_size=300), "at most 300 tokens"),
        (
            "config.json",
            lambda record: record["codec_config"].update(num_codebooks=8),
            "config.json: invalid parameters for csm: property 'num_codebooks' of 'MimiConfig' object has no setter",
        ),
        *by_night(
            ("config.json", lambda record: record["codec_config"].update(frame_size=8), "invalid parameters for csm")
        ),
        (
            "config.json",
            lambda record: record.update(hidden_size=65, head_dim=32),
            "config.json: expected hidden_size to be a multiple of num_attention_heads, got 65 and 2",
        ),
        (
            "transformers.safetensors.index.json",
            lambda record: record["weight_map"].update(extra="/etc/passwd"),
            "expected a file name without a folder, got '/etc/passwd'",
        ),
        ("config.json", lambda record: record.update(hidden_size=32), "tensors do not match: wrong shape"),
        ("tokenizer.json", lambda record: record["added_tokens"].pop(-3), "without <|end_of_text|>"),
        (
            "transformers.safetensors.index.json",
            lambda record: record["weight_map"].update(extra="missing.safetensors"),
            "missing.safetensors",
        ),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    release: CsmRelease, file: str, edit: Edit, message: str, tmp_path: Path, refuses: Refuses
) -> None:
    with edited(release.folder / file) as record:
        edit(record)
    refuses([*release.command, "--out", str(tmp_path / "out")], message)


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


def test_release_saved_by_transformers_is_converted(release: CsmRelease, tmp_path: Path) -> None:
    """Its only file has the name of Sesame's file in the published repository."""
    saved = write_saved(tmp_path / "saved", release.model)
    made = [each.convert(tmp_path / name) for each, name in ((release, "a"), (saved, "b"))]
    assert_equal_checkpoints(*made)


def test_conversion_drops_attn_implementation(release: CsmRelease, tmp_path: Path) -> None:
    """An implementation name with a slash would be a Hub kernel, which transformers downloads and runs."""
    with edited(release.folder / "config.json") as record:
        record["attn_implementation"] = "evil/kernel"
    assert main([*release.command, "--out", str(tmp_path / "out")]) == 0
    assert "evil" not in (tmp_path / "out" / "config.json").read_text()


def test_float32_release_is_written_in_float32_with_a_hint(
    release: CsmRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "written and served in float32; --dtype bfloat16 takes half the memory"
    assert main([*release.command, "--out", str(tmp_path / "a")]) == 0
    assert hint in capsys.readouterr().out
    for number, dtype in enumerate(("bfloat16", "float32")):  # no hint if the user has chosen
        assert main([*release.command, "--dtype", dtype, "--out", str(tmp_path / str(number))]) == 0
        assert hint not in capsys.readouterr().out


@pytest.mark.parametrize("is_beside", [True, False])
def test_sesame_format_files_are_refused_by_name(
    release: CsmRelease, is_beside: bool, tmp_path: Path, refuses: Refuses
) -> None:
    """The release is the complete folder, which also contains the transformers files, or only Sesame's file."""
    folder = release.folder if is_beside else tmp_path / "sesame"
    folder.mkdir(exist_ok=True)
    save_file({"codebook0_head.weight": torch.zeros(35, 64)}, folder / "model.safetensors")
    command = list(release.command)
    command[command.index("--model") + 1] = str(folder)
    expected = "expected transformers.safetensors.index.json in transformers format, got Sesame's format"
    refuses([*command, "--out", str(tmp_path / "out")], f"{folder}: {expected}")
