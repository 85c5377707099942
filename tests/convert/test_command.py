"""Published layouts are converted to loadable directories; mismatches are reported and nothing is written."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
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


def expected_name(published: str) -> str:
    """Return the name of a served tensor by the rules of docs/families/sources.md."""
    renamed = {
        "corelm.emb.weight": "model.embed_tokens.weight",
        "corelm.lm_head.weight": "lm_head.weight",
        "corelm.head_emb.weight": "stream_bias.weight",
        "stream_emb.weight": "stream_bias.weight",
    }
    if published in renamed:
        return renamed[published]
    for before, after in {
        "corelm.decoders.": "",
        TOWER: "audio_tower.",
        "adaptor.continuous_audio.": "adaptor.",
    }.items():
        published = after + published.removeprefix(before) if published.startswith(before) else published
    return published


def is_served(name: str) -> bool:
    parts = ("vocab_weight", "criterion.", "reflm.", "corelm.decoders.lm_head.", "multimodal_io_dict.discrete_audio.")
    return not name.startswith(parts)


@pytest.mark.parametrize("family", TIERS)
def test_converted_tensors_have_their_expected_names(family: str, tmp_path: Path) -> None:
    published = write_release(family, tmp_path)
    tensors = converted_tensors(convert(family, published, tmp_path / "out"))
    expected = {expected_name(name): tensor for name, tensor in published_tensors(published).items() if is_served(name)}
    bias = expected.pop("stream_bias.weight")
    converted_bias = tensors.pop("stream_bias.weight")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    if family == "bagpiper":
        assert not converted_bias[0].any()
        assert torch.equal(converted_bias[1:], bias[1:])
    else:
        assert bias.shape[0] == 12
        assert torch.equal(converted_bias, bias[:9])
        assert converted_bias[0].any()


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


@pytest.mark.parametrize(
    ("family", "architecture", "eps", "positions"),
    [
        ("bagpiper", "StrettoQwen3ForCausalLM", 1e-6, 2048),
        ("opuslm", "StrettoOlmo2ForCausalLM", 1e-6, 1024),
        ("opuslm-dialogue", "StrettoLlamaForCausalLM", 1e-5, 1024),
    ],
)
def test_converted_config_json_matches_the_release(
    family: str, architecture: str, eps: float, positions: int, tmp_path: Path
) -> None:
    out = convert(family, write_release(family, tmp_path), tmp_path / "out")
    record = json.loads((out / "config.json").read_text())
    assert record["architectures"] == [architecture]
    assert record["rms_norm_eps"] == eps
    assert record["max_position_embeddings"] == positions, "OpusLM's is n_ctx, not the backbone's"
    assert record["tie_word_embeddings"] is False
    assert record["speech_vocabulary"] == json.loads(json.dumps(SMALL[family].to_record()))
    assert ("audio_config" in record) == (family == "bagpiper")


def test_audio_tower_windows_default_to_training_and_are_configurable(tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path)
    trained = json.loads((convert("bagpiper", published, tmp_path / "a") / "config.json").read_text())["audio_config"]
    assert (trained["n_window"], trained["n_window_infer"], trained["do_normalize"]) == (50, 800, True)
    words = ("--n-window", "100", "--n-window-infer", "400", "--no-normalize")
    chosen = json.loads((convert("bagpiper", published, tmp_path / "b", *words) / "config.json").read_text())
    assert {"n_window": 100, "n_window_infer": 400, "do_normalize": False}.items() <= chosen["audio_config"].items()


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


def test_bfloat16_trained_models_are_written_in_bfloat16(tmp_path: Path) -> None:
    """The dialogue model's file is stored in float32; its config.yaml gives the training dtype."""
    published = write_opuslm(tmp_path, backbone="llama", is_dialogue=True)
    record = yaml.safe_load(published.config.read_text())
    record["ds_config_dict"]["bf16"]["enabled"] = True
    published.config.write_text(yaml.safe_dump(record))
    out = convert("opuslm-dialogue", published, tmp_path / "out")
    table = converted_tensors(out)["lm_head.weight"]
    assert torch.equal(table, published_tensors(published)["corelm.lm_head.weight"].to(torch.bfloat16))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    kept = convert("opuslm-dialogue", published, tmp_path / "kept", "--dtype", "float32")
    assert converted_tensors(kept)["lm_head.weight"].dtype == torch.float32


