"""Kyutai TTS 1.6B: conversion of conditions and of two text streams, voices, and prompts."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.kyutai.lab.random_kyutai_tts import LARGE, NUM_VECTORS, VOICES, lm_shapes, write_release
from plugins.kyutai.tests.kyutai_tts.word_replies import WordReplies
from plugins.kyutai.tests.kyutai_tts_release import packed, replies, vocabulary
from stretto.convert.command import main
from stretto.convert.make_repository import profile
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.conversion import Converted
from stretto.family.plugin import config_at, family_at
from stretto.family.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt, SourceWord
from stretto.testing.releases import edited
from stretto_client.model_profile import ModelProfile
from stretto_kyutai.kyutai_tts.convert import DEFAULTS, guidance_scales, with_conditions
from stretto_kyutai.kyutai_tts.convert import vocabulary as vocabulary_of
from stretto_kyutai.kyutai_tts.family import END_OF_WORDS, TtsVocabulary
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript, unpack_words
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions
from stretto_kyutai.kyutai_tts.mechanism.track import WordTrack
from stretto_kyutai.kyutai_tts.prompt import vectors_at
from stretto_kyutai.kyutai_tts.words import WordStream, open_text_codec
from stretto_kyutai.moshi import convert as moshi
from tests.refused_conversion import Refuses, check_tensor_errors
from tests.tiers import by_night

SMALL = {"num_layers": 1, "depformer_num_layers": 1}
SUFFIX = ".1e68beda@240.safetensors"
# Numbers of kyutai/tts-1.6b-en_fr.
PUBLISHED = LARGE | {
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "context": 500,
    "text_card": 8000,
    "card": 2048,
    "n_q": 32,
    "dep_q": 32,
    "delays": [0, 0, *[2] * 31],
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 4,
    "depformer_dim_feedforward": 3072,
    "depformer_low_rank_embeddings": 128,
    "depformer_weights_per_step_schedule": [*range(8), *[8] * 8, *[9] * 8, *[10] * 8],
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
        "cfg": {"type": "lut", "lut": LARGE["conditioners"]["cfg"]["lut"] | {"dim": 16}},
        "control": {"type": "lut", "lut": LARGE["conditioners"]["control"]["lut"] | {"dim": 2048}},
    },
}
PUBLISHED_BYTES = 3_683_719_712  # of its file


def words(release: Path, out: Path) -> list[str]:
    return ["kyutai-tts", "--model", str(release), "--out", str(out)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("kyutai_tts"), base=LARGE, **SMALL)


@pytest.fixture(scope="module")
def checkpoint(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    assert main(words(release, out)) == 0
    return out


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def vectors_in(release: Path, voice: str) -> np.ndarray:
    """Return the vectors of a published voice, [n, W]."""
    return load_file(release / "voices" / f"{voice}{SUFFIX}")["speaker_wavs"][0].T.numpy()


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(next(checkpoint.glob("*.safetensors")))


def test_published_numbers_give_the_size_of_the_published_file() -> None:
    """A safetensors file has a header with all names, dtypes, shapes and offsets, padded to 8 bytes."""
    header, end = {}, 0
    for name, shape in sorted(lm_shapes(PUBLISHED).items()):
        dtype, size = ("F32", 4) if name.startswith("condition_provider.") else ("BF16", 2)
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    num_bytes = len(json.dumps(header, separators=(",", ":")))
    assert len(header) == 418
    assert 8 + num_bytes + -num_bytes % 8 + end == PUBLISHED_BYTES


def test_published_numbers_give_the_sizes_of_a_checkpoint() -> None:
    shapes = lm_shapes(PUBLISHED)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    known = replace(vocabulary_of(PUBLISHED), guidance_scales=guidance_scales(PUBLISHED), voice_shape=(125, 512))
    assert known.conditions == SpeakerConditions(8, 625, 512, (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0), 5)
    made = Converted({}, moshi.plan(PUBLISHED, known, tensors, repeated=(3,)), ())
    plan = with_conditions(made, PUBLISHED, known, tensors).plan
    written = {each.name: each.written for part in plan.values() for each in (part, *part.also)}
    assert written["model.embed_tokens.weight"] == (8004 + 32 * 2049 + 8000, 2048) == (known.vocab_size, 2048)
    assert written["depth.embed"] == (8001 + 31 * 2048 + 8000, 1024)
    assert written["model.layers.15.cross_attn.kv_proj.weight"] == (4096, 2048)
    assert written["conditions.sum.weight"] == (8, 2048)


def test_checkpoint_has_conditions_and_voices(checkpoint: Path) -> None:
    known, family = vocabulary(checkpoint), family_at(checkpoint)
    assert (known.ahead, known.voice_shape, known.delay_rows) == (2, (NUM_VECTORS, 16), 16)
    assert known.guidance_scales == (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert family.mechanism.conditions == SpeakerConditions(8, 5 * NUM_VECTORS, 16, known.guidance_scales, max_voices=5)
    assert family.voices == tuple(name.lower() for name in VOICES)
    assert family.second_ids == range(known.codes_end, known.vocab_size)
    assert len(family.second_ids) == 96
    assert (family.guided_streams, family.tasks[0].sampling.guidance_scale, family.tasks[0].system) == ((), 1.0, ())
    for name in VOICES:
        assert (checkpoint / "voices" / f"{name.lower()}.safetensors").exists()


def test_tables_of_two_text_streams_are_multiplied_out(release: Path, checkpoint: Path) -> None:
    published, made, known = load_file(release / LARGE["moshi_name"]), tensors_of(checkpoint), vocabulary(checkpoint)
    main_table, second = (published["text_emb.weight"] @ published[f"text_emb.out{n}.weight"].T for n in (1, 2))
    table = made["model.embed_tokens.weight"]
    assert len(table) == known.vocab_size
    torch.testing.assert_close(table[:96], main_table[:96])
    torch.testing.assert_close(table[known.wish_id], main_table[3])
    torch.testing.assert_close(table[known.initial_text], main_table[96])
    assert not table[[known.end_of_reply, known.nothing]].any()
    torch.testing.assert_close(table[known.codes_end :], second[:96])
    for k, first in enumerate(known.first_codes):
        assert torch.equal(table[first : first + 65], published[f"emb.{k}.weight"])


def test_depth_tables_of_low_rank_are_multiplied_out(release: Path, checkpoint: Path) -> None:
    """The published matrix `depformer_text_emb.low_rank` is not used if there are two text streams."""
    published, made = load_file(release / LARGE["moshi_name"]), tensors_of(checkpoint)
    text = published["depformer_text_emb.weight"]
    main_table, second = (text @ published[f"depformer_text_emb.out{n}.weight"].T for n in (1, 2))
    codes = [
        published[f"depformer_emb.{k}.weight"] @ published[f"depformer_emb.{k}.low_rank.weight"].T for k in range(11)
    ]
    expected = torch.cat([main_table[:96], main_table[3:4], *(each[:64] for each in codes), second[:96]])
    torch.testing.assert_close(made["depth.embed"], expected)


def check_conditions(published: dict[str, torch.Tensor], made: dict[str, torch.Tensor]) -> None:
    """Assert that the vectors of conditions are those of the release, in float32."""
    place = "condition_provider.conditioners"
    rows = {"cfg": slice(0, 7), "control": slice(0, 1)}
    expected = [
        published[f"{place}.{name}.embed.weight"][part] @ published[f"{place}.{name}.output_proj.weight"].T
        for name, part in rows.items()
    ]
    torch.testing.assert_close(made["conditions.sum.weight"], torch.cat(expected))
    assert torch.equal(made["conditions.project.weight"], published[f"{place}.speaker_wavs.output_proj.weight"])
    assert torch.equal(made["conditions.absent"], published[f"{place}.speaker_wavs.learnt_padding"][0, 0])


def test_conditions_and_attention_to_voices_are_converted(release: Path, checkpoint: Path) -> None:
    published, made = load_file(release / LARGE["moshi_name"]), tensors_of(checkpoint)
    check_conditions(published, made)
    stored, own = "transformer.layers.0", "model.layers.0"
    queries, keys_and_values = made[f"{own}.cross_attn.query_proj.weight"], made[f"{own}.cross_attn.kv_proj.weight"]
    assert (queries.shape, keys_and_values.shape) == ((64, 64), (128, 64))
    fused = torch.cat([queries, keys_and_values])  # heads are not rotated, so their rows keep their order
    assert torch.equal(fused, published[f"{stored}.cross_attention.in_proj_weight"])
    for name, to in (
        ("cross_attention.out_proj.weight", "cross_attn.o_proj.weight"),
        ("norm_cross.weight", "cross_norm.weight"),
        ("norm_cross.bias", "cross_norm.bias"),
    ):
        assert torch.equal(made[f"{own}.{to}"], published[f"{stored}.{name}"])


def test_conditions_stay_float32_in_a_bfloat16_release(copied: Path, tmp_path: Path) -> None:
    """The first tensor of such a release is float32, so the dtype is that of the embeddings."""
    with edited(copied / LARGE["moshi_name"]) as tensors:
        for name in [name for name in tensors if not name.startswith("condition_provider.")]:
            tensors[name] = tensors[name].bfloat16()
    assert main(words(copied, tmp_path / "out")) == 0
    made = tensors_of(tmp_path / "out")
    check_conditions(load_file(copied / LARGE["moshi_name"]), made)
    kinds = {name.startswith("conditions."): tensor.dtype for name, tensor in made.items()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert config_at(tmp_path / "out")["dtype"] == "bfloat16"


def conditioner(name: str, kind: str, **changed: Any) -> dict[str, Any]:
    """Return the release's conditioners, one of them with other settings."""
    record = LARGE["conditioners"]
    return {"conditioners": record | {name: record[name] | {kind: record[name][kind] | changed}}}


