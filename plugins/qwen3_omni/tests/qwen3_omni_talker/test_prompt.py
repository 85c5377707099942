"""Prompts of the Qwen3-Omni talker equal the inputs in transformers; unsupported ones are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.qwen3_omni.lab.random_qwen3_omni import AUDIO, IMAGE, VIDEO
from plugins.qwen3_omni.tests.published_qwen3_omni import Case, Theirs, cases, convert, turn
from stretto.convert.make_repository import main as make_repository
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.plugin import config_at
from stretto.records.prompt import Prompt
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("talker"))


def test_prompt_rows_and_text_match_transformers(checkpoint: Path) -> None:
    """Words, audio, turns of several users, and the words added to frames agree to 1e-5."""
    theirs, family = Theirs(), TalkerPrompts.at(checkpoint).family
    table = load_file(next(checkpoint.glob("*.safetensors")))["model.embed_tokens.weight"]
    for name, case in cases().items():
        prompt, (expected, trailing, pad) = case.prompt(checkpoint, 9), theirs.inputs(case)
        ids = torch.from_numpy(prompt.rows).long()
        is_silent = ids == family.layout.pad_id
        is_silent[:, 0] = False
        rows = table[ids].masked_fill(is_silent[..., None], 0).sum(1)
        for audio in prompt.audios:
            states = torch.from_numpy(audio.features)
            made = theirs.talker.hidden_projection(states).detach()
            rows[audio.first_row : audio.first_row + audio.num_rows] = made
        torch.testing.assert_close(rows, expected[0], rtol=0, atol=1e-4, msg=name)
        torch.testing.assert_close(table[list(prompt.track)], trailing[0], rtol=0, atol=1e-4, msg=name)
        assert family.text_track is not None
        torch.testing.assert_close(table[family.text_track.pad_id], pad[0, 0], rtol=0, atol=1e-5)


def test_audio_rows_have_sequential_positions_like_text() -> None:
    """This follows transformers' rule for three-dimensional positions, which differ only for images."""
    ids = turn("user", [5, *[AUDIO] * 26, 6])
    given = torch.tensor([ids]), None, None, torch.ones(1, len(ids)), False, torch.tensor([200])
    positions, shift = Theirs().talker.get_rope_index(*given)
    assert positions[:, 0].tolist() == [list(range(len(ids)))] * 3
    assert shift.item() == 0


def written(checkpoint: Path, **changes: Any) -> Prompt:
    given = cases()["audio"]
    asked = {"conversation": given.conversation, "words": given.words, "voice": given.voice, "states": given.states}
    return TalkerPrompts.at(checkpoint).write(**asked | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": []}, "words: expected at least the first text id of a reply, got none"),
        ({"words": [5, 315]}, r"words: expected text ids without bos, eos and pad ids, got \[315\]"),
        ({"words": [330]}, r"words: expected the thinker's text ids in \[0, 330\), got 330"),
        ({"words": ["Hello"]}, "words: expected the thinker's text ids"),
        ({"conversation": [-1]}, "conversation: expected the thinker's text ids"),
        ({"voice": "Ethan"}, "voice: expected one of ethan, chelsie, got 'Ethan'"),
        (
            {"states": None},
            r"states: expected float32 \[9, W\], one for each id of input audio and images, got float32 \[0",
        ),
        ({"states": np.zeros((8, 96), np.float32)}, r"states: expected float32 \[9, W\].* got float32 \[8, 96\]"),
        ({"states": np.zeros((9, 96))}, r"states: .* got float64 \[9, 96\]"),
        (
            {"conversation": turn("user", [VIDEO])},
            "conversation: expected only text, audio and images, got a turn with",
        ),
        ({"grids": [(3, 3)]}, r"grids: expected heights and widths of images of \[\] rows, got \[\(3, 3\)\]"),
        (
            {"conversation": turn("user", [IMAGE] * 6 + [7] + [IMAGE] * 3), "grids": [(2, 3)]},
            r"grids: expected heights and widths of images of \[6, 3\] rows, got \[\(2, 3\)\]",
        ),
        (
            {"conversation": turn("user", [IMAGE] * 9), "grids": [(2, 4)]},
            r"grids: expected heights and widths of images of \[9\] rows, got \[\(2, 4\)\]",
        ),
    ],
)
def test_unspeakable_input_is_refused_by_field_name(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        written(checkpoint, **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda states: states[:, :40], r"features \[F >= 1, 96\], got \[9, 40\]"),
        (lambda states: np.where(states == states.max(), np.nan, states), "finite features, got NaN"),
        (lambda states: np.where(states == states.max(), np.inf, states), "finite features, got NaN"),
    ],
)
def test_invalid_hidden_states_are_refused(
    checkpoint: Path, spoil: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    prompt, expects = written(checkpoint), AudioFormat.from_config(config_at(checkpoint))
    check_audios(prompt, expects)
    (audio,) = prompt.audios
    with pytest.raises(InvalidRequest, match=rf"^audios\[0\]: expected {message}"):
        check_audios(replace(prompt, audios=(replace(audio, features=spoil(audio.features)),)), expects)


def test_open_text_has_no_end_token_yet(checkpoint: Path) -> None:
    whole, begun = written(checkpoint), written(checkpoint, is_open=True)
    assert begun.is_open
    assert (*begun.track, 315) == whole.track


def test_talker_ignores_other_turns(checkpoint: Path) -> None:
    """The thinker's audio input is not read either, because there are no hidden states for it."""
    case = Case(turn("system", [3]) + turn("user", [4]) + turn("assistant", [AUDIO, IMAGE]), [5], "ethan")
    rows = case.prompt(checkpoint, 9).rows
    assert rows[:6, 0].tolist() == turn("user", [4])
    assert len(rows) == 6 + 9


def test_family_is_not_served(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_repository(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "served")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "stretto make-repository: qwen3_omni_talker has no prompts for the server; use it through SpeechLLM"
    )
    assert said.count("\n") == 1


def test_talker_refuses_a_checkpoint_of_another_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    with pytest.raises(CheckpointError, match="expected a checkpoint of qwen3_omni_talker, got 'tiny'"):
        TalkerPrompts.at(tmp_path)
