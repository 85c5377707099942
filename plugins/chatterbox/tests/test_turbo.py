"""Chatterbox Turbo and Nano: releases, prompts with tags, and recorded voices encoded as by the authors' code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.chatterbox.lab.random_chatterbox import (
    PUBLISHED_NANO,
    PUBLISHED_TURBO,
    TAGS,
    TURBO,
    Gpt2Sizes,
    convert_turbo,
    turbo_shapes,
    voice,
    write_turbo,
)
from plugins.chatterbox.tests.chatterbox_release import RELEASES, REPLIES, opened, write
from plugins.chatterbox.tests.chatterbox_voices import at_24_khz, authors, networks
from stretto.convert.command import main
from stretto.encoders.loudness import loudness
from stretto.errors import InvalidRequest
from stretto.family.conversion import Contents, Release
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.weights.loading import open_tensors, shapes_read
from stretto_chatterbox.convert import convert as convert_release
from stretto_chatterbox.family import TurboVocabulary
from stretto_chatterbox.turbo import turbo_tokenizer
from stretto_chatterbox.voices import TurboRecordingEncoder
from tests.refused_conversion import refused

LONG = ("even", "silence", "long", "stereo")  # recordings of more than 5 s
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_turbo(tmp_path_factory.mktemp("turbo"))


@pytest.fixture(scope="module")
def known(checkpoint: Path) -> TurboVocabulary:
    return TurboVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


@pytest.mark.parametrize("release", ["turbo", "nano"])
def test_prompt_rows_are_speaker_codes_text_and_start(release: str, checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint if release == "turbo" else RELEASES[release](tmp_path)
    known = TurboVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    template, family = opened(checkpoint)
    table = open_tensors(checkpoint)["transformer.wte.weight"]
    for reply in REPLIES[release]:
        ids = write(template, family, reply["text"], reply["voice"])[:, 0].tolist()
        codes = known.voices[reply["voice"]]
        assert ids[0] == known.speaker(reply["voice"])
        assert ids[1 : 1 + len(codes)] == [known.codes.start + code for code in codes]
        assert ids[1 + len(codes) :] == [*reply["ids"], known.start]
        assert float(table[ids[0]].abs().sum()) == pytest.approx(reply["voice_rows"][0], rel=1e-5)
    assert not table[known.pad].any()


@pytest.mark.parametrize(("sizes", "num_heads"), [(PUBLISHED_TURBO, 16), (PUBLISHED_NANO, 12)])
def test_published_turbo_layouts_are_converted(sizes: Gpt2Sizes, num_heads: int, tmp_path: Path) -> None:
    """Meta tensors have all published shapes: 24 layers of width 1024, and 12 layers of width 768."""
    release = write_turbo(tmp_path / "release")
    shapes = turbo_shapes(sizes)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    given = Release("chatterbox", release / TURBO.file, None, release)
    tokenizer = turbo_tokenizer(release)
    made = convert_release(given, Contents({}, tensors, tokenizer, {}, "float32"))
    record = {name: made.record[f"{name}"] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    assert list(record.values()) == [sizes.width, sizes.num_layers, num_heads]
    assert made.record["max_position_embeddings"] == 8196
    assert made.record[VOCABULARY]["max_model_len"] == 4096
    written = {part.name: part.written for part in made.plan.values()}
    num_rows = 50276 + 1 + 6563 + 2  # text, pad, speech, speakers of two voices
    assert made.record["vocab_size"] == num_rows
    assert written["transformer.wte.weight"] == (num_rows, sizes.width)
    assert written["audio_head.bias"] == (6563,)
    assert written[f"transformer.h.{sizes.num_layers - 1}.mlp.c_fc.weight"] == (sizes.width, 4 * sizes.width)
    assert shapes.keys() <= shapes_read(made.plan).keys() | {*made.dropped}


def test_known_tags_are_tokens_and_others_are_text(checkpoint: Path, known: TurboVocabulary) -> None:
    assert family_at(checkpoint).tags == known.tags == TAGS
    template, family = opened(checkpoint)
    number = len(known.voices["default"])
    tagged, plain = (
        write(template, family, text)[1 + number : -1, 0].tolist() for text in ("A [laugh] b", "A [bark] b")
    )
    tags = range(known.num_text_ids - len(TAGS), known.num_text_ids)
    assert [token for token in tagged if token in tags] == [tags[TAGS.index("[laugh]")]]
    assert not set(plain) & {*tags}


@pytest.mark.parametrize(("text", "expected"), [(" \n", "at least one character"), ("b" * 2049, "at most 2048")])
def test_unsuitable_texts_are_refused(text: str, expected: str, checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        write(*opened(checkpoint), text)


def test_options_of_other_releases_are_refused(preprocessor: Preprocessor) -> None:
    for options, field in (
        ('{"exaggeration": 0.7}', "options.exaggeration"),
        ('{"language": "en"}', "options.language"),
    ):
        with pytest.raises(InvalidRequest, match=field):
            preprocessor.prepare(RawRequest(text="hello", options=options))


@pytest.fixture(scope="module")
def recording_encoder(checkpoint: Path) -> TurboRecordingEncoder:
    made = networks(TurboRecordingEncoder)
    tensors = load_file(checkpoint / "hearing" / "model.safetensors")
    made.condition = {name: tensor for name, tensor in tensors.items() if "cond_enc" in name}
    return made


@pytest.mark.parametrize("name", LONG)
def test_turbo_voice_encodings_match_the_authors(name: str, recording_encoder: TurboRecordingEncoder) -> None:
    """Loudness is measured as by pyloudnorm, which the authors use."""
    stored = {key.removeprefix(f"turbo.{name}."): each for key, each in authors().items() if f"turbo.{name}." in key}
    pcm = at_24_khz(name)
    voice = recording_encoder.voice(recording_encoder.encode(pcm))
    np.testing.assert_array_equal(voice.codes, stored["t3_tokens"])
    tokens, mel, x_vector = voice.sound.arrays()
    np.testing.assert_array_equal(tokens, stored["prompt_token"])
    np.testing.assert_allclose(mel.mean(0), stored["mel_mean"], atol=3e-2)  # one frame may be dropped
    np.testing.assert_allclose(x_vector, stored["embedding"], atol=1e-5)
    weight, bias = (recording_encoder.condition[f"cond_enc.spkr_enc.{part}"].numpy() for part in ("weight", "bias"))
    np.testing.assert_allclose(voice.rows[0], weight @ stored["speaker_emb"] + bias, atol=1e-4)
    assert loudness(recording_encoder.levelled(pcm), 24_000) == pytest.approx(-27, abs=1e-3)


def test_loudness_of_silence_is_minus_infinity() -> None:
    assert loudness(np.zeros(24_000, np.float32), 24_000) == -np.inf


def asked(pcm: np.ndarray) -> RawRequest:
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "hello"}]
    return RawRequest(messages=json.dumps(turns), pcm_in=pcm, sample_rate=24_000)


def test_turbo_prompt_uses_the_recorded_voice(preprocessor: Preprocessor, known: TurboVocabulary) -> None:
    prompt = preprocessor.prepare(asked(at_24_khz("even")))
    (audio,) = prompt.audios
    assert (audio.first_row, audio.num_rows) == (0, 1)
    codes = authors()["turbo.even.t3_tokens"]
    assert prompt.rows[1 : 1 + len(codes), 0].tolist() == [known.codes.start + code for code in codes]
    assert prompt.sound is not None
    with pytest.raises(InvalidRequest, match=r"expected more than 5.0 s, got 5.0000 s"):
        preprocessor.prepare(asked(np.tile(at_24_khz("even"), 2)[: 5 * 24_000]))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_turbo(tmp_path_factory.mktemp("turbo_release") / "release")


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the release whose files a test may replace."""
    return Path(shutil.copytree(published, tmp_path / "release"))