def fuser(**changed: Any) -> dict[str, Any]:
    """Return the release's fuser with other settings."""
    return {"fuser": LARGE["fuser"] | changed}


CFG_OF_ANOTHER_TYPE = {"conditioners": LARGE["conditioners"] | {"cfg": {"type": "tensor"}}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cross_attention": False}, "config.json: cross_attention: expected True, got False"),
        ({"conditioners": {"cfg": LARGE["conditioners"]["cfg"]}}, "conditioners: expected none, or cfg, control"),
        ({"conditioners": 5}, "config.json: conditioners: expected none, or cfg, control, speaker_wavs, got 5"),
        (CFG_OF_ANOTHER_TYPE, "config.json: conditioners.cfg.type: expected 'lut', got 'tensor'"),
        (conditioner("control", "lut", tokenizer="word"), "control.lut.tokenizer: expected 'noop', got 'word'"),
        (conditioner("control", "lut", possible_values=["bad"]), "values: expected 1 to 1 texts, including 'ok', got"),
        (conditioner("cfg", "lut", n_bins=0), "config.json: conditioners.cfg.lut.n_bins: expected 1 to 64, got 0"),
        (conditioner("cfg", "lut", n_bins=6), "conditioners.cfg.lut.possible_values: expected 1 to 6 texts, got"),
        (conditioner("cfg", "lut", possible_values=["1", "2.0"]), "expected different numbers from 0 to 100 with"),
        (conditioner("cfg", "lut", possible_values=["2.0", "2.0"]), "expected different numbers from 0 to 100"),
        (conditioner("cfg", "lut", dim=9), "conditioners.cfg.output_proj.weight [64, 8] instead of [64, 9]"),
        (conditioner("speaker_wavs", "tensor", dim=17), "expected speaker_wavs [1, 17, 1 to 1024] of F32 or BF16"),
        (conditioner("speaker_wavs", "tensor", dim=None), "conditioners.speaker_wavs.tensor.dim: expected an integer"),
        ({"fuser": None}, "config.json: fuser.cross_attention_pos_emb is missing"),
        (fuser(cross_attention_pos_emb=False), "config.json: fuser.cross_attention_pos_emb: expected True, got False"),
        (fuser(cross_attention_pos_emb_scale=2), "fuser.cross_attention_pos_emb_scale: expected 1, got 2"),
        (fuser(sum=["cfg"]), "config.json: fuser.sum: expected ['cfg', 'control'], got ['cfg']"),
        (fuser(prepend=["cfg"]), "config.json: fuser.prepend: expected [], got ['cfg']"),
        ({"demux_second_stream": False}, "second_stream_ahead: expected 0 without demux_second_stream, got 2"),
        ({"tts_config": {"audio_delay": 1.28}}, "expected an integer in [1, 8] with demux_second_stream, got None"),
        (
            {"tts_config": {"audio_delay": 1.28, "second_stream_ahead": 9}},
            "tts_config.second_stream_ahead: expected an integer in [1, 8] with demux_second_stream, got 9",
        ),
        ({"model_id": {"sig": "1e68beda", "epoch": 1}}, "expected files NAME.1e68beda@1.safetensors of voices"),
    ],
)
def test_other_conditions_are_refused_by_field(
    copied: Path, tmp_path: Path, changed: dict[str, Any], message: str, refuses: Refuses
) -> None:
    with edited(copied / "config.json") as config:
        config |= changed
    refuses(words(copied, tmp_path / "out"), message)


