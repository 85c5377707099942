"""Chatterbox Turbo and Nano equal the authors' loops: prompts with tags, and codes penalized after top-k and top-p.

Recorded voices are encoded as by the authors' code.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.chatterbox.lab.random_chatterbox import (
    NANO,
    PUBLISHED_NANO,
    PUBLISHED_TURBO,
    TAGS,
    TURBO,
    Gpt2Sizes,
    turbo_shapes,
    voice,
    write_turbo,
)
from plugins.chatterbox.tests.chatterbox_release import REPLIES, inputs_of, known_at, replies, table_of
from plugins.chatterbox.tests.chatterbox_voices import at_24_khz, authors, networks
from stretto.encoders.loudness import loudness
from stretto.errors import InvalidRequest
from stretto.family.conversion import Contents, Release
from stretto.family.plugin import VOCABULARY
from stretto.family.prompting import stream0_rows
from stretto.preprocessing.request import RawRequest
from stretto.testing.limits import asked
from stretto.testing.releases import Edit, SmallRelease
from stretto.testing.suite import FamilyCase
from stretto.weights.loading import shapes_read
from stretto_chatterbox import PLUGIN
from stretto_chatterbox.convert import convert
from stretto_chatterbox.family import TurboVocabulary
from stretto_chatterbox.turbo import turbo_tokenizer
from stretto_chatterbox.voices import TurboRecordingEncoder
from tests.family_suite import FamilySuite

LONG = ("even", "silence", "long", "stereo")  # recordings of more than 5 s
T3 = f"release/{TURBO.file}"
S3GEN = "release/s3gen_meanflow.safetensors"
ADDED = "added_tokens.json"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, size: str) -> list[str]:
    """Write a release; the language model's file has the same name in both."""
    sizes = {"turbo": TURBO, "nano": replace(NANO, file=TURBO.file)}[size]
    return ["chatterbox", "--model", str(write_turbo(folder / "release", sizes))]


def vocabulary_of(release: SmallRelease) -> TurboVocabulary:
    vocabulary = known_at(release.checkpoint)
    assert isinstance(vocabulary, TurboVocabulary)
    return vocabulary


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """The speaker, the codes of the voice, the text, and a start row."""
    vocabulary = vocabulary_of(release)
    expected = dict[str, tuple[dict[str, Any], np.ndarray]]()
    for reply in REPLIES[release.size]:
        codes = [vocabulary.codes.start + code for code in vocabulary.voices[reply["voice"]]]
        ids = [vocabulary.speaker(reply["voice"]), *codes, *reply["ids"], vocabulary.start]
        expected[reply["text"]] = (inputs_of(reply), stream0_rows(release.family.layout, ids))
    return expected


def set_width(width: int, num_positions: int = 512) -> Edit:
    """Return an edit that changes the width of all T3 tensors; if a size is 0, no values are stored."""

    def edit(tensors: Tensors) -> None:
        shapes = turbo_shapes(Gpt2Sizes("", width, 2, num_positions=num_positions))
        tensors |= {name: torch.zeros(shape) for name, shape in shapes.items()}

    return edit


def remove_mixer(tensors: Tensors) -> None:
    for name in [name for name in tensors if "mixer" in name]:
        del tensors[name]


