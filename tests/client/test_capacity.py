"""`stretto capacity`: levels of concurrent streams, the search for the largest, and the command."""

import asyncio
import json
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest

from stretto_client.capacity import command
from stretto_client.capacity.host import busy_ticks, processor_name
from stretto_client.capacity.levels import Level, LevelRun, Target, p95_bound
from stretto_client.capacity.report import Report
from stretto_client.capacity.search import Capacity, find_capacity
from stretto_client.capacity.sentences import SENTENCES, mixed
from stretto_client.capacity.traces import Trace, follow
from stretto_client.client import SpeechClient
from tests.client.fake_server import PROFILE, Chunk, ErrorText, FakeServer, Request, Step, Until
from tests.patience import PATIENCE_S

SPOKEN: list[Step] = [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True)]
FULL: list[Step] = [ErrorText("full: 80 sequences are already in flight; try again")]
TRIAL = Target(0.5, 20, most_gaps=0.05)


def trace(first_s: float = 0.1, gap_s: float = 0.0, error: str | None = None, is_refused: bool = False) -> Trace:
    """Return the trace of a text of 20 characters that is spoken as 2 s of audio, of which one half comes later."""
    arrivals = [] if error else [first_s, first_s + 1.0 + gap_s]
    durations = [1.0] * len(arrivals)
    return Trace(0.0, arrivals, durations, 0.0, 2.0, error, is_refused=is_refused, num_chars=20)


def level(streams: int, traces: list[Trace], target: Target = TRIAL, ended: float = 9.0) -> Level:
    return Level(streams, traces, target, audio_per_s=float(streams), ended=ended)