def test_codebooks_that_are_not_generated_become_initial_ids(copied: Path, tmp_path: Path) -> None:
    """Another codebook with the same delay carries their initial ids in the same rows; later they are empty."""
    published = load_file(copied / LARGE["moshi_name"])
    with edited(copied / "config.json") as config:
        config["dep_q"] = 7
    assert main(words(copied, tmp_path / "out")) == 0
    made, known = tensors_of(tmp_path / "out"), vocabulary(tmp_path / "out")
    assert (known.num_codebooks, known.delays, known.depth.schedule) == (7, (0, *[2] * 6), (0, 1, 2, 3, 4, 4, 4))
    table, initial = made["model.embed_tokens.weight"], [published[f"emb.{k}.weight"][64] for k in range(12)]
    torch.testing.assert_close(table[known.initial_ids[2]], initial[1] + sum(initial[7:]))
    for k in (0, *range(2, 7)):
        assert torch.equal(table[known.initial_ids[1 + k]], initial[k])
    assert len(made["depth.heads"]) == 7
    assert len(made["depth.project.weight"]) == 5 * 32
    assert len(made["depth.layers.0.qkv_proj.weight"]) == 5 * 3 * 32


@pytest.mark.parametrize(
    "name",
    [
        "depformer_emb.10.low_rank.weight",
        "condition_provider.conditioners.cfg.embed.weight",
        "transformer.layers.0.cross_attention.in_proj_weight",
        *by_night(
            "text_emb.out2.weight",
            "depformer_text_emb.out1.weight",
            "condition_provider.conditioners.control.output_proj.weight",
            "condition_provider.conditioners.speaker_wavs.learnt_padding",
            "transformer.layers.0.norm_cross.bias",
        ),
    ],
)
def test_missing_or_unknown_tensor_is_reported(copied: Path, tmp_path: Path, name: str, refuses: Refuses) -> None:
    check_tensor_errors(words(copied, tmp_path / "out"), copied / LARGE["moshi_name"], name, refuses)


