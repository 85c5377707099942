"""Published layouts are converted to loadable directories; mismatches are reported and nothing is written."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from lab.releases.random_espnet import Published
from stretto.codecs.base import load_codec
from stretto.convert.command import config_in, main
from stretto.family.plugin import family_at
from tests.published_checkpoints import FAMILIES, command, convert, write_bagpiper, write_opuslm, write_release
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM
from tests.tiers import by_night

pytestmark = pytest.mark.slow

TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
TIERS = [*FAMILIES[:2], *by_night(*FAMILIES[2:])]
SMALL = {"bagpiper": SMALL_BAGPIPER, "opuslm": SMALL_OPUSLM, "opuslm-dialogue": SMALL_OPUSLM}


def published_tensors(published: Published) -> dict[str, Tensor]:
    stored = torch.load(published.model, weights_only=True)
    return stored.get("module", stored)


def converted_tensors(out: Path) -> dict[str, Tensor]:
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index.values())):
        tensors |= load_file(out / file)
    assert tensors.keys() == index.keys()
    return tensors


@pytest.mark.parametrize("family", TIERS)
def test_converted_checkpoints_load(family: str, tmp_path: Path) -> None:
    published = write_release(family, tmp_path)
    out = convert(family, published, tmp_path / "out")
    served = family_at(out)
    assert served.name == family.replace("-", "_")
    assert served.layout == SMALL[family].layout
    words = "the garden door"
    ids = [AutoTokenizer.from_pretrained(folder)(words).input_ids for folder in (out, published.tokenizer)]
    assert ids[0] == ids[1]
    codes = torch.randint(served.layout.codebook_size, (1, 8, 12))
    codecs = [load_codec(served.codec, folder) for folder in (out, published.codec)]
    assert codecs[0].spec == codecs[1].spec
    assert codecs[0].spec.codebook_size == served.layout.codebook_size
    if family == "bagpiper":
        assert torch.equal(*[codec.model.decode(codes, return_dict=False) for codec in codecs])


def test_conversion_prints_checksums_of_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_opuslm(tmp_path)
    capsys.readouterr()
    out = convert("opuslm", published, tmp_path / "out")
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.count("  ") == 2]
    sums = {name: (digest, int(size)) for digest, name, size in lines}
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert sums == {name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}


def test_conversion_reports_omitted_and_converted_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_opuslm(tmp_path)
    convert("opuslm", published, tmp_path / "a", "--dtype", "bfloat16")
    said = capsys.readouterr().out
    assert "not needed: criterion.lm_head.weight [432, 64]" in said
    assert "stored in float32, written in bfloat16" in said
    assert "the pad's embedding is not zero" in said
    tensors = published_tensors(published)
    tensors["corelm.emb.weight"][0] = 0
    torch.save(tensors, published.model)
    convert("opuslm", published, tmp_path / "b")
    said = capsys.readouterr().out
    assert "the pad's embedding is zero" in said
    assert "stored in" not in said
    convert("bagpiper", write_bagpiper(tmp_path / "c"), tmp_path / "d")
    said = capsys.readouterr().out
    assert "not needed: 294 tensors of multimodal_io_dict.discrete_audio" in said
    assert "not needed: vocab_weight [692]" in said


def test_shards_respect_the_requested_size(tmp_path: Path) -> None:
    published = write_opuslm(tmp_path)
    whole = converted_tensors(convert("opuslm", published, tmp_path / "whole"))
    out = convert("opuslm", published, tmp_path / "out", "--shard-gb", "0.0002")
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert max(path.stat().st_size for path in shards) < 220_000, "a header beside the tensors"
    parts = converted_tensors(out)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def refuse(family: str, published: Published, out: Path) -> None:
    assert main(command(family, published, out)) == 1
    assert not out.exists() or [path.name for path in out.iterdir()] == ["mine"]


def test_codec_with_wrong_codebook_count_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, other = write_opuslm(tmp_path / "a"), write_bagpiper(tmp_path / "b")
    refuse("opuslm", Published(**{**vars(published), "codec": other.codec}), tmp_path / "out")
    assert "config.yaml is missing" in capsys.readouterr().err
    record = yaml.safe_load((published.codec / "config.yaml").read_text())
    record["codec_conf"]["generator_params"]["quantizer_n_q"] = 4
    (published.codec / "config.yaml").write_text(yaml.safe_dump(record))
    refuse("opuslm", published, tmp_path / "out")
    assert "expected 8 codebooks of 12 codes, got 4 of 12" in capsys.readouterr().err


def test_existing_output_is_not_modified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, out = write_opuslm(tmp_path), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert (convert("opuslm", published, tmp_path / "empty") / "config.json").is_file()
    out.mkdir()
    (out / "mine").write_text("mine")
    refuse("opuslm", published, out)
    assert "expected a directory that is empty or does not exist yet" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_conversion_leaves_no_complete_looking_output(tmp_path: Path) -> None:
    published, out = write_opuslm(tmp_path), tmp_path / "out"
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.convert.conversion.copy_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert("opuslm", published, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    killed = tmp_path / "out.partial"
    killed.mkdir()
    (killed / "model-00009-of-00009.safetensors").write_bytes(b"half")
    convert("opuslm", published, out)
    assert not killed.exists()
    assert not (out / "model-00009-of-00009.safetensors").exists()


def test_config_is_found_next_to_the_model(tmp_path: Path) -> None:
    assert config_in(tmp_path) is None
    for name in ("a.yaml", "b.yaml", "config.json"):
        (tmp_path / name).touch()
        expected = {"a.yaml": name, "config.json": name}.get(name)
        assert config_in(tmp_path) == (expected and tmp_path / expected), "of two YAML files, none is chosen"
