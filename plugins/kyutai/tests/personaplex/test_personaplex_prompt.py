"""Prompts of PersonaPlex: rows of voices and roles, live or not, and requests that are refused by their fields."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.lab.personaplex_replies import ROLE
from plugins.kyutai.lab.random_personaplex import VOICES, voice_codes
from plugins.kyutai.tests.personaplex_release import conversation, make_checkpoint, replies
from stretto.encoders.loudness import loudness
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto_kyutai.personaplex.family import SILENCE, SINE
from stretto_kyutai.personaplex.prompt import PersonaPlexTemplate, tagged, vocabulary_at

RATE = 24_000
PCM = (np.sin(np.arange(RATE * 5 // 4) ** 1.3 / 300) / 2).astype(np.float32)
USER = np.random.default_rng(5).integers(0, 2048, (8, 6))
PAD, TEXT_IDS = 3, 96
DELAYS = [0, *[0, *[1] * 7] * 2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("personaplex"), num_layers=1, depformer_num_layers=1)


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def expected_rows(checkpoint: Path, voice: np.ndarray, tokens: list[int], num_rows: int) -> np.ndarray:
    """Return the rows of a prompt, and of the delayed codes after it, one id at a time."""
    firsts = [0, *vocabulary_at(checkpoint).first_codes]
    calls = [(PAD, *voice[:, at], *SINE) for at in range(voice.shape[1])]
    calls += (
        [(PAD, *SILENCE, *SINE)] * 6 + [(token, *SILENCE, *SINE) for token in tokens] + [(PAD, *SILENCE, *SINE)] * 6
    )
    rows = np.zeros((num_rows, 17), int)
    for row in range(num_rows):
        for stream, (delay, first) in enumerate(zip(DELAYS, firsts, strict=True)):
            initial = TEXT_IDS if stream == 0 else first + 2048
            frame = min(row - delay, len(calls) - 1)  # undelayed streams of the last row are not compared
            rows[row, stream] = initial if row <= delay else first + calls[frame][stream]
    return rows


def prepared(preprocessor: Preprocessor, system: dict[str, Any], **inputs: Any) -> Prompt:
    options = {"seed": 1, **inputs.pop("options", {})}
    turns = [{"role": "system", **system}, {"role": "user", "codes": USER.tolist()}]
    return preprocessor.prepare(RawRequest(messages=json.dumps(turns), options=json.dumps(options), **inputs))


@pytest.mark.parametrize(("voice", "role"), [("NATF0", ROLE), ("VARM4", "")])
def test_prompt_rows_are_delayed_voice_silence_and_role_frames(
    preprocessor: Preprocessor, checkpoint: Path, voice: str, role: str
) -> None:
    tokens = replies()["role"].tolist() if role else []
    by_codes = preprocessor.prepare(conversation(1, voice, role, USER, by_codes=True))
    num_rows = VOICES[voice] + 12 + len(tokens)
    wanted = expected_rows(checkpoint, voice_codes(voice), tokens, num_rows + 1)
    assert (by_codes.rows == wanted[:-1]).all()
    is_delayed = np.array(DELAYS[1:]) > 0
    assert by_codes.delayed_tail is not None
    assert (by_codes.delayed_tail[0, is_delayed] == wanted[-1, 1:][is_delayed]).all()
    by_name = preprocessor.prepare(conversation(1, voice, role, USER))
    num_vectors, known = VOICES[voice] - 1, vocabulary_at(checkpoint)
    assert by_name.rows[:num_vectors, 0].tolist() == list(known.vectors(voice.lower()))
    assert (by_name.rows[:num_vectors, 1:] == known.nothing).all()
    assert (by_name.rows[num_vectors:] == wanted[num_vectors:-1]).all()
    assert by_name.num_reference_rows == by_codes.num_reference_rows == 1
    track = np.array(by_name.track).reshape(6, 8) - np.array(known.first_codes[8:])
    assert track[0].tolist() == [USER[0, 0], *SINE[1:]]
    assert (track[1:, 1:] == USER[1:, :-1].T).all()


def test_decoder_reference_is_trailing_prompt_silence(preprocessor: Preprocessor) -> None:
    prompt, layout = preprocessor.prepare(conversation(1, "NATF0", ROLE, USER)), preprocessor.family.layout
    codes = [prompt.reference_ids(stream, layout.delays[stream]) - layout.audio[stream].start for stream in range(1, 9)]
    assert np.array(codes).T.tolist() == [list(SILENCE)]


def test_voice_recording_loudness_is_adjusted_before_encoding(preprocessor: Preprocessor, checkpoint: Path) -> None:
    quiet, loud = (
        prepared(preprocessor, {"audio": "pcm_in"}, pcm_in=PCM * gain, sample_rate=RATE) for gain in (0.1, 1)
    )
    level = PCM * 10 ** ((-24 - loudness(PCM, RATE)) / 20)
    codes = preprocessor.codec.encode(np.pad(level.astype(np.float32), (0, -len(PCM) % 1920)))
    wanted = expected_rows(checkpoint, codes, [], len(loud.rows))
    assert (loud.rows != wanted).mean() < 0.01  # codes of another rounding
    assert (quiet.rows != loud.rows).mean() < 0.01
    assert math.isclose(loudness(level, RATE), -24, abs_tol=1e-3)


def test_live_session_prompt_matches_recorded_conversation(preprocessor: Preprocessor) -> None:
    whole = preprocessor.prepare(conversation(1, "NATM1", ROLE, USER))
    system = json.dumps([{"role": "system", "text": ROLE}])
    options = {"seed": 1, "voice": "natm1", "live": True}
    live = preprocessor.prepare(RawRequest(messages=system, options=json.dumps(options)))
    assert (live.is_open, live.track) == (True, ())
    assert (live.rows == whole.rows).all()
    assert live.delayed_tail is not None
    assert whole.delayed_tail is not None
    assert (live.delayed_tail == whole.delayed_tail).all()
    default = preprocessor.prepare(RawRequest(options='{"live": true}'))
    assert default.rows[0, 0] == whole.rows[0, 0] - 14, "the first voice without a role"
    recorded = json.dumps([{"role": "system", "audio": "pcm_in", "text": ROLE}])
    raw = RawRequest(messages=recorded, pcm_in=PCM, sample_rate=RATE, options='{"live": true}')
    assert len(preprocessor.prepare(raw).rows) == 16 + 12 + len(replies()["role"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("You teach.", "<system> You teach. <system>"),
        ("  You teach.\n", "<system> You teach. <system>"),
        ("<system> You teach. <system>", "<system> You teach. <system>"),
        ("<system> You teach.", "<system> <system> You teach. <system>"),
    ],
)
def test_system_tags_are_added_unless_both_are_present(text: str, wanted: str) -> None:
    assert tagged(text) == wanted


def test_blank_role_equals_no_role(preprocessor: Preprocessor) -> None:
    none = preprocessor.prepare(conversation(1, "NATF0", "", USER))
    assert (preprocessor.prepare(conversation(1, "NATF0", " \n", USER)).rows == none.rows).all()


def test_preprocessor_uses_personaplex_template(preprocessor: Preprocessor) -> None:
    assert isinstance(preprocessor.template, PersonaPlexTemplate)