def write_voice(path: Path, vectors: torch.Tensor, name: str = "speaker_wavs") -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({name: vectors}, path)


def with_tensor(*shape: int, value: float = 1.0, **of: Any) -> Callable[[Path], None]:
    """Return a function that writes a voice's file with a tensor of one value."""
    return lambda path: write_voice(path, torch.full(shape, value, **of))


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("a.wav", lambda path: path.write_bytes(b"{}"), "expected a safetensors file with speaker_wavs, got"),
        ("a.wav", lambda path: write_voice(path, torch.ones(1, 16, 6), "other"), "expected a safetensors file with"),
        ("a.wav", with_tensor(1, 15, 6), "a.wav.1e68beda@240.safetensors: expected speaker_wavs"),
        ("a.wav", with_tensor(16, 6), "of F32 or BF16 or F16, got [16, 6] of F32"),
        ("a.wav", with_tensor(1, 16, 0), "got [1, 16, 0] of F32"),
        ("a.wav", with_tensor(1, 16, 1025), "got [1, 16, 1025] of F32"),
        ("a.wav", with_tensor(1, 16, 5), "expected 5 vectors, as the other voices have, got 6"),
        ("a.wav", with_tensor(1, 16, 6, value=1, dtype=torch.int64), "got [1, 16, 6] of I64"),
        ("a.wav", with_tensor(1, 16, 6, value=torch.nan), "expected numbers of magnitude at most 10000, got nan"),
        ("a.wav", with_tensor(1, 16, 6, value=-1e5), "expected numbers of magnitude at most 10000, got 100000"),
        ("a.wav", lambda path: path.symlink_to("/etc/hostname"), "expected a file of this release, got a link to"),
        ("a,b.wav", with_tensor(1, 16, 6), "expected names of at most 128 characters"),
        ("Vctk/p226.wav", with_tensor(1, 16, 6), "names that differ in lower case"),
        ("a.wav ", with_tensor(1, 16, 6), "( ) / - and inner spaces, got 'a.wav '"),  # spaces around a name are ignored
    ],
)
def test_unusable_voice_file_is_refused(
    copied: Path, tmp_path: Path, name: str, edit: Callable[[Path], Any], message: str, refuses: Refuses
) -> None:
    edit(copied / "voices" / f"{name}{SUFFIX}")
    refuses(words(copied, tmp_path / "out"), message)


