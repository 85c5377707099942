"""Conversion of Chatterbox: mismatches give a clear one-line message, and nothing is written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.chatterbox.lab.random_chatterbox import T3_FILE, command, convert, voice, write_release
from stretto.convert.command import main
from stretto.convert.make_repository import main as make_repository
from tests.refused_conversion import refused
from tests.tiers import by_night

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]
ATTENTION = "flow.decoder.estimator.down_blocks.0.1.0.attn1"
NUMBERS = "expected int32 or int64, or floating-point numbers"


class Hostile:
    """Pickled object that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("chatterbox") / "release")


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Path:
    """Return links to the files of the release, which a test may replace but not change."""
    return Path(shutil.copytree(published, tmp_path / "release", copy_function=os.link))


def refusal(release: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Return the one-line message of a failed conversion."""
    out = release.parent / "out"
    return refused([*command(release, out), *more], out, capsys)


def other_text(tensors: Tensors, num_ids: int) -> None:
    for name in ("text_emb.weight", "text_head.weight"):
        tensors[name] = torch.ones(num_ids, 64)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("text_pos_emb.emb.weight"), "missing: text_pos_emb.emb.weight"),
        (lambda t: t.pop("cond_enc.emotion_adv_fc.weight"), "missing: cond_enc.emotion_adv_fc.weight"),
        (lambda t: t.pop("cond_enc.perceiver.pre_attention_query"), "missing: cond_enc.perceiver.pre_attention_query"),
        (lambda t: t.pop("tfmr.layers.1.mlp.up_proj.weight"), "missing: tfmr.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(more=torch.ones(1)), "unknown: more"),
        (lambda t: t.update({"speech_head.weight": torch.ones(8194, 32)}), "wrong shape: speech_head.weight"),
        (
            lambda t: t.update({"speech_emb.weight": torch.ones(6000, 64)}),
            "expected more than 6563 ids, and at most 1048576, got 6000",
        ),
        (lambda t: other_text(t, 2454), "grapheme_mtl_merged_expanded_v1.json is missing"),
        (lambda t: other_text(t, 100), "expected a tokenizer of at most 100 tokens with [SPACE], got 256 tokens"),
    ],
)
def test_error_names_mismatched_tensors(
    release: Path, edit: Callable[[Tensors], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "t3_cfg.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)
    assert message in refusal(release, capsys)


def told(**changes: object) -> dict[str, Any]:
    return {"t3": voice(9)["t3"] | changes}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (Hostile(), "expected a voice, got UnpicklingError"),
        ({"t3": {"speaker_emb": Hostile()}}, "expected a voice, got UnpicklingError"),
        ({"gen": {}}, "voice anna: expected the tensors t3.speaker_emb"),
        (told(emotion_adv=0.5), "voice anna: expected the tensors t3.speaker_emb"),
        (told(speaker_emb=torch.ones(1, 255)), "expected 256 speaker numbers and one emotion value"),
        (told(cond_prompt_speech_tokens=torch.full((1, 4), 8194)), "expected ids of shape [1, n]"),
        (
            told(cond_prompt_speech_tokens=torch.ones(1, 4, dtype=torch.bool)),
            f"tokens: {NUMBERS}",
        ),
        (told(emotion_adv=torch.full((1, 1, 1), torch.nan)), f"t3.emotion_adv: {NUMBERS}"),
        (told(speaker_emb=torch.ones(1, 256).to_sparse()), f"t3.speaker_emb: {NUMBERS}"),
        *by_night(
            (told(cond_prompt_speech_tokens=torch.ones(1, 4)), "expected ids of shape [1, n]"),
            (told(cond_prompt_speech_tokens=torch.ones(1, 0, dtype=torch.int64)), "expected ids of shape [1, n]"),
            (told(cond_prompt_speech_tokens=torch.ones(1, 4, dtype=torch.cfloat)), f"tokens: {NUMBERS}"),
            (told(speaker_emb=torch.full((1, 256), 1e38)), f"t3.speaker_emb: {NUMBERS}"),
            (told(speaker_emb=torch.full((1, 256), torch.inf)), f"t3.speaker_emb: {NUMBERS}"),
            (told(speaker_emb=torch.full((1, 256), 1e99, dtype=torch.float64)), f"t3.speaker_emb: {NUMBERS}"),
            (told(speaker_emb=torch.ones(1, 256, device="meta")), f"t3.speaker_emb: {NUMBERS}"),
        ),
    ],
)
def test_invalid_voice_pickle_is_refused_and_not_executed(
    release: Path,
    stored: object,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = release / "voices" / "anna.pt"
    path.unlink()
    torch.save(stored, path)
    assert message in refusal(release, capsys)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("stored", [b"", b"K\x01", *by_night(b"hello", b"0")])
@pytest.mark.parametrize("name", ["conds.pt", "voices/anna.pt"])
def test_unreadable_voice_files_are_refused(
    release: Path, name: str, stored: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / name
    path.unlink()
    path.write_bytes(stored)
    assert f"{name}: expected a voice, got " in refusal(release, capsys)


def test_missing_or_invalid_voice_name_is_refused(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "voices" / "it's me.pt").symlink_to(release / "conds.pt")
    assert "expected a name of lower-case letters" in refusal(release, capsys)
    (release / "voices" / "it's me.pt").unlink()
    (release / "conds.pt").unlink()
    assert "conds.pt is missing" in refusal(release, capsys)


def test_checkpoint_without_a_codec_is_not_served(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(release, release.parent / "out")
    del words[words.index("--codec") : words.index("--codec") + 2]
    assert main(words) == 0
    assert "codec/ is missing: the server needs it" in capsys.readouterr().out
    assert make_repository(["--checkpoint", words[-1], "--out", str(release.parent / "served")]) == 1
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    assert said.count("\n") == 1


def test_decoder_with_missing_voices_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = convert(tmp_path)
    path = checkpoint / "codec" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("voices.1.")}
    save_file(tensors, path)
    assert make_repository(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "served")]) == 1
    assert "expected the voices of the model, default, anna, got 1 voices" in capsys.readouterr().err


def test_decoder_with_different_voice_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = convert(tmp_path)
    path = checkpoint / "codec" / "config.json"
    path.write_text(path.read_text().replace("anna", "berta"))
    assert make_repository(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "served")]) == 1
    assert "the voices of the model, default, anna, got 2 voices, ['default', 'berta']" in capsys.readouterr().err


def heard(**changes: object) -> dict[str, Any]:
    stored = voice(9)
    return stored | {"gen": stored["gen"] | changes}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"t3": voice(9)["t3"]}, "voice anna: expected the tensors gen.prompt_token, gen.prompt_feat, gen.embedding"),
        (heard(embedding=None), "voice anna: expected the tensors gen.prompt_token"),
        (heard(embedding=torch.ones(1, 190)), "voices.1.speaker [190] instead of [192]"),
        (heard(prompt_token=torch.full((1, 13), 6561)), "voice anna: prompt_token: expected codes of shape [1, n]"),
        (heard(prompt_token=torch.ones(1, 1001, dtype=torch.int64)), "n <= 1000, in [0, 6561), got shape [1, 1001]"),
        (heard(prompt_feat=torch.ones(1, 25, 80)), "prompt_feat: expected shape [1, 26, mels], got [1, 25, 80]"),
        (heard(prompt_feat=torch.ones(1, 26, 79)), "voices.1.mel [79, 26] instead of [80, 26]"),
        *by_night(
            (heard(prompt_token=torch.ones(1, 13)), "voice anna: prompt_token: expected codes of shape [1, n]"),
            (heard(prompt_feat=torch.full((1, 26, 80), torch.nan)), f"gen.prompt_feat: {NUMBERS}"),
            (heard(embedding=torch.full((1, 192), -torch.inf)), f"gen.embedding: {NUMBERS}"),
            (heard(prompt_token=torch.ones(1, 13, dtype=torch.bool)), NUMBERS),
        ),
        # broadcast: a file of some bytes that claims 4 TB
        (
            heard(embedding=torch.ones(1).expand(1, 1 << 40)),
            f"gen.embedding: {NUMBERS}",
        ),
    ],
)
def test_voice_without_s3gen_tensors_is_refused(
    release: Path, stored: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "voices" / "anna.pt"
    path.unlink()
    torch.save(stored, path)
    assert message in refusal(release, capsys)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("flow.encoder_proj.bias"), "missing: flow.encoder_proj.bias"),
        (lambda t: t.pop("flow.input_embedding.weight"), "flow.input_embedding.weight: expected a tensor of 2 dim"),
        (lambda t: t.update({"flow.input_embedding.weight": torch.ones(99, 16)}), "expected 6561 codes, got 99"),
        (lambda t: t.update({"mel2wav.more": torch.ones(1)}), "unknown: mel2wav.more"),
        (lambda t: t.update({"flow.encoder_proj.bias": torch.ones(3)}), "wrong shape: flow.encoder_proj.bias [3]"),
        # empty tensors that claim sizes, of which noise would be drawn
        (
            lambda t: t.update({"flow.spk_embed_affine_layer.weight": torch.ones(1 << 40, 0)}),
            "flow.spk_embed_affine_layer.weight: expected sizes in [1, 32768], got [1099511627776, 0]",
        ),
        (
            lambda t: t.update({"flow.spk_embed_affine_layer.weight": torch.ones(4096, 1)}),
            "flow.spk_embed_affine_layer.weight: expected at most 512 mels, got 4096",
        ),
        (
            lambda t: t.update({f"{ATTENTION}.to_q.weight": torch.ones(65, 16)}),
            "to_q.weight: expected a multiple of 64 rows, got 65",
        ),
        (
            lambda t: t.update({"tokenizer.encoder.conv1.weight": torch.ones(0, 128, 3)}),
            "conv1.weight: expected a multiple of 64 in [64, 16384], got 0",
        ),
    ],
)
def test_error_names_mismatched_s3gen_tensors(
    release: Path, edit: Callable[[Tensors], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "s3gen.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)
    assert message in refusal(release, capsys)


def test_release_without_s3gen_is_refused(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "s3gen.safetensors").unlink()
    assert "s3gen.safetensors is missing" in refusal(release, capsys)


def test_newer_releases_require_a_config(release: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["csm", "--model", str(release / "t3_cfg.safetensors"), "--tokenizer", str(release)]
    assert main([*words, "--out", str(tmp_path / "other")]) == 1
    assert "--config: expected the config.yaml or config.json of csm, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name", "dtype", "message"),
    [
        ("ve.safetensors", "lstm.bias_hh_l0", torch.complex64, "hearing: expected one of the dtypes F64, F32"),
        ("s3gen.safetensors", "flow.encoder_proj.bias", torch.uint16, "got torch.uint16 in flow.encoder_proj.bias"),
        (T3_FILE, "tfmr.layers.0.mlp.up_proj.weight", torch.complex64, "up_proj.weight: expected real numbers, got"),
    ],
)
def test_unsupported_tensor_dtypes_are_refused(
    release: Path, file: str, name: str, dtype: torch.dtype, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / file
    tensors = load_file(path)
    tensors[name] = tensors[name].abs().to(dtype)
    path.unlink()
    save_file(tensors, path)
    assert message in refusal(release, capsys)