def test_codec_can_be_extracted_from_the_model_file(tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path)
    out = convert("bagpiper", published, tmp_path / "out", "--codec-from-model")
    copied, released = (load_codec("xcodec", folder) for folder in (out, published.codec))
    codes = torch.randint(16, (1, 8, 12))
    assert torch.equal(*[codec.model.decode(codes, return_dict=False) for codec in (copied, released)])


def test_sharded_safetensors_convert_like_a_single_file(tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path)
    tensors = published_tensors(published)
    stored = tmp_path / "stored"
    stored.mkdir()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, stored / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, stored / "model-2.safetensors")
    out = convert("bagpiper", published, tmp_path / "a")
    again = convert("bagpiper", Published(**{**vars(published), "model": stored}), tmp_path / "b")
    for path in out.glob("*.safetensors"):
        assert load_file(path).keys() == load_file(again / path.name).keys()
        assert all(torch.equal(tensor, load_file(again / path.name)[name]) for name, tensor in load_file(path).items())


def refuse(family: str, published: Published, out: Path) -> None:
    assert main(command(family, published, out)) == 1
    assert not out.exists() or [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("family", TIERS)
def test_error_names_mismatched_tensors(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_release(family, tmp_path)
    tensors = published_tensors(published)
    prefix = "" if family == "bagpiper" else "corelm.decoders."
    del tensors[f"{prefix}model.layers.1.mlp.up_proj.weight"]
    tensors[f"{prefix}model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)
    tensors[f"{prefix}model.norm.weight"] = torch.zeros(65)
    torch.save(tensors, published.model)
    refuse(family, published, tmp_path / "out")
    said = capsys.readouterr().err
    assert f"missing: {prefix}model.layers.1.mlp.up_proj.weight" in said
    assert f"unknown: {prefix}model.layers.7.mlp.up_proj.weight" in said
    assert f"wrong shape: {prefix}model.norm.weight [65] instead of [64]" in said


def edit(published: Published, change: Callable[[dict[str, Any]], object]) -> None:
    record = yaml.safe_load(published.config.read_text())
    change(record)
    published.config.write_text(yaml.safe_dump(record, sort_keys=False))


def swap(names: list[str], first: int, second: int) -> None:
    names[first], names[second] = names[second], names[first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: swap(record["token_list"], 5, 6), "expected <sos/eos> at index 5, got <local_sos/eos>"),
        (lambda record: swap(record["token_list"], 9, 10), "expected <user_input> at index 9, got <assistant_output>"),
        (lambda record: swap(record["token_list"], 34, 300), "missing <codec_ssl_start/end>"),
        (lambda record: record.pop("token_bias"), "config.yaml: token_bias is missing"),
        (lambda record: record["token_bias"].pop("codec"), "config.yaml: token_bias.codec is missing"),
        (
            lambda record: record["token_bias"].update(ssl=256),
            "token_bias.ssl: expected [first, end) of 432",
        ),
        (lambda record: record["token_bias"].update(codec=[276, 371]), "expected a multiple of 8 codes, got 95"),
        (lambda record: record["token_bias"].update(text_bpe=[400, 432]), "expected the tokenizer small/tokenizer"),
        (lambda record: record.update(codec_token_in_use=8), "codec_token_in_use: expected 9, got 8"),
        (
            lambda record: record["token_list"].append("<more>"),
            "corelm.emb.weight [432, 64] instead of [433, 64]",
        ),
    ],
)
def test_opuslm_vocabulary_mismatch_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_opuslm(tmp_path, backbone="llama", is_dialogue=True)
    edit(published, change)
    refuse("opuslm-dialogue", published, tmp_path / "out")
    assert message in capsys.readouterr().err


def test_different_tokenizer_of_equal_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2's repository has the dialogue model's backbone but another tokenizer, also with 49152 tokens."""
    published = write_opuslm(tmp_path, backbone="llama", is_dialogue=True)
    path = published.tokenizer / "tokenizer.json"
    record = json.loads(path.read_text())
    words = record["model"]["vocab"]
    record["model"]["vocab"] = dict(zip(words, [*range(1, len(words)), 0], strict=True))
    path.write_text(json.dumps(record))
    refuse("opuslm-dialogue", published, tmp_path / "out")
    said = capsys.readouterr().err
    assert f"expected the tokenizer small/tokenizer; {len(words)} of {len(words) + 3} tokens have other ids" in said


def test_bpe_placeholder_token_list_converts_without_tokenizer_check(tmp_path: Path) -> None:
    published = write_opuslm(tmp_path)

    def rename(record: dict[str, Any]) -> None:
        record["token_list"][372:] = [f"<text_bpe_{token_id}>" for token_id in range(60)]

    edit(published, rename)
    convert("opuslm", published, tmp_path / "out")


def test_task_ids_are_read_from_the_release(tmp_path: Path) -> None:
    """Newer ESPnet releases number tasks from 64 without gaps, and have no plain text-to-speech."""
    published = write_opuslm(tmp_path)

    def renumber(record: dict[str, Any]) -> None:
        names = record["token_list"]
        names[64:128] = [f"<unused_token_{token_id}>" for token_id in range(64, 128)]
        tasks = ("textlm", "codec_ssl_audiolm", "codec_ssl_asr", "codec_ssl_tts", "text_dialogue", "audio_dialogue")
        names[64:70] = [f"<{task}_task>" for task in tasks]

    edit(published, renumber)
    out = convert("opuslm", published, tmp_path / "out")
    tasks = json.loads((out / "config.json").read_text())["speech_vocabulary"]["tasks"]
    assert tasks["codec_ssl_asr"] == 66
    assert tasks["audio_dialogue"] == 69
    assert "codec_ssl_plain_tts" not in tasks


def test_max_position_embeddings_equal_the_trained_length(tmp_path: Path) -> None:
    """The length is ESPnet's `n_ctx`, or 8192 if config.yaml omits it, whatever the backbone had."""
    published = write_opuslm(tmp_path)
    longest = []
    for name, change in (("a", lambda record: None), ("b", lambda record: record["transformer_conf"].pop("n_ctx"))):
        edit(published, change)
        out = convert("opuslm", published, tmp_path / name)
        longest.append(json.loads((out / "config.json").read_text())["max_position_embeddings"])
    assert longest == [1024, 8192]


def test_vocabulary_intervals_follow_the_multimodal_io_order(tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path)

    def reorder(record: dict[str, Any]) -> None:
        io = record["multimodal_io"]
        record["multimodal_io"] = {name: io[name] for name in ("discrete_audio", "continuous_audio", "text")}

    edit(published, reorder)
    out = convert("bagpiper", published, tmp_path / "out")
    vocabulary = json.loads((out / "config.json").read_text())["speech_vocabulary"]
    assert vocabulary["first_audio"] == 256
    assert vocabulary["text"] == [256 + 8 * 17, 692]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: record["multimodal_io"]["discrete_audio"].update(delay_interleave=False),
            "expected delay_",
        ),
        (lambda record: record["multimodal_io"].pop("text"), "expected text and discrete_audio"),
        (lambda record: record["model"].pop("model_hf_tag"), "config.yaml: model.model_hf_tag is missing"),
    ],
)
def test_incompatible_bagpiper_config_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_bagpiper(tmp_path)
    edit(published, change)
    refuse("bagpiper", published, tmp_path / "out")
    assert message in capsys.readouterr().err


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
