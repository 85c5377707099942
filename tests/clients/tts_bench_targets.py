"""The public benchmark of five TTS engines: its unchanged requests to each target, for a few seconds."""

import json
import subprocess
import sys
from pathlib import Path

from report import FOLDER, TEXT, URL, attempt, report

DATASET = FOLDER / "dataset.jsonl"
DATASET.write_text(json.dumps({"id": "garden", "text": TEXT}) + "\n")

for target in ("vllm-omni", "sglang-omni", "voxserve", "mstar", "nari"):
    with attempt(f"target {target}"):
        # Its defaults are a model and a voice of Qwen3-TTS.
        words = [
            "--target",
            target,
            "--model",
            "tts-1",
            "--voice",
            "alloy",
            "--base-url",
            URL,
            "--dataset",
            str(DATASET),
            "--output",
            str(FOLDER / target),
        ]
        command = [str(Path(sys.executable).with_name("bench")), "run", *words]
        command += ["--rps", "0.5", "--warmup", "0s", "--duration", "4s", "--arrival", "constant"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        summary = json.loads((FOLDER / target / "summary.json").read_text())
        counts = {name: summary[f"{name}_requests"] for name in ("scheduled", "dropped", "started", "successful")}
        if not counts["scheduled"] or counts["successful"] != counts["scheduled"]:
            raise RuntimeError(f"requests: {counts}")
        report(f"target {target}", value=counts["successful"])