def test_voices_that_a_prompt_cannot_contain_five_times_are_refused(tmp_path: Path) -> None:
    write_voice(tmp_path / "a", torch.zeros(1, 1024, 1024, dtype=torch.float16))
    with pytest.raises(CheckpointError, match=r"speaker_wavs: expected at most 838860 numbers, got \[1, 1024, 1024\]"):
        vectors_at(tmp_path / "a", 1024)


def test_release_without_voices_is_refused(copied: Path, tmp_path: Path, refuses: Refuses) -> None:
    shutil.rmtree(copied / "voices")
    refuses(words(copied, tmp_path / "out"), "expected files NAME.1e68beda@240.safetensors of voices, such as those of")


def test_default_voices_of_the_authors_come_first(copied: Path, tmp_path: Path) -> None:
    """Voice files of other models in the folder are ignored."""
    for name in reversed(DEFAULTS):
        write_voice(copied / "voices" / f"{name}{SUFFIX}", torch.ones(1, 16, 6))
    write_voice(copied / "voices" / "other.wav.00000000@1.safetensors", torch.ones(1, 2, 3))
    (copied / "voices" / "expresso" / "ex03.wav").write_bytes(b"RIFF")
    assert main(words(copied, tmp_path / "out")) == 0
    assert family_at(tmp_path / "out").voices == (*DEFAULTS, *(voice.lower() for voice in VOICES))


def asked(preprocessor: Preprocessor, text: str = "it is", **options: Any) -> Prompt:
    return preprocessor.prepare(RawRequest(text=text, options=json.dumps(options)))


