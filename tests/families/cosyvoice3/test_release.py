"""CosyVoice 3's release: prompts as the authors', voices of recordings, conversion, and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.checkpoints.random_cosyvoice3 import KNOWN, NARROW, convert, recording, write_release
from stretto.codecs.cosyvoice3 import load
from stretto.convert.command import main
from stretto.errors import InvalidRequest
from stretto.families.cosyvoice3.family import SOS, TASK
from stretto.families.cosyvoice3.voices import FOLDER, SPEAKER, TOKENIZER
from stretto.families.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.cosyvoice3_release import REPLIES, written
from tests.refused_conversion import refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("cosyvoice3"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def ask(
    preprocessor: Preprocessor, pcm: np.ndarray | None, text: str = "Hello.", words: str = "", options: str = "{}"
) -> Any:
    """Return the prompt of a request."""
    system = {"role": "system", "audio": "pcm_in"} | ({"text": words} if words else {})
    turns = [*([system] if pcm is not None else []), {"role": "user", "text": text}]
    rate = None if pcm is None else 24_000
    return preprocessor.prepare(RawRequest(messages=json.dumps(turns), pcm_in=pcm, sample_rate=rate, options=options))


@pytest.mark.parametrize("reply", REPLIES[: len(REPLIES) // 2], ids=lambda reply: reply["text"])
def test_prompts_are_the_authors(checkpoint: Path, reply: dict[str, Any]) -> None:
    codes = np.random.default_rng(reply["num_codes"]).integers(KNOWN.num_codes, size=reply["num_codes"])
    heard = (codes + KNOWN.num_text_ids).tolist() if reply["words"] and not reply["instruct"] else []
    made = written(checkpoint, reply)
    assert made.rows[:, 0].tolist() == [KNOWN.ends[SOS], *reply["prompt"], *reply["ids"], KNOWN.ends[TASK], *heard]
    assert (made.min_rows, made.max_rows) == (2 * len(reply["ids"]), 20 * len(reply["ids"]))
    assert made.sound is not None
    np.testing.assert_array_equal(made.sound.arrays()[0], codes[len(codes) % 25 :])


def test_a_recording_is_heard_by_both(preprocessor: Preprocessor) -> None:
    pcm = recording(2.3)
    prompt = ask(preprocessor, pcm, words="one two")
    tokens, mel, x_vector = prompt.sound.arrays()
    assert (tokens.shape, mel.shape, x_vector.shape) == ((50,), (100, 80), (192,))
    codes = prompt.rows[-57:, 0] - KNOWN.num_text_ids  # 115 mel frames, 58 tokens, of which 57 have two frames
    np.testing.assert_array_equal(codes[7:], tokens)
    assert prompt.rows[-58, 0] == KNOWN.ends[TASK]
    assert len(set(tokens.tolist())) > 10
    assert (prompt.sampling.audio.min_rows, prompt.sampling.ras_window) == (2 * 5, 10)
    style = ask(preprocessor, pcm, words="one two", options='{"instruct": "Softly."}')
    assert style.rows[-1, 0] == KNOWN.ends[TASK]
    other = ask(preprocessor, recording(2.3, seed=6))
    assert (other.sound.arrays()[2] != x_vector).any()


@pytest.mark.parametrize(
    ("pcm", "text", "options", "message"),
    [
        (None, "Hello.", "{}", "messages: expected a system turn with audio"),
        (recording(0.9), "Hello.", "{}", r"audio: expected at least 1 s, got 0.9000 s"),
        (np.zeros(48_000, np.float32), "Hello.", "{}", "audio: expected a recording of a voice, got silence"),
        (recording(31), "Hello.", "{}", "30 s"),
        (recording(), "a<|endofprompt|>b", "{}", r"text: expected none of the model's markers, got <\|endofprompt\|>"),
        (recording(), "  ", "{}", "text: expected text of at least one character"),
        (recording(), "a" * 501, "{}", "text: expected at most 500 characters, got 501"),
        (recording(), "Hi", '{"instruct": "a<|im_end|>"}', "options.instruct: expected none of the model's markers"),
        (recording(), "Hi", '{"text_mode": "open"}', "options.text_mode: expected no value"),
        (recording(), "Hi", '{"voice": "anna"}', "options.voice: expected no"),
        (recording(), "Hi", '{"language": "ja"}', "options.language: expected no value"),
    ],
)
def test_bad_requests_are_named(
    preprocessor: Preprocessor, pcm: np.ndarray | None, text: str, options: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ask(preprocessor, pcm, text, options=options)


def test_the_codec_is_the_releases(checkpoint: Path) -> None:
    assert load(checkpoint).config == NARROW
    assert sorted(path.name for path in (checkpoint / FOLDER).iterdir()) == sorted([SPEAKER, TOKENIZER])
    assert family_at(checkpoint).layout == replace(KNOWN).layout


def tensors(name: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return an edit of the tensors of one file."""

    def change(release: Path) -> None:
        stored = torch.load(release / name)
        edit(stored)
        torch.save(stored, release / name)

    return change


def yaml(old: str, new: str) -> Callable[[Path], None]:
    """Return an edit of cosyvoice3.yaml."""

    def change(release: Path) -> None:
        path = release / "cosyvoice3.yaml"
        path.write_text(path.read_text().replace(old, new))

    return change


def network(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Return an edit of the network of the speaker."""

    def change(release: Path) -> None:
        model = onnx.load(str(release / SPEAKER))
        edit(model)
        (release / SPEAKER).write_bytes(model.SerializeToString())

    return change


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (tensors("llm.pt", lambda t: t.pop("llm_decoder.weight")), "missing: llm_decoder.weight"),
        (tensors("llm.pt", lambda t: t.update(more=torch.ones(1))), "unknown: more"),
        (
            tensors("llm.pt", lambda t: t.update({"speech_embedding.weight": torch.ones(6564, 64)})),
            "expected CosyVoice 3 with 6761 speech ids, got 6564",
        ),
        (
            tensors("flow.pt", lambda t: t.pop("decoder.estimator.proj_out.bias")),
            "missing: flow.decoder",
        ),
        (tensors("hift.pt", lambda t: t.update(more=torch.ones(1))), "unknown: hift.more"),
        (lambda release: (release / "cosyvoice3.yaml").rename(release / "cosyvoice2.yaml"), "got cosyvoice2.yaml"),
        (yaml("chunk_size: 25", "chunk_size: 20"), "chunk_size: expected 25, got 20"),
        (yaml("top_p: 0.8", "top_p: 0.9"), "llm.sampling.top_p: expected 0.8, got 0.9"),
        (yaml("    nb_harmonics: 8\n", ""), "hift.nb_harmonics is missing"),
        (lambda release: (release / TOKENIZER).unlink(), f"{TOKENIZER} is missing"),
        (lambda release: (release / SPEAKER).write_text("text"), "expected an ONNX model"),
        (network(elsewhere), "expected weights in the file itself"),
        (
            network(lambda m: m.opset_import.append(helper.make_opsetid("evil", 1))),
            "expected operators of ONNX, got those of evil",
        ),
    ],
)
def test_releases_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[Path], object], message: str
) -> None:
    release = write_release(tmp_path / "release")
    edit(release)
    out = tmp_path / "out"
    assert message in refused(["cosyvoice3", "--model", str(release), "--out", str(out)], out, capsys)


def test_another_file_of_weights_may_be_named(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    shutil.move(release / "llm.pt", release / "llm.rl.pt")
    assert main(["cosyvoice3", "--model", str(release / "llm.rl.pt"), "--out", str(tmp_path / "out")]) == 0
