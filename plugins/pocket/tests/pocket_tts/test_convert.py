"""Conversion of Pocket TTS is strict, and recovers the rows of voices from their keys and values."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plugins.pocket.lab.random_pocket import VOICES, config, voice_rows, write_release
from plugins.pocket.tests.pocket_layouts import differing_files, write_pocket
from plugins.pocket.tests.pocket_release import KINDS, cloning
from stretto.convert.command import main as convert
from stretto.errors import InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.testing.releases import Edit, edited
from stretto_pocket.pocket_tts.convert import CLONING
from stretto_pocket.pocket_tts.family import PocketVocabulary
from tests.refused_conversion import Refuses
from tests.tiers import by_night


def words(release: Path) -> list[str]:
    files = ("--model", str(release), "--config", str(release / "config.yaml"), "--tokenizer", str(release))
    return ["pocket-tts", *files, "--out", str(release.parent / "out")]


def run(release: Path, out: Path) -> int:
    return convert([*words(release), "--out", str(out)])


@pytest.mark.parametrize("kind", KINDS)
def test_voice_rows_are_recovered_up_to_their_mean(tmp_path: Path, kind: str) -> None:
    """They are known except for their mean, which a LayerNorm removes."""
    release = write_release(tmp_path / "release", kind)
    assert run(release, tmp_path / "out") == 0
    known = PocketVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    (shard,) = (tmp_path / "out").glob("model-*.safetensors")
    table = load_file(shard)["model.embed_tokens.weight"]
    assert len(table) == known.vocab_size
    for name, number in VOICES.items():
        rows, expected = table[list(known.voice(name))], voice_rows(config(kind), name)
        assert len(rows) == number
        centred = expected - expected.mean(1, keepdim=True)
        assert (rows - rows.mean(1, keepdim=True) - centred).abs().max() < 2e-5 * centred.std()
    assert not table[[*known.frames, known.end]].any()


MODEL, VOICE = "model.safetensors", "embeddings/alba.safetensors"
CACHE = "transformer.layers.1.self_attn/cache"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (MODEL, lambda t: t.pop("flow_lm.out_norm.bias"), "missing: flow_lm.out_norm.bias"),
        (MODEL, lambda t: t.update({"flow_lm.more": torch.zeros(2)}), "unknown: flow_lm.more"),
        (
            MODEL,
            lambda t: t.update({"flow_lm.input_linear.weight": torch.zeros(3, 8)}),
            "wrong shape: flow_lm.input_linear.weight [3, 8] instead of [64, 8]",
        ),
        (MODEL, lambda t: t.pop("flow_lm.bos_emb"), "missing: flow_lm.bos_emb"),
        (
            MODEL,
            lambda t: t.update({"flow_lm.bos_emb": torch.zeros(3)}),
            "wrong shape: flow_lm.bos_emb [3] instead of [8]",
        ),
        (MODEL, lambda t: t.pop("mimi.decoder.model.0.conv.weight"), "missing: mimi.decoder.model.0.conv.weight"),
        (VOICE, lambda t: t.pop(CACHE), f"alba.safetensors: expected {CACHE} [2, 1, n, 2, 32]"),
        (VOICE, lambda t: t.update({CACHE: t[CACHE] + 0.1}), "expected keys and values of this release within 0.001"),
        (
            VOICE,
            lambda t: t.update({CACHE: t[CACHE].long()}),
            "up to 512 rows of floating-point numbers",
        ),
        (
            VOICE,
            lambda t: t.update({CACHE: t[CACHE] * torch.nan}),
            "up to 512 rows of floating-point numbers",
        ),
        (
            VOICE,
            lambda t: t.update({CACHE: t[CACHE] * 1e30}),
            "rows of floating-point numbers of magnitude at most 10000",
        ),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    tmp_path: Path, refuses: Refuses, file: str, edit: Edit, message: str
) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / file) as tensors:
        edit(tensors)
    refuses(words(release), message)


@pytest.mark.parametrize("file", [MODEL, VOICE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *by_night(torch.float16)])
@pytest.mark.parametrize("kind", ["english", *by_night("english_2m")])
def test_voices_match_a_release_of_another_precision(
    tmp_path: Path, refuses: Refuses, kind: str, dtype: torch.dtype, file: str
) -> None:
    """Voices may have been exported before the weights were rounded. Voices of other weights are still refused."""
    release = write_release(tmp_path / "release", kind)
    with edited(release / file) as tensors:
        for name, stored in tensors.items():
            if stored.is_floating_point():
                tensors[name] = stored.to(dtype)
    assert run(release, tmp_path / "converted") == 0
    (shard,) = (tmp_path / "converted").glob("model-*.safetensors")
    ids = PocketVocabulary.from_record(config_at(tmp_path / "converted")[VOCABULARY]).voice("alba")
    rows, expected = load_file(shard)["model.embed_tokens.weight"][list(ids)], voice_rows(config(kind), "alba")
    centred = expected - expected.mean(1, keepdim=True)
    difference = (rows - rows.mean(1, keepdim=True) - centred).square().mean().sqrt()
    assert difference < 2 * torch.finfo(dtype).eps * centred.std()
    with edited(release / MODEL) as tensors:
        for name, stored in tensors.items():
            if name.endswith("in_proj.weight"):
                tensors[name] = stored.roll(1, 1)
    refuses(words(release), "expected keys and values of this release within")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("flow", {"depth": 3, "dim": 32, "type": "diffusion"}, "flow.type: expected one of lsd, flow_matching"),
        ("lookup_table", {"dim": 64, "n_bins": 199}, "expected 199 tokens, got 200"),
    ],
)
def test_convert_error_names_the_unsupported_config_value(
    tmp_path: Path, refuses: Refuses, key: str, value: object, message: str
) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / "config.yaml") as record:
        record["flow_lm"][key] = value
    refuses(words(release), message)


def test_encoder_is_kept_if_the_release_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A release without voice cloning has zeros or no encoder tensors; wider latents do not fit into rows."""
    with_encoder, zeros, none, wide = (write_release(tmp_path / name) for name in ("with", "zeros", "none", "wide"))
    for release in (zeros, none):
        with edited(release / MODEL) as tensors:
            for name in [name for name in tensors if name.startswith(CLONING)]:
                tensors[name].zero_() if release is zeros else tensors.pop(name)
    with edited(wide / "config.yaml") as record:
        record["mimi"]["inner_dim"] = 24
    for release, clones in ((with_encoder, True), (zeros, False), (none, False), (wide, False)):
        out = tmp_path / f"out {release.name}"
        assert run(release, out) == 0, capsys.readouterr().err
        assert PocketVocabulary.from_record(config_at(out)[VOCABULARY]).clones == clones
        assert ("encoder.model.0.conv.weight" in load_file(out / "codec" / MODEL)) == clones
        (shard,) = out.glob("model-*.safetensors")
        assert ("voice_connector.weight" in load_file(shard)) == clones