class Machine:
    """Machine in simulated time, which serves `limit` streams well; a request takes a second of a stream.

    Attributes:
        disturbed: Numbers of the levels of which one reply has a gap.
    """

    def __init__(self, limit: int, fault: Trace, disturbed: tuple[int, ...] = ()) -> None:
        self.limit = limit
        self.fault = fault
        self.disturbed = disturbed
        self.now = 0.0
        self.tried: list[int] = []

    async def measure(self, streams: int, target: Target, seconds: float) -> Level:
        number = min(target.num_requests, int(streams * seconds))
        self.now += number / streams
        self.tried.append(streams)
        traces = [trace() for _ in range(number)]
        if streams > self.limit:
            traces[: 1 + number // 10] = repeat(self.fault, 1 + number // 10)
        elif len(self.tried) in self.disturbed:
            traces[0] = trace(gap_s=0.3)
        return level(streams, traces, target)

    def search(self, seconds: float = 120.0) -> Capacity:
        return asyncio.run(find_capacity(self.measure, 0.5, seconds, lambda _: None, clock=lambda: self.now))


LATE = trace(first_s=0.6)
GAP = trace(gap_s=0.3)
REFUSED = trace(error="full", is_refused=True)


@pytest.mark.parametrize("fault", [LATE, GAP, REFUSED, trace(error="failed")])
@pytest.mark.parametrize("limit", [1, 2, 7, 40, 61])
def test_the_largest_number_of_streams_is_found_within_an_eighth(limit: int, fault: Trace) -> None:
    capacity = Machine(limit, fault).search()
    assert capacity.best is not None
    assert limit * 7 / 8 <= capacity.best.streams <= limit
    assert capacity.is_measured
    assert capacity.first_fault is not None
    assert capacity.first_fault.streams > capacity.best.streams
    assert len(capacity.best.traces) > 20


def test_a_level_that_fails_its_measurement_is_replaced_by_a_smaller_one() -> None:
    # 1, 2, 4, 8 and 6 are tried, 5 and 4 measured; both measurements of 5 and more are disturbed
    machine = Machine(5, LATE, disturbed=(7,))
    capacity = machine.search()
    assert machine.tried == [1, 2, 4, 8, 6, 5, 5, 4]
    assert capacity.best is not None
    assert (capacity.best.streams, capacity.is_measured, capacity.best.num_gaps) == (4, True, 0)


def test_one_gap_does_not_end_the_search() -> None:
    capacity = Machine(8, LATE, disturbed=(2,)).search()
    assert capacity.best is not None
    assert capacity.best.streams == 8


def test_a_machine_that_cannot_serve_one_stream_has_no_capacity() -> None:
    capacity = Machine(0, LATE).search()
    assert (capacity.best, capacity.is_certain) == (None, False)
    report = "\n".join(Report(capacity, "1.0", "tiny", None, "texts", 0.0).lines())
    assert "0 streams: with a single one, first audio p95 0.60 s, above 0.5 s." in report


def test_a_short_search_admits_that_it_is_not_certain() -> None:
    assert Machine(1, LATE).search(300).is_certain
    capacity = Machine(1, LATE).search(40)
    assert capacity.best is not None
    assert not capacity.is_certain
    summary = Report(capacity, "1.0", "tiny", None, "texts", 0.0).summary()
    assert any("too few to be sure that the p95 is below 0.5 s" in line for line in summary)


def test_bound_of_the_percentile_needs_59_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert p95_bound(values[:58]) is None
    assert p95_bound(values[:59]) == 59.0
    assert p95_bound(values) == 99.0  # 2 late ones of 100 have a probability of 12 % if 5 % of all are late


def test_figures_of_a_level() -> None:
    ended = level(2, [trace(), trace(first_s=0.3), LATE])
    assert ended.fault() == "first audio p95 0.60 s, above 0.5 s"
    assert ended.real_time_factors == [1.0, 1.0, 1.0]
    assert ended.chars_per_s == pytest.approx(20.0)  # 2 s of audio per second, 10 characters in one
    assert level(1, [GAP] + [trace()] * 9).fault() == "1 of 10 replies would have paused"
    assert level(1, [GAP] + [trace()] * 19).fault() is None
    assert level(1, [GAP] + [trace()] * 19, Target(0.5, 20)).fault() == "1 of 20 replies would have paused"
    assert level(1, [REFUSED, trace()]).fault() == "the server refused 1 of 2 requests: full"


def test_a_reply_without_audio_counts_as_late() -> None:
    waiting = level(1, [trace(), Trace(sent=0.0)])
    assert waiting.first_audio_s == [0.1, 9.0]
    assert waiting.fault() == "first audio p95 9.00 s, above 0.5 s"


def test_cost_of_1000_characters() -> None:
    best = level(2, [trace()] * 60)
    report = Report(Capacity([best], best, True, None), "1.0", "tiny", None, "texts", 0.0, cost_per_hour=1.2)
    assert report.cost_per_1000_characters() == pytest.approx(1.2 / 72)  # 20 characters in a second
    assert "72,000 characters in an hour: 0.01667 for 1,000 characters, at 1.2 an hour" in "\n".join(report.lines())
    assert report.record()["streams"] == 2


def test_texts_are_spoken_equally_often_and_rarely_repeat() -> None:
    lines = mixed()
    texts = [next(lines) for _ in range(10 * len(SENTENCES))]
    assert len(set(texts)) > len(texts) / 2
    assert texts.count(SENTENCES[0]) == 10
    assert not any("{}" in text for text in texts)


def run_level(script: Callable[[Request], list[Step]], streams: int, target: Target) -> tuple[Level, FakeServer]:
    """Measure a level of a scripted server."""

    async def run() -> tuple[Level, FakeServer]:
        server = FakeServer(script)
        try:
            async with SpeechClient(await server.start()) as client:

                async def speak(trace: Trace, text: str, stream: int) -> Trace:
                    return await follow(trace, client.speak(text, check="off", seed=1))

                running = LevelRun(speak, mixed(), streams, target).run(PATIENCE_S / 2)
                return await asyncio.wait_for(running, PATIENCE_S), server
        finally:
            await server.stop()

    return asyncio.run(run())


@pytest.mark.slow
def test_all_streams_of_a_level_send_requests_until_there_are_enough() -> None:
    measured, server = run_level(lambda _: SPOKEN, 3, Target(PATIENCE_S, 20))
    assert measured.fault() is None
    assert len(measured.traces) >= 20
    assert len(server.requests) >= len(measured.traces)
    assert measured.audio_per_s > 0
    assert measured.chars_per_s > 0


def test_a_level_ends_when_the_server_refuses() -> None:
    measured, server = run_level(lambda _: FULL, 2, Target(PATIENCE_S, 1000))
    assert "the server refused" in str(measured.fault())
    assert len(server.requests) < 1000


def test_interrupted_level_cancels_its_requests() -> None:
    async def run() -> int:
        ends = asyncio.Event()
        server = FakeServer(lambda _: [Chunk(0, 640), Until(ends)])
        try:
            async with SpeechClient(await server.start()) as client:

                async def speak(trace: Trace, text: str, stream: int) -> Trace:
                    return await follow(trace, client.speak(text, check="off", seed=1))

                running = asyncio.create_task(LevelRun(speak, mixed(), 1, TRIAL).run(PATIENCE_S))
                while not server.num_played:
                    await asyncio.sleep(0.01)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                await asyncio.wait_for(server.cancelled.wait(), PATIENCE_S)
                return server.num_cancelled
        finally:
            ends.set()
            await server.stop()

    assert asyncio.run(run()) == 1


async def run_command(server: FakeServer, *words: str) -> int:
    """Run the command against a server, and return its exit status."""
    address = await server.start()
    try:
        arguments = [*words, "--server", address]
        return await asyncio.to_thread(command.main, arguments, lambda: pytest.fail("a server was named"), tuple)
    finally:
        await server.stop()


async def test_a_full_server_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer(lambda _: SPOKEN if len(server.requests) <= 3 else FULL)
    words = ("--seconds", "10", "--first-audio", str(PATIENCE_S), "--guidance", "1.5", "--voice", "slt", "--json")
    assert await run_command(server, *words) == 0
    output, errors = capsys.readouterr()
    record = json.loads(output)
    assert record["model"] == "triton"
    assert record["guidance_scale"] == 1.5
    assert record["levels"][0]["streams"] == 1
    assert "the server refused" in record["levels"][-1]["fault"]
    assert not record["is_measured"]
    assert len(record["host"]["processor"]) > 0
    options = json.loads(server.requests[0]["options"])
    assert {"guidance_scale": 1.5, "voice": "slt"}.items() <= options.items()
    assert "1 stream, " in errors


async def test_a_model_that_does_not_speak_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [task for task in PROFILE["tasks"] if task["name"] == "asr"]
    assert await run_command(FakeServer(lambda _: SPOKEN, profile={**PROFILE, "tasks": tasks})) == 2
    assert capsys.readouterr().err.endswith("error: the model tiny has no task tts, which this command measures\n")


async def test_an_invalid_option_is_an_error_before_the_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer(lambda _: [ErrorText("invalid request: voice: expected slt or rms, got 'x'")])
    assert await run_command(server, "--voice", "x") == 2
    assert "the first request failed: voice: expected slt or rms, got 'x'" in capsys.readouterr().err


def test_no_server_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--server", "127.0.0.1:9"], str, tuple) == 3
    assert "no server answers at 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "2"], "expected at least 10 s, got '2'"),
        (["--first-audio", "0"], "expected a number above 0, got '0'"),
        (["--cost-per-hour", "nan"], "expected a number above 0, got 'nan'"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as left:
        command.parse(words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_empty_file_of_texts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").write_text("\n \n")
    assert command.main(["--texts", str(tmp_path / "texts")], str, tuple) == 2
    assert "got no text in" in capsys.readouterr().err


def test_processor_and_its_load_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast One\nflags\t\t: vnni\n")
    (tmp_path / "stat").write_text("cpu  5 1 3 900 20 2 1 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n")
    assert processor_name(tmp_path) == "Fast One"
    assert busy_ticks(tmp_path) == 12