def refusal(release: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one-line message of a failed conversion of the folder."""
    out = release.parent / "out"
    return refused(["chatterbox", "--model", str(release), "--out", str(out)], out, capsys)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("speech_head.bias"), "missing: speech_head.bias"),
        (lambda t: t.pop("tfmr.h.1.ln_2.weight"), "missing: tfmr.h.1.ln_2.weight"),
        (lambda t: t.update(more=torch.ones(1)), "unknown: more"),
        (lambda t: t.update({"speech_emb.weight": torch.ones(8194, 128)}), "expected 6563 ids, got 8194"),
        (
            lambda t: t.update({"tfmr.wpe.weight": torch.ones(9, 100)}),
            "a multiple of 64, at most 16384, and positions, got shape [9, 100]",
        ),
        (lambda t: t.update({"text_emb.weight": torch.ones(9, 128)}), "a tokenizer of at most 9 tokens"),
    ],
)
def test_error_names_mismatched_tensors(
    release: Path, edit: Callable[[Tensors], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "t3_turbo_v1.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)
    assert message in refusal(release, capsys)


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def without_mixer(folder: Path) -> None:
    tensors = load_file(folder / "s3gen_meanflow.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "mixer" not in name}
    (folder / "s3gen_meanflow.safetensors").unlink()
    save_file(tensors, folder / "s3gen_meanflow.safetensors")


def other_voice(codes: torch.Tensor) -> Callable[[Path], None]:
    def store(folder: Path) -> None:
        made: dict[str, Any] = voice(5)
        made["t3"]["cond_prompt_speech_tokens"] = codes
        torch.save(made, folder / "conds.pt")

    return store


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: rename(folder, "t3_turbo_v1.safetensors", "other"), "expected one file t3_*.safetensors"),
        (
            lambda folder: shutil.copy(folder / "t3_turbo_v1.safetensors", folder / "t3_cfg.safetensors"),
            "got t3_cfg.safetensors, t3_turbo_v1.safetensors",
        ),
        (without_mixer, "expected a tensor that ends in time_embed_mixer.weight"),
        (
            lambda folder: (folder / "added_tokens.json").write_text('{"[laugh]": 900}'),
            "expected the next id, 262, got 900",
        ),
        (lambda folder: (folder / "merges.txt").unlink(), "merges.txt"),
        (other_voice(torch.full((1, 4), 6561)), "expected codes in [0, 6561)"),
        (other_voice(torch.zeros(1, 376, dtype=torch.int64)), "at most 375"),
    ],
)
def test_unsuitable_release_files_are_named(
    release: Path, edit: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(release)
    assert message in refusal(release, capsys)


def test_turbo_tokenizer_json_converts_to_the_same_tokenizer(release: Path, checkpoint: Path) -> None:
    """Tags may be marked as special tokens there."""
    record = json.loads((checkpoint / "tokenizer.json").read_text())
    for token in record["added_tokens"]:
        token["special"] = True
    (release / "tokenizer.json").write_text(json.dumps(record))
    out = release.parent / "out"
    assert main(["chatterbox", "--model", str(release), "--out", str(out)]) == 0
    assert json.loads((out / "tokenizer.json").read_text()) == json.loads((checkpoint / "tokenizer.json").read_text())


def tagged(names: list[str]) -> Callable[[Path], None]:
    """Return an edit that adds these tags to a release."""

    def write(folder: Path) -> None:
        first = len(json.loads((folder / "vocab.json").read_text()))
        (folder / "added_tokens.json").write_text(json.dumps({name: first + at for at, name in enumerate(names)}))

    return write


def linked(name: str) -> Callable[[Path], None]:
    """Return an edit that replaces a release file with a link to a copy outside of the release."""

    def link(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)

    return link


def nested(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (linked("added_tokens.json"), "added_tokens.json: expected a file of this release, got a link to"),
        (linked("vocab.json"), "vocab.json: expected a file of this release, got a link to"),
        (linked("conds.pt"), "conds.pt: expected a file of this release, got a link to"),
        (linked("voices"), "voices: expected a folder of this release, got a link to"),
        (tagged(["[it's]"]), "expected at most 1024 added tokens of 1 to 64 ASCII characters"),
        (tagged(["[a\\b]"]), "expected at most 1024 added tokens of 1 to 64 ASCII characters"),
        (tagged(["[笑]"]), "expected at most 1024 added tokens of 1 to 64 ASCII characters"),
        (tagged([f"[{number}]" for number in range(20_000)]), "expected at most 1024 added tokens"),
        (nested, "tokenizer.json: expected a JSON object, got RecursionError"),
    ],
)
def test_hostile_files_are_refused(
    release: Path, edit: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(release)
    assert message in refusal(release, capsys)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "conds.pt", "s3gen_meanflow.safetensors"])
def test_fifo_in_a_release_is_refused(release: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (release / name).unlink(missing_ok=True)
    os.mkfifo(release / name)
    assert "a FIFO, socket or device" in refusal(release, capsys)


def empty(width: int, num_positions: int = 512) -> Callable[[Tensors], None]:
    """Return an edit that changes the width of all T3 tensors; if a size is 0, no values are stored."""

    def edit(tensors: Tensors) -> None:
        shapes = turbo_shapes(Gpt2Sizes("", width, 2, num_positions=num_positions))
        tensors |= {name: torch.zeros(shape) for name, shape in shapes.items()}

    return edit


@pytest.mark.parametrize("edit", [empty(0), empty(128, num_positions=0)])
def test_zero_width_model_is_refused(
    release: Path, edit: Callable[[Tensors], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "t3_turbo_v1.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)
    assert "tfmr.wpe.weight: expected layers of a width that is a multiple of 64" in refusal(release, capsys)
