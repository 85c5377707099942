"""Plot the losses of a training log: python -m training.tiny.curves --log FILE --out FILE.png"""

import argparse
import re
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = {
    "codec streams, nats": {f"tts.code{k}": f"codebook {k}" for k in range(7)},
    "stream 0 and text, nats": {
        "tts.frame": "pointer (stay or next)",
        "tts.text": "phonemes of sentences",
        "g2p.text": "phonemes of word strings",
        "asr.text": "transcripts",
        "asr.frame": "frames heard",
    },
    "guided attention, nats": {
        "tts.look0": "frame → next phoneme",
        "tts.look1": "frame → its phoneme",
        "tts.look2": "phoneme → its letters",
        "asr.look3": "phoneme → its sound",
        "asr.look2": "letter → its phonemes",
    },
}
_PAIR = re.compile(r"(\S+) ([\d.]+)")


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Return each quantity of the log as a column. A step that was repeated after a restart counts once.

    A quantity that a step does not report, such as guided attention after its end, is NaN there.
    """
    found = [dict(_PAIR.findall(line)) for line in path.open() if line.startswith("step ")]
    lines = {int(record["step"]): record for record in found}
    return {kind: np.asarray([float(lines[step].get(kind, "nan")) for step in sorted(lines)]) for kind in found[0]}


def draw(log: dict[str, np.ndarray], out: Path) -> None:
    """Plot one panel per group of losses over minutes of training."""
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.4), dpi=80)
    for axis, (title, curves) in zip(axes, PANELS.items(), strict=True):
        for kind, label in curves.items():
            axis.plot(log["s"] / 60, log[kind], label=label, linewidth=1)
        axis.set(title=title, xlabel="minutes", yscale="log")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw(read_log(arguments.log), arguments.out)
