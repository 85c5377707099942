"""Run tts-bench, a public load test for streaming speech servers, against a running gateway.

    python -m benchmarks.tts_bench --bench ~/tts-bench/.venv/bin/bench --url http://127.0.0.1:8003

tts-bench runs with its default settings, and requests arrive at random times. The first target runs at each rate, the
other targets at a single rate. The texts come from `perf_inputs.json`. The benchmark writes one line of JSON for each
run.
"""

import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.harness import append_result, command_line

TARGETS = ("vllm-omni", "sglang-omni", "voxserve", "mstar", "nari")
LATE = "audio_stall"  # tts-bench's error kind for complete audio that was late by more than 0.5 s


def write_texts(path: Path) -> None:
    """Write the texts in tts-bench's format."""
    texts = [request["text"][0] for request in json.loads(Path("benchmarks/perf_inputs.json").read_text())["data"]]
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))


def read_figures(folder: Path) -> dict[str, Any]:
    """Read the figures of a finished run: counts of requests, and medians in milliseconds."""
    summary = json.loads((folder / "summary.json").read_text())
    results = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    kinds = Counter(result["error_kind"] for result in results if result["phase"] == "measurement")
    return {
        "scheduled": summary["scheduled_requests"],
        "complete": kinds[None] + kinds[LATE],
        "without_stall": kinds[None],
        "errors": {error_kind: count for error_kind, count in kinds.items() if error_kind not in (None, LATE)},
        "first_byte_ms_p50": summary["ttfb_ms"]["p50"],
        "first_sound_ms_p50": summary["audible_ttfa_ms"]["p50"],
        "seconds": summary["measurement_duration_s"],
    }


def main() -> None:
    """Run the benchmark once for each pair of a target and a rate."""
    args = command_line(
        __doc__,
        "tts_bench",
        bench=("bench", "path of the tts-bench command"),
        url=("http://127.0.0.1:8003", "address of the gateway"),
        rates=([0.5, 1, 2, 4], "requests per second for the first target"),
        others_at=(1.0, "requests per second for the other targets"),
    ).parse_args()
    runs = [(TARGETS[0], rate) for rate in args.rates] + [(target, args.others_at) for target in TARGETS[1:]]
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        write_texts(texts)
        for target, rate in runs:
            out = Path(folder) / f"{target}-{rate}"
            words = ["--target", target, "--base-url", args.url, "--dataset", str(texts), "--rps", str(rate)]
            subprocess.run([args.bench, "run", *words, "--output", str(out)], stdout=subprocess.DEVNULL, check=True)
            append_result(args.out, "tts_bench", {"target": target, "rate": rate, **read_figures(out)})


if __name__ == "__main__":
    main()
