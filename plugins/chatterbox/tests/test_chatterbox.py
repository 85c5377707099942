"""Chatterbox equals the authors' loops: prompts, and codes with penalties, greedy and sampled, which are guided."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.chatterbox.lab.random_chatterbox import KNOWN, T3_FILE, command, voice, write_release
from plugins.chatterbox.tests.chatterbox_release import (
    LEAST_LEAD,
    RELEASES,
    REPLIES,
    inputs_of,
    known_at,
    prompt_of,
    replies,
    table_of,
)
from plugins.chatterbox.tests.chatterbox_voices import at_24_khz
from stretto.codecs.base import Whole
from stretto.convert.command import main
from stretto.convert.make_repository import main as make_repository
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import asked
from stretto.testing.releases import Edit, SmallRelease
from stretto.testing.suite import FamilyCase
from stretto_chatterbox import PLUGIN
from stretto_chatterbox.family import END_OF_SPEECH, END_OF_TEXT, START_OF_TEXT, ChatterboxVocabulary
from stretto_chatterbox.prompt import ChatterboxTemplate
from tests.family_suite import FamilySuite

Tensors = dict[str, torch.Tensor]
ATTENTION = "flow.decoder.estimator.down_blocks.0.1.0.attn1"
NUMBERS = "expected int32 or int64, or floating-point numbers"
T3 = f"release/{T3_FILE}"
S3GEN = "release/s3gen.safetensors"


class Hostile:
    """Pickled object that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


def write(folder: Path, size: str) -> list[str]:
    """Write a release; the language model's file has the same name in both."""
    release = write_release(folder / "release", is_multilingual=size == "multilingual")
    words = command(release, folder / "out")[:-2]
    model = words.index("--model") + 1
    words[model] = str(Path(words[model]).rename(release / T3_FILE))
    return words


def vocabulary_of(release: SmallRelease) -> ChatterboxVocabulary:
    vocabulary = known_at(release.checkpoint)
    assert isinstance(vocabulary, ChatterboxVocabulary)
    return vocabulary


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """The rows of a voice, the text with its positions, and two start rows."""
    vocabulary = vocabulary_of(release)
    expected = dict[str, tuple[dict[str, Any], np.ndarray]]()
    for reply in REPLIES[release.size]:
        rows = [(token, vocabulary.pad) for token in vocabulary.voice(reply["voice"])]
        rows += zip(reply["ids"], vocabulary.text_positions, strict=False)
        rows += [(vocabulary.start, vocabulary.speech_positions.start)] * 2
        expected[reply["text"]] = (inputs_of(reply), np.array(rows))
    return expected


def write_other(folder: Path, name: str, content: object) -> None:
    """Replace a file, so that the other file that it is linked to stays."""
    (folder / name).unlink()
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)


def edit_voice(content: object, message: str, name: str = "voices/anna.pt") -> tuple[str, Edit, str]:
    """Return a refused edit that replaces a file of a voice."""
    return ("release", lambda folder: write_other(folder, name, content), message)


def told(**changes: object) -> dict[str, Any]:
    return {"t3": voice(9)["t3"] | changes}


def heard(**changes: object) -> dict[str, Any]:
    stored = voice(9)
    return stored | {"gen": stored["gen"] | changes}


def resize_text(tensors: Tensors, num_ids: int) -> None:
    for name in ("text_emb.weight", "text_head.weight"):
        tensors[name] = torch.ones(num_ids, 64)


def set_dtype(name: str, dtype: torch.dtype) -> Edit:
    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].abs().to(dtype)

    return edit


def link_to_default(folder: Path) -> None:
    (folder / "voices" / "it's me.pt").symlink_to(folder / "conds.pt")


