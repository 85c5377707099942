"""CosyVoice 3: prompts as in the authors' code, recorded voices, conversion, and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from safetensors.torch import load_file

from plugins.cosyvoice3.lab.random_cosyvoice3 import KNOWN, NARROW, convert, recording, voice, write_release
from plugins.cosyvoice3.tests.cosyvoice3_release import REPLIES, written
from stretto.convert.command import main
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_cosyvoice3.codec import load
from stretto_cosyvoice3.family import FILL, SOS, TASK
from stretto_cosyvoice3.voices import FOLDER, NAMED, SPEAKER, TOKENIZER, read_named_voices
from tests.refused_conversion import refused
from tests.tiers import by_night

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
    """Return the prompt for a request."""
    system = {"role": "system", "audio": "pcm_in"} | ({"text": words} if words else {})
    turns = [*([system] if pcm is not None else []), {"role": "user", "text": text}]
    rate = None if pcm is None else 24_000
    return preprocessor.prepare(RawRequest(messages=json.dumps(turns), pcm_in=pcm, sample_rate=rate, options=options))


@pytest.mark.parametrize("reply", REPLIES[: len(REPLIES) // 2], ids=lambda reply: reply["text"])
def test_prompts_match_the_authors(checkpoint: Path, reply: dict[str, Any]) -> None:
    codes = np.random.default_rng(reply["num_codes"]).integers(KNOWN.num_codes, size=reply["num_codes"])
    heard = (codes + KNOWN.num_text_ids).tolist() if reply["words"] and not reply["instruct"] else []
    made = written(checkpoint, reply)
    assert made.rows[:, 0].tolist() == [KNOWN.ends[SOS], *reply["prompt"], *reply["ids"], KNOWN.ends[TASK], *heard]
    assert (made.min_rows, made.max_rows) == (2 * len(reply["ids"]), 20 * len(reply["ids"]))
    assert made.sound is not None
    np.testing.assert_array_equal(made.sound.arrays()[0], codes[len(codes) % 25 :])


def test_cosyvoice3_recording_prompts_both_model_and_decoder(preprocessor: Preprocessor) -> None:
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


@pytest.mark.parametrize("words", ["one two three four", ""])
def test_streamed_text_prompt_is_split_into_groups(preprocessor: Preprocessor, words: str) -> None:
    """The prompt has only groups of the recording; its remaining codes, its words and the text follow."""
    pcm, ends = recording(2.3), KNOWN.ends
    whole = ask(preprocessor, pcm, "Hello.", words)
    made = ask(preprocessor, pcm, "Hello.", words, '{"text_mode": "streaming"}')
    style, spoken = whole.rows[:, 0].tolist(), ask(preprocessor, pcm, "Hello.", "", "{}").rows[:, 0].tolist()
    head = style[: style.index(KNOWN.end_of_prompt) + 1]
    text = spoken[len(head) : -1]
    recorded = style[len(head) : style.index(ends[TASK]) - len(text)]
    codes = style[style.index(ends[TASK]) + 1 :]
    assert bool(codes) == bool(recorded) == bool(words)
    in_prompt = min(len(recorded) // 5, len(codes) // 15)
    groups = [recorded[5 * at :][:5] + codes[15 * at :][:15] for at in range(in_prompt)]
    assert made.rows[:, 0].tolist() == head + list(chain(*groups))
    assert list(made.track) == [*codes[15 * in_prompt :], *recorded[5 * in_prompt :], *text, ends[TASK]]
    assert (made.is_open, made.sampling.audio.min_rows) == (False, 0)
    begun = ask(preprocessor, pcm, "Hel", words, '{"text_mode": "open"}')
    assert (begun.is_open, begun.opening) == (True, "Hel")
    np.testing.assert_array_equal(begun.rows, made.rows)
    assert [*begun.track, *text, ends[TASK]] == list(made.track)
    assert ask(preprocessor, pcm, "", words, '{"text_mode": "open"}').track == begun.track


def test_text_row_fillers_are_embedded_as_zeros(checkpoint: Path) -> None:
    """Their ids on stream 0 are embedded as zeros, because the authors' code does not read them."""
    table = load_file(checkpoint / "model-00001-of-00001.safetensors")["model.embed_tokens.weight"]
    is_zero = [index for index in KNOWN.ends if not table[index].any()]
    assert is_zero == [KNOWN.ends[FILL], KNOWN.given]


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
        (recording(), "Hi", '{"voice": "anna"}', "options.voice: expected no"),
        (recording(), "Hi", '{"language": "ja"}', "options.language: expected no value"),
    ],
)
def test_invalid_cosyvoice3_requests_are_refused_with_the_field(
    preprocessor: Preprocessor, pcm: np.ndarray | None, text: str, options: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ask(preprocessor, pcm, text, options=options)


def test_converted_codec_matches_the_release(checkpoint: Path) -> None:
    assert load(checkpoint).config == NARROW
    assert sorted(path.name for path in (checkpoint / FOLDER).iterdir()) == sorted([SPEAKER, TOKENIZER])
    assert family_at(checkpoint).layout == replace(KNOWN).layout


def tensors(name: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return an edit of the tensors in a file."""

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
    """Return an edit of the speaker network."""

    def change(release: Path) -> None:
        model = onnx.load(str(release / SPEAKER))
        edit(model)
        (release / SPEAKER).write_bytes(model.SerializeToString())

    return change


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


TEXT_IDS = [5, 6, KNOWN.end_of_prompt, 7, 8, 9]


def named(**changed: Any) -> dict[str, torch.Tensor]:
    """Return a voice of 40 codes as the authors' code stores it, with some tensors changed."""
    tokens_, mel, x_vector = voice(3, 40)
    stored: dict[str, Any] = {
        "prompt_text": torch.tensor([TEXT_IDS], dtype=torch.int32),
        "flow_prompt_speech_token": torch.from_numpy(tokens_)[None],
        "prompt_speech_feat": torch.from_numpy(mel)[None],
        "flow_embedding": torch.from_numpy(x_vector)[None],
    }
    lengths = {
        f"{name}_len": torch.tensor([each.shape[1]]) for name, each in stored.items() if name != "flow_embedding"
    }
    return stored | lengths | {"llm_embedding": stored["flow_embedding"]} | changed


def with_voices(release: Path, voices: Any) -> Path:
    """Write `spk2info.pt`."""
    torch.save(voices, release / "spk2info.pt")
    return release


def test_named_voices_of_a_release_are_usable(tmp_path: Path) -> None:
    """They act like a recording with these codes, words and instruction; the first voice is the default."""
    other = named(prompt_text=torch.tensor([[KNOWN.end_of_prompt]]))
    release = with_voices(write_release(tmp_path / "release"), {"Anna": named(), "\u4e2d\u6587\u5973": other})
    assert main(["cosyvoice3", "--model", str(release), "--out", str(tmp_path / "out")]) == 0
    preprocessor = Preprocessor(tmp_path / "out")
    assert preprocessor.family.voices == ("anna", "\u4e2d\u6587\u5973")
    made = ask(preprocessor, None, options='{"voice": "Anna"}')
    tokens_, mel, x_vector = voice(3, 40)
    for got, expected in zip(made.sound.arrays(), (tokens_[15:], mel[30:], x_vector), strict=True):
        np.testing.assert_array_equal(got, expected)
    ids = made.rows[:, 0].tolist()
    assert ids[: 1 + len(TEXT_IDS)] == [KNOWN.ends[SOS], *TEXT_IDS]
    assert ids[-41:] == [KNOWN.ends[TASK], *(tokens_ + KNOWN.num_text_ids).tolist()]
    np.testing.assert_array_equal(ask(preprocessor, None).rows, made.rows)
    plain = ask(preprocessor, None, options=json.dumps({"voice": "\u4e2d\u6587\u5973"})).rows[:, 0].tolist()
    assert plain == [KNOWN.ends[SOS], KNOWN.end_of_prompt, *ids[1 + len(TEXT_IDS) : -41], KNOWN.ends[TASK]]
    softly = ask(preprocessor, None, options='{"voice": "anna", "instruct": "Softly."}').rows[:, 0].tolist()
    assert softly[-1] == KNOWN.ends[TASK]
    recorded = ask(preprocessor, recording(2.3))
    assert len(recorded.sound.arrays()[0]) == 50, "a recording is used instead"
    with pytest.raises(InvalidRequest, match=r"options.voice: expected one of anna, .*, got 'nobody'"):
        ask(preprocessor, None, options='{"voice": "nobody"}')


def test_voice_without_end_of_instruction_token_is_refused(tmp_path: Path) -> None:
    """The checkpoint was edited after its conversion."""
    text = {"0.text": np.array([5, 6], np.int32)}
    tokens_, mel, x_vector = voice(3, 40)
    (tmp_path / NAMED).mkdir()
    path = tmp_path / NAMED / "model.safetensors"
    save_file(text | {"0.tokens": tokens_, "0.mel": mel, "0.x_vector": x_vector}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: anna: expected text with the id 7 of .*, got none"):
        read_named_voices(tmp_path, ["anna"], 7)


class Harmful:
    """Object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("harm",))


def infinite(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, float("inf"))


@pytest.mark.parametrize(
    ("voices", "message"),
    [
        ({"a": Harmful()}, "expected named voices, got"),
        ([named()], "expected at most 256 voices by name, got list"),
        ({f"v{index}": 0 for index in range(257)}, "expected at most 256 voices by name, got 257"),
        ({"Anna": named(), "anna": named()}, "expected names that differ in lower case"),
        ({5: named()}, "expected names of 1 to 64 printable characters, got 5"),
        ({"a\x1b[2J": named()}, "expected names of 1 to 64 printable characters"),
        ({"a": torch.ones(1)}, "a: prompt_text: expected a tensor of one recording, got NoneType"),
        ({"a": named(prompt_text=torch.ones(1, 5))}, "a: prompt_text: expected dense ids, got torch.float32"),
        ({"a": named(prompt_text=torch.ones(2, 5).int())}, "a tensor of one recording, got shape [2, 5]"),
        (
            {"a": named(prompt_text=torch.tensor([[1, 2]]))},
            "<|endofprompt|> once, after the instruction, got it 0 times",
        ),
        ({"a": named(prompt_text=torch.tensor([[10**6]]))}, "prompt_text: expected ids in [0, "),
        (
            {"a": named(flow_prompt_speech_token=torch.full((1, 40), 6561))},
            "expected ids in [0, 6561), got 6561 ... 6561",
        ),
        ({"a": named(flow_prompt_speech_token=torch.zeros(1, 24).int())}, "got 24 codes and 80 frames"),
        ({"a": named(prompt_speech_feat=torch.ones(1, 79, 80))}, "got 40 codes and 79 frames"),
        ({"a": named(prompt_speech_feat=infinite((1, 80, 80)))}, "prompt_speech_feat: expected 80 columns of numbers"),
        ({"a": named(prompt_speech_feat=torch.full((1, 80, 80), -1e38))}, "numbers of magnitude at most 10000"),
        ({"a": named(flow_embedding=torch.ones(1, 191))}, "flow_embedding: expected 192 columns of numbers"),
        ({"a": named(flow_embedding=torch.ones(1, 192).to_sparse())}, "flow_embedding: expected dense numbers"),
    ],
)
def test_invalid_named_voices_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], voices: Any, message: str
) -> None:
    out = tmp_path / "out"
    release = with_voices(write_release(tmp_path / "release"), voices)
    assert message in refused(["cosyvoice3", "--model", str(release), "--out", str(out)], out, capsys)
    assert "harm" not in capsys.readouterr().out


def in_a_list(model: onnx.ModelProto) -> None:
    """Hide a tensor with external data in a node's attribute."""
    hidden = model.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.TENSORS).tensors.add()
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")


def sparse(model: onnx.ModelProto) -> None:
    """Hide a tensor with external data among the sparse tensors."""
    values = model.graph.sparse_initializer.add().values
    values.name, values.data_location = "hidden", TensorProto.EXTERNAL
    values.external_data.add(key="location", value="/etc/passwd")


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
        (lambda release: (release / "cosyvoice3.yaml").rename(release / "cosyvoice2.yaml"), "got cosyvoice2.yaml"),
        (yaml("chunk_size: 25", "chunk_size: 20"), "chunk_size: expected 25, got 20"),
        (yaml("    nb_harmonics: 8\n", ""), "hift.nb_harmonics is missing"),
        (lambda release: (release / TOKENIZER).unlink(), f"{TOKENIZER} is missing"),
        (lambda release: (release / SPEAKER).write_text("text"), "expected an ONNX model"),
        (network(elsewhere), "expected weights in the file itself"),
        *by_night(
            (tensors("hift.pt", lambda t: t.update(more=torch.ones(1))), "unknown: hift.more"),
            (yaml("top_p: 0.8", "top_p: 0.9"), "llm.sampling.top_p: expected 0.8, got 0.9"),
            (network(in_a_list), "expected weights in the file itself"),
            (network(sparse), "expected weights in the file itself"),
        ),
        (
            network(lambda m: m.opset_import.append(helper.make_opsetid("evil", 1))),
            "expected operators of ONNX, got those of evil",
        ),
    ],
)
def test_mismatched_releases_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[Path], object], message: str
) -> None:
    release = write_release(tmp_path / "release")
    edit(release)
    out = tmp_path / "out"
    assert message in refused(["cosyvoice3", "--model", str(release), "--out", str(out)], out, capsys)


def test_weights_file_may_be_given_by_path(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    shutil.move(release / "llm.pt", release / "llm.rl.pt")
    assert main(["cosyvoice3", "--model", str(release / "llm.rl.pt"), "--out", str(tmp_path / "out")]) == 0