@pytest.mark.parametrize(("scale", "row"), [(None, 2), (1, 0), (1.5, 1), (4.0, 6)])
def test_prompt_has_the_ids_of_its_guidance_scale(preprocessor: Preprocessor, scale: float | None, row: int) -> None:
    prompt = asked(preprocessor, **({} if scale is None else {"guidance_scale": scale}))
    assert prompt.condition is not None
    assert prompt.condition.ids == (row, 7)
    assert not prompt.sampling.has_pair
    assert asked(preprocessor, guidance={"scale": 3.5}).condition.ids == (5, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 1.2}, "options.guidance_scale: expected one of 1, 1.5, 2, 2.5, 3, 3.5, 4, got 1.2"),
        ({"guidance_scale": 0}, "options.guidance_scale: expected one of 1, 1.5, 2, 2.5, 3, 3.5, 4, got 0"),
        ({"guidance": {"scale": 5}}, "options.guidance_scale: expected one of 1, 1.5, 2, 2.5, 3, 3.5, 4, got 5"),
        ({"guidance": {"scale": 2, "policy": "adaptive"}}, "options.guidance.policy: expected 'always' (this model"),
        ({"voice": "other"}, "options.voice: expected one to 5 of these, separated by commas: expresso/ex03.wav"),
        ({"voice": "vctk/p226.wav,"}, "options.voice: expected one to 5 of these, separated by commas: expresso"),
        ({"voice": ",".join(["vctk/p226.wav"] * 6)}, "options.voice: expected one to 5 of these, separated by"),
    ],
)
def test_other_guidance_scales_and_voices_are_refused(
    preprocessor: Preprocessor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(preprocessor, **options)
    assert str(refused.value).startswith(message)


def test_named_voices_are_vectors_one_after_the_other(preprocessor: Preprocessor, release: Path) -> None:
    own = {name: vectors_in(release, name) for name in VOICES}
    for given, expected in (
        ({}, [VOICES[0]]),
        ({"voice": "VCTK/p226.wav"}, [VOICES[1]]),
        ({"voice": "vctk/p226.wav, expresso/ex03.wav,vctk/P226.wav"}, [VOICES[1], VOICES[0], VOICES[1]]),
    ):
        condition = asked(preprocessor, **given).condition
        assert condition is not None
        assert condition.vectors.dtype == np.float32
        np.testing.assert_array_equal(condition.vectors, np.concatenate([own[name] for name in expected]))


def test_recording_of_a_voice_is_refused(preprocessor: Preprocessor) -> None:
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "it is"}]
    pcm = np.sin(np.arange(24_000) / 9).astype(np.float32)
    with pytest.raises(InvalidRequest) as refused:
        preprocessor.prepare(RawRequest(messages=json.dumps(turns), pcm_in=pcm, sample_rate=24_000))
    expected = "expected 'user' for task 'tts', which takes no recording of a voice, got 'system'"
    assert str(refused.value) == f"messages[0].role: {expected}"


def test_prompt_is_the_first_row(preprocessor: Preprocessor, checkpoint: Path) -> None:
    """Later rows have initial ids before the delay of a codebook, and nothing before its first frame."""
    prompt, known = asked(preprocessor), vocabulary(checkpoint)
    assert prompt.rows.tolist() == [[*known.initial_ids, known.nothing]]
    assert prompt.num_reference_rows == 0
    assert prompt.delayed_tail is not None
    assert prompt.delayed_tail.shape == (18, 13)
    expected = np.full((18, 13), known.nothing)
    expected[:2, 1:12] = np.array(known.initial_ids[2:])
    assert (prompt.delayed_tail == expected).all()
    assert prompt.track == (*packed(checkpoint, "it is"), END_OF_WORDS)


