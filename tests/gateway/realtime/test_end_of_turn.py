"""Semantic end of turn: the model's input, its file, its decisions in sessions, and what happens without them."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from onnx import TensorProto, helper
from transformers import WhisperFeatureExtractor

from stretto_gateway.command import main
from stretto_gateway.realtime import audio_input, end_of_turn
from stretto_gateway.realtime.end_of_turn import EndOfTurn, last_samples, load, log_mel, read_model
from stretto_gateway.realtime.settings import TURN_END
from stretto_gateway.realtime.state import RealtimeState
from tests.clients.environments import Environment
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import RATE, SAMPLES, TALKS, answer, call, silence, spoken
from tests.patience import PATIENCE_S, until_async

SEMANTIC = {"type": "semantic_vad", "eagerness": "high", "create_response": False}
DELAY_MS = 200  # for windows of 32 ms, and for the last word's end, which fades


@pytest.fixture(autouse=True)
def no_decision_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model take as long as a busy machine may need."""
    monkeypatch.setattr(end_of_turn, "WAIT_S", PATIENCE_S)


def graph(name: str = "input_features", bands: Any = 80, values: tuple[float, ...] = (0.5,), size: int = 1) -> bytes:
    """Return an ONNX file with one input, whose output is these values.

    Args:
        name: Name of the input.
        bands: Size of its first dimension after the batch.
        values: The output.
        size: Number of floats that it allocates for each run.
    """
    read = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", bands, 800])
    written = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constants = [
        helper.make_tensor("values", TensorProto.FLOAT, [1, len(values)], values),
        helper.make_tensor("size", TensorProto.INT64, [1], [size]),
    ]
    nodes = [
        helper.make_node("Shape", [name], ["shape"]),  # the size depends on the input, so it is no constant
        helper.make_node("ReduceMin", ["shape"], ["one"], keepdims=1),
        helper.make_node("Mul", ["one", "size"], ["many"]),
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=1),
        helper.make_node("Add", ["values", "zero"], ["logits"]),
    ]
    made = helper.make_graph(nodes, "graph", [read], [written], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def test_features_equal_those_of_whispers_own_extractor() -> None:
    pcm = np.random.default_rng(0).normal(0, 0.1, end_of_turn.NUM_SAMPLES).astype(np.float32)
    pcm[: 3 * end_of_turn.RATE] = 0
    expected = WhisperFeatureExtractor(chunk_length=8)(
        pcm, sampling_rate=16_000, do_normalize=True, return_tensors="np"
    )
    np.testing.assert_allclose(log_mel(pcm), expected.input_features[0], atol=1e-3)


@pytest.mark.parametrize("seconds", [0.0, 3.0, 20.0])
def test_model_reads_the_last_8_seconds(seconds: float) -> None:
    turn = (np.sin(np.arange(round(seconds * RATE)) / 20) * 9000).astype(np.int16)
    heard = last_samples(turn.tobytes(), RATE)
    expected = soxr.resample(turn.astype(np.float32) / 32768, RATE, 16_000)[-end_of_turn.NUM_SAMPLES :]
    assert len(heard) == end_of_turn.NUM_SAMPLES
    end = heard[len(heard) - len(expected) :]
    np.testing.assert_allclose(end[2000:-2000], expected[2000:-2000], atol=1e-3)
    assert not heard[: len(heard) - len(expected)].any()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a model", "onnxruntime cannot read it"),
        (graph()[:-20], "onnxruntime cannot"),
        (graph(name="audio"), "only input 'input_features' (tensor(float), [batch, 80, 800]), got 'audio'"),
        (graph(bands=128), "got 'input_features' (tensor(float), [batch, 128, 800])"),
        (graph(values=(0.5, 0.5)), "expected a probability as its first output, got float32 [1, 2]"),
        (graph(values=(float("nan"),)), "expected a probability"),
        (graph(size=1 << 34), "onnxruntime cannot run it"),
        (b"", "expected a file of 1 to 134217728 bytes, got 0 bytes"),
    ],
    ids=["text", "cut off", "other input", "other size", "two outputs", "no number", "64 GiB of memory", "empty"],
)
def test_other_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main(["--port", "0", "--turn-model", str(path)])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--turn-model: expected" in line
    assert reason in line


def test_pipe_and_folder_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ValueError, match=r"--turn-model: expected a file .*, got something else"):
            read_model(path)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "none")


async def turn_ends_after_ms(running: Running, *pauses_s: float, is_duplex: bool = False) -> list[float]:
    """Speak a sentence before each pause; return the times from the sentences' ends to the ends of turns."""
    sentence = spoken()
    pcm, ends = [silence(0.5)], list[int]()
    for pause_s in pauses_s:
        pcm += [sentence, silence(pause_s)]
        ends.append(sum(map(len, pcm)) - len(pcm[-1]))
    async with call(running) as caller:
        await caller.update(SEMANTIC)
        await caller.hear(np.concatenate(pcm))
        await caller.send("response.cancel")  # refused after all audio has been processed
        while caller.seen[-1].type != "error":
            await caller.next()
    stopped = [event.audio_end_ms for event in caller.seen if event.type == "input_audio_buffer.speech_stopped"]
    return [ms - max(1000 * end / RATE for end in ends if 1000 * end / RATE <= ms + 100) for ms in stopped]


async def outcomes(running: Running) -> dict[str, int]:
    """Return the number of decisions of each outcome."""
    async with running.http() as http:
        lines = (await http.get("/metrics")).text.splitlines()
    head = 'gateway_turn_decision_seconds_count{outcome="'
    return {line[len(head) :].split('"')[0]: int(float(line.split()[-1])) for line in lines if line.startswith(head)}


