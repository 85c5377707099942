"""A block's hash covers all streams of its rows and of all earlier rows."""

from collections.abc import Sequence

import numpy as np
import pytest

from stretto.engine.environment import prepare_environment
from stretto.engine.scheduling.block_hashes import row_block_hasher
from stretto.engine.scheduling.row_history import RowHistory
from stretto.records.prompt import Condition, InputAudio

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

BLOCK = 4


def request_of(
    rows: np.ndarray,
    num_prompt_rows: int,
    cache_salt: str | None = None,
    is_read_by_modules: bool = False,
    audios: Sequence[InputAudio] = (),
    condition: Condition | None = None,
) -> Request:
    """Return a request whose first rows are its prompt and whose other rows are generated."""
    history = RowHistory(rows[:num_prompt_rows, 1:].astype(np.int32))
    tokens = rows[:, 0].tolist()
    request = Request("r", tokens[:num_prompt_rows], SamplingParams(max_tokens=99), None, cache_salt=cache_salt)
    request._block_hasher = row_block_hasher(BLOCK, history.rows, audios, is_read_by_modules, condition=condition)
    request.update_block_hashes()
    for row in rows[num_prompt_rows:]:
        history.put(history.num_rows, [row[1:]])
        request.append_output_token_ids(int(row[0]))
    return request


def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (22, 3))


def test_prompt_and_generated_rows_hash_identically() -> None:
    hashes = {num: request_of(rows(), num).block_hashes for num in (1, 6, 8, 22)}
    assert len(hashes[1]) == 22 // BLOCK
    assert all(each == hashes[1] for each in hashes.values())


@pytest.mark.parametrize("stream", [0, 1, 2])
@pytest.mark.parametrize("row", [0, 5, 11, 19])
def test_changed_id_alters_hashes_of_its_block_and_later_ones(row: int, stream: int) -> None:
    changed = rows()
    changed[row, stream] += 1
    before, after = (request_of(each, 22).block_hashes for each in (rows(), changed))
    same = [first == second for first, second in zip(before, after, strict=True)]
    assert same == [block < row // BLOCK for block in range(len(before))]


def test_block_hashes_depend_on_being_read_by_mtp_modules() -> None:
    read, other = (request_of(rows(), 22, is_read_by_modules=is_read).block_hashes for is_read in (True, False))
    assert not set(read) & set(other)


def test_only_requests_with_equal_conditions_share_blocks() -> None:
    vectors = [np.full((2, 3), value, np.float32) for value in (1, 2, 1)]
    conditions = None, *(Condition((7,), each) for each in vectors), Condition((8,), vectors[0])
    hashes = [request_of(rows(), 22, condition=each).block_hashes for each in conditions]
    assert hashes[1] == hashes[3]
    assert len({each for some in (*hashes[:3], hashes[4]) for each in some}) == 4 * (22 // BLOCK)


def test_cache_salt_changes_block_hashes() -> None:
    assert request_of(rows(), 22, "a").block_hashes[0] != request_of(rows(), 22, "b").block_hashes[0]


@pytest.mark.parametrize("first_row", [0, 3, 4, 13])
def test_input_audio_alters_hashes_of_its_block_and_later_ones(first_row: int) -> None:
    """The token rows themselves are equal."""
    audios = [InputAudio(first_row, 6, np.full((6, 2), value, np.float32)) for value in (1.0, 2.0)]
    before, after = (request_of(rows(), 22, audios=[audio]).block_hashes for audio in audios)
    same = [first == second for first, second in zip(before, after, strict=True)]
    assert same == [block < first_row // BLOCK for block in range(len(before))]
