"""tts-bench, a public benchmark of five TTS engines: its unchanged requests to each target, for a few seconds."""

import json
import subprocess
import sys
from pathlib import Path

from report import FOLDER, TEXT, URL, attempt, report

DATASET = FOLDER / "dataset.jsonl"
DATASET.write_text(json.dumps({"id": "garden", "text": TEXT}) + "\n")

for target in ("vllm-omni", "sglang-omni", "voxserve", "mstar", "nari"):
    with attempt(f"target {target}"):
        # Model, voice and language are its defaults, which are of Qwen3-TTS.
        words = ["--target", target, "--base-url", URL, "--dataset", str(DATASET), "--output", str(FOLDER / target)]
        command = [str(Path(sys.executable).with_name("bench")), "run", *words]
        command += ["--rps", "0.5", "--warmup", "0s", "--duration", "4s", "--arrival", "constant"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        scheduled = json.loads((FOLDER / target / "summary.json").read_text())["scheduled_requests"]
        results = [json.loads(line) for line in (FOLDER / target / "requests.jsonl").read_text().splitlines()]
        # A pause in the audio depends on this machine's load.
        faults = [result["error_message"] for result in results if result["error_kind"] not in (None, "audio_stall")]
        if faults or not 0 < scheduled == len(results):
            raise RuntimeError(f"{len(results)} of {scheduled} requests: {faults}")
        report(f"target {target}", value=len(results))