def write_text(folder: Path, name: str, text: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(text)


def edit_codes(codes: torch.Tensor) -> Callable[[Path], None]:
    """Return an edit of the codes of the default voice."""

    def edit(folder: Path) -> None:
        stored: dict[str, Any] = voice(5)
        stored["t3"]["cond_prompt_speech_tokens"] = codes
        (folder / "conds.pt").unlink()
        torch.save(stored, folder / "conds.pt")

    return edit


def add_tags(*names: str) -> Callable[[Path], None]:
    """Return an edit that adds these tags to a release."""

    def edit(folder: Path) -> None:
        first = len(json.loads((folder / "vocab.json").read_text()))
        write_text(folder, ADDED, json.dumps({name: first + number for number, name in enumerate(names)}))

    return edit


def link_outside(name: str) -> Callable[[Path], None]:
    """Return an edit that replaces a release file with a link to a copy outside of the release."""

    def edit(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)

    return edit


def make_fifo(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return edit


class TestTurbo(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("turbo", "nano"),
        weights=T3,
        may_be_sharded=False,
        # unused ones, and one without which it is another release
        unneeded_tensors=("text_head.weight", "tfmr.wte.weight", "tfmr.wpe.weight"),
        refused_edits=[
            (T3, lambda t: t.update({"speech_emb.weight": torch.ones(8194, 128)}), "expected 6563 ids, got 8194"),
            (
                T3,
                lambda t: t.update({"tfmr.wpe.weight": torch.ones(9, 100)}),
                "a multiple of 64, at most 16384, and positions, got shape [9, 100]",
            ),
            (T3, lambda t: t.update({"text_emb.weight": torch.ones(9, 128)}), "a tokenizer of at most 9 tokens"),
            *(
                (T3, edit, "tfmr.wpe.weight: expected layers of a width that is a multiple of 64")
                for edit in (set_width(0), set_width(128, num_positions=0))
            ),
            (S3GEN, remove_mixer, "expected a tensor that ends in time_embed_mixer.weight"),
            (
                "release",
                lambda folder: (folder / TURBO.file).rename(folder / "other"),
                "expected one file t3_*.safetensors",
            ),
            (
                "release",
                lambda folder: shutil.copy(folder / TURBO.file, folder / "t3_cfg.safetensors"),
                "got t3_cfg.safetensors, t3_turbo_v1.safetensors",
            ),
            (
                "release",
                lambda folder: write_text(folder, ADDED, '{"[laugh]": 900}'),
                "expected the next id, 262, got 900",
            ),
            ("release", lambda folder: (folder / "merges.txt").unlink(), "merges.txt"),
            ("release", edit_codes(torch.full((1, 4), 6561)), "expected codes in [0, 6561)"),
            ("release", edit_codes(torch.zeros(1, 376, dtype=torch.int64)), "at most 375"),
            *(
                ("release", link_outside(name), f"{name}: expected a {kind} of this release, got a link to")
                for name, kind in (
                    (ADDED, "file"),
                    ("vocab.json", "file"),
                    ("conds.pt", "file"),
                    ("voices", "folder"),
                )
            ),
            *(
                ("release", add_tags(tag), "expected at most 1024 added tokens of 1 to 64 ASCII characters")
                for tag in ("[it's]", "[a\\b]", "[笑]")
            ),
            ("release", add_tags(*map("[{}]".format, range(20_000))), "expected at most 1024 added tokens"),
            (
                "release",
                lambda folder: write_text(folder, "tokenizer.json", "[" * 100_000 + "]" * 100_000),
                "tokenizer.json: expected a JSON object, got RecursionError",
            ),
            *(
                ("release", make_fifo(name), f"{name}: expected a regular file, got a FIFO, socket or device")
                for name in ("tokenizer.json", "vocab.json", "conds.pt", "s3gen_meanflow.safetensors")
            ),
        ],
        prompts=prompts,
        refused_inputs=[(asked(" \n"), "text: expected text of at least one character")],
        replies=replies,
        engine={"max_model_len": 256},
        # memory for two of six replies
        tight={"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9, "max_model_len": 128},
    )

    def test_voice_rows_match_the_authors(self, releases: dict[str, SmallRelease]) -> None:
        for size, release in releases.items():
            vocabulary = vocabulary_of(release)
            table = table_of(release)
            for reply in REPLIES[size]:
                row = table[vocabulary.speaker(reply["voice"])]
                assert float(np.abs(row).sum()) == pytest.approx(reply["voice_rows"][0], rel=1e-5)
            assert not table[vocabulary.pad].any()

    def test_known_tags_are_tokens_and_others_are_text(self, release: SmallRelease) -> None:
        vocabulary = vocabulary_of(release)
        assert release.family.tags == vocabulary.tags == TAGS
        number = len(vocabulary.voices["default"])
        tagged, plain = (
            release.preprocessor.prepare(RawRequest(text=text)).rows[1 + number : -1, 0].tolist()
            for text in ("A [laugh] b", "A [bark] b")
        )
        tags = range(vocabulary.num_text_ids - len(TAGS), vocabulary.num_text_ids)
        assert [token for token in tagged if token in tags] == [tags[TAGS.index("[laugh]")]]
        assert not set(plain) & {*tags}

    def test_turbo_prompt_uses_the_recorded_voice(self, release: SmallRelease) -> None:
        prompt = release.preprocessor.prepare(RawRequest(**asked("hello", pcm=at_24_khz("even"))))
        (audio,) = prompt.audios
        assert (audio.first_row, audio.num_rows) == (0, 1)
        codes = authors()["turbo.even.t3_tokens"]
        first = vocabulary_of(release).codes.start
        assert prompt.rows[1 : 1 + len(codes), 0].tolist() == [first + code for code in codes]
        assert prompt.sound is not None
        too_short = RawRequest(**asked("hello", pcm=np.tile(at_24_khz("even"), 2)[: 5 * 24_000]))
        with pytest.raises(InvalidRequest, match=r"expected more than 5.0 s, got 5.0000 s"):
            release.preprocessor.prepare(too_short)

    @pytest.mark.parametrize("name", LONG)
    def test_turbo_voice_encodings_match_the_authors(self, release: SmallRelease, name: str) -> None:
        """Loudness is measured as by pyloudnorm, which the authors use."""
        encoder = networks(TurboRecordingEncoder)
        tensors = load_file(release.checkpoint / "hearing" / "model.safetensors")
        encoder.condition = {key: tensor for key, tensor in tensors.items() if "cond_enc" in key}
        prefix = f"turbo.{name}."
        stored = {key.removeprefix(prefix): array for key, array in authors().items() if prefix in key}
        pcm = at_24_khz(name)
        encoded = encoder.voice(encoder.encode(pcm))
        np.testing.assert_array_equal(encoded.codes, stored["t3_tokens"])
        tokens, mel, x_vector = encoded.sound.arrays()
        np.testing.assert_array_equal(tokens, stored["prompt_token"])
        np.testing.assert_allclose(mel.mean(0), stored["mel_mean"], atol=3e-2)  # one frame may be dropped
        np.testing.assert_allclose(x_vector, stored["embedding"], atol=1e-5)
        weight, bias = (encoder.condition[f"cond_enc.spkr_enc.{tensor}"].numpy() for tensor in ("weight", "bias"))
        np.testing.assert_allclose(encoded.rows[0], weight @ stored["speaker_emb"] + bias, atol=1e-4)
        assert loudness(encoder.levelled(pcm), 24_000) == pytest.approx(-27, abs=1e-3)

    def test_turbo_tokenizer_json_converts_to_the_same_tokenizer(
        self, release: SmallRelease, copied: SmallRelease
    ) -> None:
        """Tags may be marked as special tokens there."""
        record = json.loads((release.checkpoint / "tokenizer.json").read_text())
        special = [token | {"special": True} for token in record["added_tokens"]]
        (copied.folder / "release" / "tokenizer.json").write_text(json.dumps(record | {"added_tokens": special}))
        assert json.loads((copied.checkpoint / "tokenizer.json").read_text()) == record


@pytest.mark.parametrize(("sizes", "num_heads"), [(PUBLISHED_TURBO, 16), (PUBLISHED_NANO, 12)])
def test_published_turbo_layouts_are_converted(sizes: Gpt2Sizes, num_heads: int, tmp_path: Path) -> None:
    """Meta tensors have all published shapes: 24 layers of width 1024, and 12 layers of width 768."""
    folder = write_turbo(tmp_path / "release")
    shapes = turbo_shapes(sizes)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    contents = Contents({}, tensors, turbo_tokenizer(folder), {}, "float32")
    converted = convert(Release("chatterbox", folder / TURBO.file, None, folder), contents)
    record = converted.record
    numbers = [record[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    assert numbers == [sizes.width, sizes.num_layers, num_heads]
    assert record["max_position_embeddings"] == 8196
    assert record[VOCABULARY]["max_model_len"] == 4096
    written = {planned.name: planned.written for planned in converted.plan.values()}
    num_rows = 50276 + 1 + 6563 + 2  # text, pad, speech, speakers of two voices
    assert record["vocab_size"] == num_rows
    assert written["transformer.wte.weight"] == (num_rows, sizes.width)
    assert written["audio_head.bias"] == (6563,)
    assert written[f"transformer.h.{sizes.num_layers - 1}.mlp.c_fc.weight"] == (sizes.width, 4 * sizes.width)
    assert shapes.keys() <= shapes_read(converted.plan).keys() | {*converted.dropped}


def test_loudness_of_silence_is_minus_infinity() -> None:
    assert loudness(np.zeros(24_000, np.float32), 24_000) == -np.inf