async def test_complete_turn_ends_at_once_and_incomplete_one_goes_on(start: Start) -> None:
    complete = await start(answer(), TALKS, turn_model=graph(values=(0.31,)))
    first, second = await turn_ends_after_ms(complete, 0.6, 0.6)
    assert max(first, second) < 200 + DELAY_MS
    assert (await outcomes(complete)) == {"complete": 2}
    incomplete = await start(answer(), TALKS, turn_model=graph(values=(0.29,)))
    (ended,) = await turn_ends_after_ms(incomplete, 1.0, 2.5)
    assert 1900 <= ended < 2000 + DELAY_MS, "one turn, which ends after the longest silence of eagerness high"
    assert (await outcomes(incomplete)) == {"incomplete": 3}, "after 200 ms, and in the second pause after 1600 ms"


async def test_session_tells_what_ends_its_turns(start: Start) -> None:
    for model, expected in ((graph(), "model"), (b"", "silence")):
        async with call(await start(answer(), TALKS, turn_model=model)) as caller:
            assert not hasattr(caller.seen[0], TURN_END), "turns end by silence under server_vad"
            assert getattr(await caller.update(SEMANTIC), TURN_END) == expected


def broken(_: np.ndarray) -> float:
    raise RuntimeError("no memory")


async def test_failed_model_lets_silence_end_the_turn(start: Start) -> None:
    running = await start(answer(), TALKS, turn_model=graph())
    running.app.state.gateway.of_route(RealtimeState).end_of_turn._run = broken
    (ended,) = await turn_ends_after_ms(running, 1.0)
    assert 250 <= ended < 300 + DELAY_MS
    assert await outcomes(running) == {"failed": 1}


async def test_model_receives_only_what_it_reads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a long turn would be copied and held for each question."""
    monkeypatch.setattr(audio_input, "SECONDS", 1)
    running, sizes = await start(answer(), TALKS, turn_model=graph()), list[int]()
    model = running.app.state.gateway.of_route(RealtimeState).end_of_turn

    async def sized(pcm: bytes, *_: Any) -> bool:
        sizes.append(len(pcm))
        return True

    monkeypatch.setattr(model, "is_complete", sized)
    await turn_ends_after_ms(running, 0.6)
    assert sizes == [2 * RATE], "one second of 16 bits"


async def test_slow_model_delays_only_its_own_session(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_of_turn, "MAX_WAITING", 1)
    running, goes_on, has_begun = await start(answer(), TALKS, turn_model=graph()), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    model = running.app.state.gateway.of_route(RealtimeState).end_of_turn

    def slow(_: np.ndarray) -> float:
        loop.call_soon_threadsafe(has_begun.set)
        goes_on.wait(PATIENCE_S)
        return 0.9

    model._run = slow
    first = asyncio.ensure_future(turn_ends_after_ms(running, 0.6))
    await asyncio.wait_for(has_begun.wait(), PATIENCE_S)
    (ended,) = await turn_ends_after_ms(running, 1.0)  # no place for its decision, so silence ends the turn
    assert 250 <= ended < 300 + DELAY_MS
    async with call(running) as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.done")
    assert not first.done()
    goes_on.set()
    (ended,) = await first
    assert ended < 200 + DELAY_MS
    assert await outcomes(running) == {"busy": 1, "complete": 1}
    await until_async(lambda: not model._waiting.held)


async def test_late_answer_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_of_turn, "WAIT_S", 0.01)
    found, goes_on = list[str](), threading.Event()
    model = EndOfTurn(graph(), lambda outcome, _: found.append(outcome))
    model._run = lambda _: float(goes_on.wait(PATIENCE_S))
    assert await model.is_complete(bytes(9600), RATE, 0.5) is None
    assert (found, model._waiting.held) == (["late"], 0)
    goes_on.set()
    model.close()


def quietest(pcm: np.ndarray) -> int:
    """Return the position of the quietest 40 ms in the middle half of a sentence, int16 [n] at 24 kHz."""
    power = np.convolve(pcm.astype(float) ** 2, np.ones(960), "same")
    return len(pcm) // 4 + int(np.argmin(power[len(pcm) // 4 : 3 * len(pcm) // 4]))


def end_of(pcm: np.ndarray) -> int:
    """Return the end of a sentence, int16 [n] at 24 kHz."""
    power = np.convolve(pcm.astype(float) ** 2, np.ones(960), "same")
    return int(np.flatnonzero(power > 1e-3 * power.max())[-1])


@pytest.mark.nightly
def test_published_model_distinguishes_pauses_from_ends_of_sentences() -> None:
    folder = Environment(("pipecat-ai[openai]==1.14.0",), "3.12").make()
    (path,) = folder.rglob("smart-turn-v3.2-cpu.onnx")
    run = load(read_model(path))

    def is_complete(pcm: np.ndarray) -> bool:
        return run(log_mel(last_samples(np.concatenate([pcm, silence(0.2)]).tobytes(), RATE))) >= 0.5

    sentences = [spoken(each.stem) for each in sorted(SAMPLES.glob("*.ogg"))]
    ends = [is_complete(each[: end_of(each)]) for each in sentences]
    pauses = [is_complete(each[: quietest(each[: end_of(each)])]) for each in sentences]
    assert sum(ends) >= 4, "5 of 6 when this test was written"
    assert sum(pauses) <= 2, "1 of 6 when this test was written"
