from pathlib import Path

import pytest
import torch

from stretto.codecs.base import CodecSpec, Stateful, Whole, Windowed, codec_module, load_codec


def make_spec(streaming: Windowed | Stateful | Whole, tail_samples: int = 0) -> CodecSpec:
    return CodecSpec(
        "any", 16_000, 320, num_codebooks=2, codebook_size=8, streaming=streaming, tail_samples=tail_samples
    )


@pytest.mark.parametrize("streaming", [Windowed(left=4, right=3), Stateful(left=4, right=3)])
def test_codec_spec_context_is_available_for_each_streaming_kind(streaming: Windowed | Stateful) -> None:
    spec = make_spec(streaming)
    assert (spec.left_frames, spec.right_frames, spec.frame_rate) == (4, 3, 50)


def test_only_the_end_of_an_utterance_omits_the_tail() -> None:
    spec = make_spec(Windowed(4, 3), tail_samples=8)
    assert [spec.num_samples(5, right) for right in (3, 1, 0)] == [1600, 1600, 1592]


def test_reducing_right_context_changes_no_other_spec_field() -> None:
    spec = make_spec(Stateful(4, 3))
    assert spec.with_right_frames(3) == spec
    assert spec.with_right_frames(0) == make_spec(Stateful(4, 0))


@pytest.mark.parametrize(("right", "tail", "least"), [(4, 0, 0), (-1, 0, 0), (0, 8, 1)])
def test_out_of_range_right_context_is_refused(right: int, tail: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"right_frames must be in \[{least}, 3\] for any, got {right}"):
        make_spec(Windowed(4, 3), tail).with_right_frames(right)


@pytest.mark.parametrize(("streaming", "tail"), [(Windowed(-1, 0), 0), (Stateful(0, -1), 0), (Windowed(3, 0), 8)])
def test_invalid_codec_context_is_refused(streaming: Windowed | Stateful, tail: int) -> None:
    with pytest.raises(ValueError, match="require more context than"):
        make_spec(streaming, tail)


def test_whole_utterance_codec_decodes_at_the_end() -> None:
    spec = make_spec(Whole(9))
    assert [spec.complete(frames) for frames in (1, 8, 9)] == [0, 0, 9]
    assert (spec.blocks, spec.max_frames, spec.left_frames, spec.right_frames) == ((), 9, 0, 0)
    assert spec.with_right_frames(0) == spec
    assert make_spec(Stateful(4, 3)).max_frames is None


@pytest.mark.parametrize("wrong", [(0,), (9, 1), (9, 0, 1)])
def test_invalid_whole_utterance_limits_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must have at least one frame"):
        Whole(*wrong)


def test_codecs_are_loaded_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [3]
    # vLLM replaces the second function in a process with an engine
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    seen = list[int]()
    monkeypatch.setattr(codec_module("tiny"), "load", lambda *_: seen.append(torch.get_num_threads()))
    load_codec("tiny", Path())
    assert (seen, threads[-1]) == ([1], 3)