def test_release_with_encoder_converts_without_voices(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    for path in (release / "embeddings").iterdir():
        path.unlink()
    assert run(release, tmp_path / "out") == 0
    preprocessor = Preprocessor(tmp_path / "out")
    assert preprocessor.prepare(cloning("Hello.")).rows[1:16, 1:].any()
    with pytest.raises(InvalidRequest, match="messages: expected a system turn with audio"):
        preprocessor.prepare(RawRequest(text="Hello."))


@pytest.mark.parametrize(
    ("folder", "order"), [("german_24l", ("juergen", "aa", "alba")), ("english", ("alba", "aa", "juergen"))]
)
def test_default_voice_matches_the_language(tmp_path: Path, folder: str, order: tuple[str, ...]) -> None:
    embeddings = write_release(tmp_path / folder) / "embeddings"
    for name in ("aa", "juergen"):
        (embeddings / f"{name}.safetensors").write_bytes((embeddings / "jean.safetensors").read_bytes())
    (embeddings / "jean.safetensors").unlink()
    assert convert(["pocket-tts", "--model", str(tmp_path / folder), "--out", str(tmp_path / "out")]) == 0
    known = PocketVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    assert tuple(name for name, _ in known.voices) == order


def test_missing_release_config_is_reported(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.yaml").rename(release / "english.yml")
    command = ["pocket-tts", "--model", str(release), "--out", str(tmp_path / "out")]
    refuses(command, "--config: expected the release's YAML file", "got none")
    (release / "config.json").write_text("{}")
    refuses(command, "--config: expected the release's YAML file", "config.json without flow_lm")


def test_packaged_config_is_chosen_by_the_name_of_the_folder(tmp_path: Path, refuses: Refuses) -> None:
    """The random release is smaller than the published one, so the published config does not fit."""
    release = write_release(tmp_path / "english")
    (release / "config.yaml").unlink()
    command = ["pocket-tts", "--model", str(release), "--out", str(tmp_path / "out")]
    refuses(command, "expected 4000 tokens, got")


def test_a_release_without_voices_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release", clones=False)
    for path in (release / "embeddings").iterdir():
        path.unlink()
    refuses(words(release), "expected at least one voice, NAME.safetensors, got none")


def test_symlink_to_an_outside_voice_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    (release / VOICE).rename(tmp_path / "alba")
    (release / VOICE).symlink_to(tmp_path / "alba")
    refuses(words(release), "alba.safetensors: expected a file of this release, got a link to")


@pytest.mark.parametrize("has_encoder", [True, *by_night(False)])
def test_transformers_layout_gives_the_same_checkpoint(tmp_path: Path, has_encoder: bool) -> None:
    authors, folder, codec = write_pocket(tmp_path, has_encoder)
    assert convert(["pocket-tts", "--model", str(authors), "--out", str(tmp_path / "one")]) == 0
    command = ["pocket-tts", "--model", str(folder), "--codec", str(codec), "--out", str(tmp_path / "other")]
    assert convert(command) == 0
    assert differing_files(tmp_path / "one", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("transformers/config.json", lambda c: c.update(hidden_act="gelu"), "hidden_act: expected 'gelu_pytorch_tanh'"),
        (
            "transformers/config.json",
            lambda c: c.update(audio_bos_token_id=3),
            "expected the last ids, 200 to 203, got",
        ),
        (
            "transformers/config.json",
            lambda c: c["flow_head_config"].update(flow_type="mean"),
            "flow_type: expected lsd or drifting, got 'mean'",
        ),
        (
            "transformers/config.json",
            lambda c: c["rope_parameters"].update(rope_type="yarn"),
            "rope_parameters.rope_type: expected 'default', got 'yarn'",
        ),
        (
            "transformers/generation_config.json",
            lambda c: c.update(num_flow_steps=4),
            "generation_config.json: num_flow_steps: expected 1, got 4",
        ),
        (
            "transformers/generation_config.json",
            lambda c: c.update(eos_threshold="high"),
            "generation_config.json: eos_threshold: expected a number, got 'high'",
        ),
        (
            "transformers/model.safetensors",
            lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"),
            "missing: model.layers.1.self_attn.k_proj.weight",
        ),
        (
            "transformers/model.safetensors",
            lambda t: t.update({"model.layers.1.self_attn.q_proj.weight": torch.zeros(32, 64)}),
            "wrong shape: model.layers.1.self_attn.q_proj.weight [32, 64] instead of [64, 64]",
        ),
        (
            "transformers/model.safetensors",
            lambda t: t.update({"model.embed_tokens.weight": torch.zeros(203, 64)}),
            "wrong shape: model.embed_tokens.weight [203, 64] instead of [204, 64]",
        ),
        ("transformers/model.safetensors", lambda t: t.pop("model.bos_latent"), "missing: model.bos_latent"),
        ("transformers/model.safetensors", lambda t: t.update({"more": torch.zeros(2)}), "unknown: more"),
        (
            "codec/config.json",
            lambda c: c.update(model_type="mimi"),
            "expected 'pocket_tts_audio_tokenizer', got 'mimi'",
        ),
        ("codec/config.json", lambda c: c.update(latent_dim=9), "codec/config.json: latent_dim: expected 8, got 9"),
        ("codec/config.json", lambda c: c.update(num_filters="4"), "num_filters: expected an integer in [1, 1048575]"),
        ("codec/config.json", lambda c: c.update(upsampling_ratios=6), "expected a list of positive integers, got 6"),
        (
            "codec/model.safetensors",
            lambda t: t.pop("latent_proj.weight"),
            "codec: tensors do not match: missing: latent",
        ),
        (
            "codec/model.safetensors",
            lambda t: t.update({"more": torch.zeros(2)}),
            "codec: tensors do not match: unknown",
        ),
    ],
)
def test_error_names_the_field_of_transformers_layout(
    tmp_path: Path, refuses: Refuses, file: str, edit: Edit, message: str
) -> None:
    _, folder, codec = write_pocket(tmp_path)
    with edited(tmp_path / file) as content:
        edit(content)
    refuses(["pocket-tts", "--model", str(folder), "--codec", str(codec), "--out", str(tmp_path / "out")], message)
