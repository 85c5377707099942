"""Hidden states of a prompt are put together from its steps, in any order and repeatedly."""

import numpy as np

from stretto.records.prompt import InputAudio
from stretto_qwen3_omni.qwen3_omni.mechanism.state_rows import StateRows


def rows(*positions: int) -> np.ndarray:
    """Return states of two numbers, ten and a hundred times the position."""
    return np.array([[at, 10 * at, 100 * at] for at in positions], np.float32)


def test_states_are_complete_once_every_row_is_known() -> None:
    features = np.zeros((1, 1), np.float32)
    made = StateRows([InputAudio(3, 2, features), InputAudio(9, 3, features)])
    unknown = [made.first_unknown]
    for part in (rows(3), rows(10, 11), rows(3, 4), rows(9)):
        made.put(part)
        unknown.append(made.first_unknown)
    assert unknown == [3, 4, 4, 9, None]
    assert made.states.tolist() == rows(3, 4, 9, 10, 11)[:, 1:].tolist()