def test_damaged_voice_of_a_checkpoint_is_reported_at_the_start(checkpoint: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    path = damaged / "voices" / "vctk" / "p226.wav.safetensors"
    for edit, message in (
        (with_tensor(1, 16, 5), f"{path}: expected 6 vectors, got 5"),
        (Path.unlink, "p226.wav.safetensors: expected a safetensors file with speaker_wavs, got FileNotFoundError"),
    ):
        edit(path)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            Preprocessor(damaged)


DIALOGUE = "it is\n Speaker 2:twenty past nine\nspeaker  2 : the\n\nSpeaker 1:door (is\nopen) a: speak"
TURNS = ["it is", "twenty past nine the", "door (is\nopen) a: speak"]


def test_first_word_of_a_turn_begins_with_its_speaker(checkpoint: Path) -> None:
    """A turn of the same speaker as before has no id, as in the authors' `script_to_entries`."""
    tokenizer, expected = sentencepiece_at(checkpoint / "tokenizer.model"), []
    for at, turn in enumerate(TURNS):
        for index, word in enumerate(turn.replace("(", "").replace(")", "").replace(":", " ").split()):
            tokens = [*([1 + at % 2] if index == 0 else []), *tokenizer.encode(word)]
            expected.append((tokens, len(tokens)))
    assert list(unpack_words(packed(checkpoint, DIALOGUE))) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_dialogue_in_parts_yields_same_words(checkpoint: Path, size: int) -> None:
    begin, ids = open_text_codec(family_at(checkpoint), checkpoint).stream, list[int]()
    assert begin is not None
    stream, sources = begin(), list[SourceWord]()
    assert isinstance(stream, WordStream)
    for at in range(0, len(DIALOGUE), size):
        more, stream = stream.after(DIALOGUE[at : at + size], is_last=False)
        ids += more
        sources += stream.sources
    more, stream = stream.after("", is_last=True)
    sources += stream.sources
    assert [*ids, *more] == packed(checkpoint, DIALOGUE)
    assert [DIALOGUE[each.start : each.end] for each in sources] == [each.word for each in sources]
    assert " ".join(each.word for each in sources) == "it is twenty past nine the door (is open) a speak"


def test_third_speaker_is_refused(preprocessor: Preprocessor) -> None:
    with pytest.raises(InvalidRequest, match="text: expected speakers 1 and 2, got speaker 3"):
        asked(preprocessor, "it is\nSpeaker 3: open")


def test_speakers_are_text_in_the_smaller_model(checkpoint: Path) -> None:
    """Its tokenizer has no token for the number, so the model reads its id of unknown characters, as in the package."""
    tokenizer = sentencepiece_at(checkpoint / "tokenizer.model")
    ids, _ = WordStream(tokenizer).after("speaker 2: is", is_last=True)
    words = [tokenizer.encode(word) for word in ("speaker", "2", "is")]
    assert 0 in words[1]
    assert list(unpack_words(ids)) == [(tokens, len(tokens)) for tokens in words]


def test_profile_has_guidance_scales_and_number_of_voices(checkpoint: Path) -> None:
    text = profile(family_at(checkpoint), 24_000, 12.5)
    found = ModelProfile.from_config({"parameters": {"profile": {"string_value": text}}})
    assert (found.guidance_scales, found.max_voices) == ((1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0), 5)
    assert not found.tasks[0].system


def test_vocabulary_that_contradicts_itself_is_refused() -> None:
    for changed in ({"ahead": 9}, {"num_sampled": 3}, {"guidance_scales": (1.0,)}, {"voice_shape": (1, 1)}):
        with pytest.raises(ValueError, match="expected"):
            TtsVocabulary(**changed)
    for shape in ((1025, 8), (1024, 1 << 14)):
        with pytest.raises(ValueError, match=r"expected voices of at most 1024 vectors and \d+ numbers, got \(102"):
            TtsVocabulary(voice_shape=shape, guidance_scales=(1.0,))
    known = TtsVocabulary(ahead=2, voice_shape=(125, 512), guidance_scales=(1.0, 2.0))
    assert TtsVocabulary.from_record(json.loads(json.dumps(known.to_record()))) == known


@pytest.mark.parametrize("at", range(4))
def test_both_text_streams_match_published_code(checkpoint: Path, at: int) -> None:
    """Given the ids that the authors' model sampled, as far as stream 0 shows them, the rules yield their text."""
    reply, family = replies("large")[at], family_at(checkpoint)
    script = family.drawing
    assert isinstance(script, WordScript)
    ids = (*packed(checkpoint, reply.text), END_OF_WORDS)
    rules = SegmentRules(family, 512)
    track = rules.track(1, ids)
    assert isinstance(track, WordTrack)
    executor, nothing = WordReplies(rules, [track], 1), family.layout.pad_id
    times, made = list[int](), list[tuple[int, int]]()
    for step, (main_id, second) in enumerate(zip(reply.rows[1:, 0], reply.second[1:], strict=True)):
        taken = executor.state(0)["taken"]
        asks = second == 0 or step in reply.times or step == reply.end
        (token,) = executor.next(1 + step, np.array([0 if asks else 3])).tolist()
        made.append((token, *executor.seconds_at(1 + step)))
        times += [step] * (executor.state(0)["taken"] > taken)
        shown = script.second_base + second if second >= 0 else nothing
        assert (made[-1][0] if made[-1][0] != vocabulary(checkpoint).wish_id else 3, made[-1][1]) == (main_id, shown)
    assert (times, executor.state(0)["end"] - 1) == (reply.times, reply.end)