class TestChatterbox(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("english", "multilingual"),
        weights=T3,
        may_be_sharded=False,
        refused_edits=[
            (
                T3,
                lambda t: t.update({"speech_emb.weight": torch.ones(6000, 64)}),
                "expected more than 6563 ids, and at most 1048576, got 6000",
            ),
            (T3, lambda t: resize_text(t, 2454), "grapheme_mtl_merged_expanded_v1.json is missing"),
            (T3, lambda t: resize_text(t, 100), "expected a tokenizer of at most 100 tokens with [SPACE], got 256 to"),
            edit_voice({"gen": {}}, "voice anna: expected the tensors t3.speaker_emb"),
            edit_voice(told(emotion_adv=0.5), "voice anna: expected the tensors t3.speaker_emb"),
            edit_voice(told(speaker_emb=torch.ones(1, 255)), "expected 256 speaker numbers and one emotion value"),
            edit_voice(told(cond_prompt_speech_tokens=torch.full((1, 4), 8194)), "expected ids of shape [1, n]"),
            edit_voice(told(cond_prompt_speech_tokens=torch.ones(1, 4, dtype=torch.bool)), f"tokens: {NUMBERS}"),
            edit_voice(told(emotion_adv=torch.full((1, 1, 1), torch.nan)), f"t3.emotion_adv: {NUMBERS}"),
            edit_voice(told(speaker_emb=torch.ones(1, 256).to_sparse()), f"t3.speaker_emb: {NUMBERS}"),
            *(edit_voice(content, "conds.pt: expected a voice, got ", "conds.pt") for content in (b"", b"K\x01")),
            *(edit_voice(content, "voices/anna.pt: expected a voice, got ") for content in (b"", b"K\x01")),
            ("release", link_to_default, "expected a name of lower-case letters"),
            ("release", lambda folder: (folder / "conds.pt").unlink(), "conds.pt is missing"),
            ("release", lambda folder: (folder / "s3gen.safetensors").unlink(), "s3gen.safetensors is missing"),
            edit_voice(
                {"t3": voice(9)["t3"]},
                "voice anna: expected the tensors gen.prompt_token, gen.prompt_feat, gen.embedding",
            ),
            edit_voice(heard(embedding=None), "voice anna: expected the tensors gen.prompt_token"),
            edit_voice(heard(embedding=torch.ones(1, 190)), "voices.1.speaker [190] instead of [192]"),
            edit_voice(
                heard(prompt_token=torch.full((1, 13), 6561)),
                "voice anna: prompt_token: expected codes of shape [1, n]",
            ),
            edit_voice(
                heard(prompt_token=torch.ones(1, 1001, dtype=torch.int64)),
                "n <= 1000, in [0, 6561), got shape [1, 1001]",
            ),
            edit_voice(
                heard(prompt_feat=torch.ones(1, 25, 80)), "prompt_feat: expected shape [1, 26, mels], got [1, 25, 80]"
            ),
            edit_voice(heard(prompt_feat=torch.ones(1, 26, 79)), "voices.1.mel [79, 26] instead of [80, 26]"),
            # broadcast: a file of some bytes that claims 4 TB
            edit_voice(heard(embedding=torch.ones(1).expand(1, 1 << 40)), f"gen.embedding: {NUMBERS}"),
            (S3GEN, lambda t: t.pop("flow.encoder_proj.bias"), "missing: flow.encoder_proj.bias"),
            (
                S3GEN,
                lambda t: t.pop("flow.input_embedding.weight"),
                "flow.input_embedding.weight: expected a tensor of 2 dim",
            ),
            (
                S3GEN,
                lambda t: t.update({"flow.input_embedding.weight": torch.ones(99, 16)}),
                "expected 6561 codes, got 99",
            ),
            (S3GEN, lambda t: t.update({"mel2wav.more": torch.ones(1)}), "unknown: mel2wav.more"),
            (
                S3GEN,
                lambda t: t.update({"flow.encoder_proj.bias": torch.ones(3)}),
                "wrong shape: flow.encoder_proj.bias [3]",
            ),
            # empty tensors that claim sizes, of which noise would be drawn
            (
                S3GEN,
                lambda t: t.update({"flow.spk_embed_affine_layer.weight": torch.ones(1 << 40, 0)}),
                "flow.spk_embed_affine_layer.weight: expected sizes in [1, 32768], got [1099511627776, 0]",
            ),
            (
                S3GEN,
                lambda t: t.update({"flow.spk_embed_affine_layer.weight": torch.ones(4096, 1)}),
                "flow.spk_embed_affine_layer.weight: expected at most 512 mels, got 4096",
            ),
            (
                S3GEN,
                lambda t: t.update({f"{ATTENTION}.to_q.weight": torch.ones(65, 16)}),
                "to_q.weight: expected a multiple of 64 rows, got 65",
            ),
            (
                S3GEN,
                lambda t: t.update({"tokenizer.encoder.conv1.weight": torch.ones(0, 128, 3)}),
                "conv1.weight: expected a multiple of 64 in [64, 16384], got 0",
            ),
            (
                "release/ve.safetensors",
                set_dtype("lstm.bias_hh_l0", torch.complex64),
                "hearing: expected one of the dtypes F64, F32",
            ),
            (
                S3GEN,
                lambda t: t.pop("tokenizer.encoder.conv1.weight"),
                "tokenizer.encoder.conv1.weight: expected a tensor of 3",
            ),
            (S3GEN, lambda t: t.pop("tokenizer.encoder.conv2.bias"), "missing: tokenizer.encoder.conv2.bias"),
            (
                S3GEN,
                lambda t: t.update({"speaker_encoder.head.conv1.weight": torch.ones(4)}),
                "shape: speaker_encoder.head.conv1.weight [4]",
            ),
            (S3GEN, lambda t: t.update({"speaker_encoder.more": torch.ones(4)}), "unknown: speaker_encoder.more"),
            ("release/ve.safetensors", lambda t: t.pop("lstm.bias_hh_l2"), "missing: ve.lstm.bias_hh_l2"),
            (
                S3GEN,
                set_dtype("flow.encoder_proj.bias", torch.uint16),
                "got torch.uint16 in flow.encoder_proj.bias",
            ),
            (
                T3,
                set_dtype("tfmr.layers.0.mlp.up_proj.weight", torch.complex64),
                "up_proj.weight: expected real numbers, got",
            ),
        ],
        edits_by_night=[
            *(edit_voice(content, "conds.pt: expected a voice, got ", "conds.pt") for content in (b"hello", b"0")),
            *(edit_voice(content, "voices/anna.pt: expected a voice, got ") for content in (b"hello", b"0")),
            *(
                edit_voice(told(cond_prompt_speech_tokens=values), "expected ids of shape [1, n]")
                for values in (torch.ones(1, 4), torch.ones(1, 0, dtype=torch.int64))
            ),
            edit_voice(told(cond_prompt_speech_tokens=torch.ones(1, 4, dtype=torch.cfloat)), f"tokens: {NUMBERS}"),
            *(
                edit_voice(told(speaker_emb=values), f"t3.speaker_emb: {NUMBERS}")
                for values in (
                    torch.full((1, 256), 1e38),
                    torch.full((1, 256), torch.inf),
                    torch.full((1, 256), 1e99, dtype=torch.float64),
                    torch.ones(1, 256, device="meta"),
                )
            ),
            edit_voice(
                heard(prompt_token=torch.ones(1, 13)), "voice anna: prompt_token: expected codes of shape [1, n]"
            ),
            edit_voice(heard(prompt_feat=torch.full((1, 26, 80), torch.nan)), f"gen.prompt_feat: {NUMBERS}"),
            edit_voice(heard(embedding=torch.full((1, 192), -torch.inf)), f"gen.embedding: {NUMBERS}"),
            edit_voice(heard(prompt_token=torch.ones(1, 13, dtype=torch.bool)), NUMBERS),
        ],
        prompts=prompts,
        refused_inputs=[
            (asked(""), "text: expected text of at least one character"),
            (asked(" \n"), "text: expected text of at least one character"),
            (asked("b" * 64), "text: expected text of at most 64 tokens, got 65 tokens"),
            (asked("a", pcm=at_24_khz("short")), "messages[0].audio: expected at least 0.5 s, got 0.3100 s"),
            (
                asked("a", pcm=at_24_khz("odd"), voice="anna"),
                "options.voice: expected no value, because the request contains a recording of the voice",
            ),
            (
                asked("a", pcm=at_24_khz("odd"), exaggeration=2.1),
                "options.exaggeration: expected a number in [0, 2], got 2.1",
            ),
            (
                asked("a", {"codes": [[1]]}),
                "messages[0].codes: expected a voice recording as a file or samples, got codes",
            ),
            (
                asked("a", {"text": "a", "audio": "pcm_in"}, at_24_khz("odd")),
                "messages[0]: expected only audio for task 'tts', got audio and text",
            ),
        ],
        markers=("[START]", "[STOP]"),
        replies=replies,
        engine={"max_model_len": 256},
        # memory for little more than one of six pairs, which are preempted together
        tight={"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9, "max_model_len": 128},
    )

    @pytest.mark.parametrize("content", [Hostile(), {"t3": {"speaker_emb": Hostile()}}])
    def test_voices_cannot_execute_code(
        self, copied: SmallRelease, content: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_other(copied.folder / "release", "voices/anna.pt", content)
        copied.assert_refused("expected a voice, got UnpicklingError")
        assert not (tmp_path / "was-run").exists()

    def test_checkpoint_without_a_codec_is_not_served(
        self, copied: SmallRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        codec = copied.arguments.index("--codec")
        release = replace(copied, arguments=[*copied.arguments[:codec], *copied.arguments[codec + 2 :]])
        assert release.checkpoint.exists()
        assert "codec/ is missing: the server needs it" in capsys.readouterr().out
        assert make_repository(["--checkpoint", str(release.checkpoint), "--out", str(tmp_path / "served")]) == 1
        said = capsys.readouterr().err
        assert "model.safetensors" in said
        assert said.count("\n") == 1

    def test_decoder_with_missing_voices_is_refused(
        self, copied: SmallRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = copied.checkpoint / "codec" / "model.safetensors"
        save_file({name: tensor for name, tensor in load_file(path).items() if "voices.1." not in name}, path)
        assert make_repository(["--checkpoint", str(copied.checkpoint), "--out", str(tmp_path / "served")]) == 1
        assert "expected the voices of the model, default, anna, got 1 voices" in capsys.readouterr().err

    def test_decoder_with_different_voice_names_is_refused(
        self, copied: SmallRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = copied.checkpoint / "codec" / "config.json"
        path.write_text(path.read_text().replace("anna", "berta"))
        assert make_repository(["--checkpoint", str(copied.checkpoint), "--out", str(tmp_path / "served")]) == 1
        assert "the voices of the model, default, anna, got 2 voices, ['default', 'berta']" in capsys.readouterr().err

    def test_newer_releases_require_a_config(
        self, copied: SmallRelease, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        words = ["csm", "--model", str(copied.folder / T3), "--tokenizer", str(copied.folder / "release")]
        assert main([*words, "--out", str(tmp_path / "other")]) == 1
        assert "--config: expected the config.yaml or config.json of csm, got none" in capsys.readouterr().err

    def test_voice_rows_match_the_authors(self, releases: dict[str, SmallRelease]) -> None:
        for size, release in releases.items():
            vocabulary = vocabulary_of(release)
            table = table_of(release)
            for reply in REPLIES[size][:2]:
                ids = vocabulary.voice(reply["voice"])
                sums = np.abs(table[ids.start : ids.stop]).sum(1)
                np.testing.assert_allclose(sums, reply["voice_rows"], rtol=1e-5)
            assert not table[vocabulary.pad].any()

    @pytest.mark.parametrize("text", ["[START]", "a [SPACE] b", "[STOP]x"])
    def test_text_cannot_inject_special_tokens(self, release: SmallRelease, text: str) -> None:
        rows = release.preprocessor.prepare(RawRequest(text=text)).rows
        ids = rows[KNOWN.num_voice_rows : -2, 0].tolist()
        assert (ids.count(START_OF_TEXT), ids.count(END_OF_TEXT)) == (1, 1)
        assert ids.count(2) == text.count(" ")

    def test_a_tokenizer_without_spaces_is_refused(self, release: SmallRelease, tmp_path: Path) -> None:
        text = (release.checkpoint / "tokenizer.json").read_text().replace("[SPACE]", "[BLANK]")
        (tmp_path / "tokenizer.json").write_text(text)
        tokenizer = TextTokenizer.at(tmp_path, spells_bytes=False)
        with pytest.raises(CheckpointError, match=r"expected a token \[SPACE\]"):
            ChatterboxTemplate(release.family, vocabulary_of(release), tokenizer)

    def test_prompt_has_the_voice_number_and_unblocked_chunking(self, release: SmallRelease) -> None:
        for number, name in enumerate(("default", "anna")):
            prompt = release.preprocessor.prepare(RawRequest(**asked("hello", voice=name)))
            assert (prompt.task, prompt.voice, prompt.delivery.chunking.blocks) == ("tts", number, ())
            assert Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).voice == number

    def test_max_rows_beyond_the_codec_limit_is_refused(self, copied: SmallRelease) -> None:
        preprocessor = copied.preprocessor
        preprocessor.codec.spec = replace(preprocessor.codec.spec, streaming=Whole(100))
        with pytest.raises(InvalidRequest, match=r"options.audio.max_rows: expected at most 100 rows, .* got 101"):
            preprocessor.prepare(RawRequest(**asked("hello", audio={"max_rows": 101})))
        assert preprocessor.prepare(RawRequest(**asked("hello", audio={"max_rows": 100}))).voice == 0

    @pytest.mark.engine
    def test_unconditional_request_depends_on_text_length_only(self, release: SmallRelease) -> None:
        """Texts of equal length have the same unconditional request and share its blocks.

        A longer text has a different one, which another test compares with the authors' code. All rows are guided.
        """
        first = prompt_of(REPLIES["english"][0], release)
        other = replace(first, rows=release.preprocessor.prepare(RawRequest(text="hollo the answer")).rows)
        assert (first.rows[:, 0] != other.rows[:, 0]).any()
        assert (first.rows[:, 1] == other.rows[:, 1]).all()
        engine = self.start_engine(release.checkpoint, max_model_len=256)
        answers = engine.run({"first": first, "other": other, "again": first}, {"other": 70, "again": 140})
        engine.shutdown()
        assert answers["other"].rows != answers["first"].rows
        assert answers["again"].rows == answers["first"].rows
        for answer in answers.values():
            assert answer.trailer is not None
            assert answer.trailer.num_guided_frames == len(answer.rows) - 1


@pytest.mark.parametrize("release", RELEASES)
def test_fixture_is_numerically_unambiguous(release: str) -> None:
    """Every id leads clearly.

    Both kinds of end occur, and so do ids that are not codes, which the guided loop does not mask.
    """
    stored = REPLIES[release]
    assert min(reply["lead"] for reply in stored) > LEAST_LEAD[release]
    assert {reply["codes"][-1] == END_OF_SPEECH for reply in stored} == {True, False}
    if "weight" in stored[0]:
        assert any(code > END_OF_SPEECH for reply in stored for code in reply["codes"])
