"""Alignment process, which reads jobs from standard input and writes answers to standard output.

    job      {"num_samples": …, "rate": …, "text": …}                         a line of JSON
    answer   {"words": [[word, start_s, end_s, score], …]} | {"unfit": …} | {"failed": …}    a line of JSON

The int16 samples of a job are in a shared-memory file that both processes have open.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from stretto.aligning.align import CannotAlign, split_words
from stretto.aligning.model import RATE, Aligner

FULL_SCALE = 32_768


def main() -> None:
    """Process jobs until standard input is closed."""
    folder = Path(sys.argv[1])
    device = sys.argv[2]
    memory = int(sys.argv[3])
    niceness = int(sys.argv[4])
    # Absolute, because the parent's priority may be raised temporarily while models load (launcher/processes.py).
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    torch.set_num_threads(1)
    aligner = Aligner(folder, device)
    for line in sys.stdin:
        print(json.dumps(answer(aligner, memory, json.loads(line))), flush=True)


def answer(aligner: Aligner, memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job and return its answer; its samples are in the file with descriptor `memory`."""
    try:
        stored = np.empty(job["num_samples"], np.int16)
        if os.preadv(memory, [stored.data], 0) != stored.nbytes:
            return {"failed": "fewer samples than announced"}
        pcm = stored.astype(np.float32) / FULL_SCALE
        if job["rate"] != RATE:
            pcm = soxr.resample(pcm, job["rate"], RATE)
        return {"words": aligner.times(pcm, split_words(job["text"]))}
    except CannotAlign as error:
        return {"unfit": str(error)}
    except Exception as error:  # for example, insufficient memory; the next job may succeed
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
