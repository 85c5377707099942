"""Train the bundled model from an empty folder: python -m training.tiny --folder DIR --out DIR

    words ─► flite ─► shards ─► quantiser ─► codes ─► language model ─┐
                         └────► vocoder ────────────► codec ──────────┴─► checkpoint ─► word error rates

    python -m training.tiny --folder DIR --out DIR --start CHECKPOINT --minutes 40

The second form trains the language model of an exported checkpoint further, at a lower rate, and keeps its codec.

Finished steps are skipped and interrupted steps continue, so the command may be repeated. It needs flite (`apt-get
install flite`) and the extra `train`, and takes about four hours on two cores.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file

from stretto.codecs.tiny.codec import CONFIG_FILE, WEIGHTS_FILE
from training.tiny.encode import encode_shards
from training.tiny.evaluate import evaluate
from training.tiny.export import export
from training.tiny.fit_codec import fit_codec
from training.tiny.synthesise import load_pronunciations, synthesise
from training.tiny.test_sets import VOICES, domain_sentences, load_test_sets, open_sentences
from training.tiny.train import TrainingConfig, train

WORKERS = 2
SCALES = [1.0, 2.0]
SEEDS = 3
FURTHER_PEAK = 0.2  # learning-rate scale of a checkpoint that is trained further


def synthesise_all(folder: Path, utterances: int) -> None:
    """Synthesise the training sentences, excluding test sentences, with one process per worker."""
    load_pronunciations(folder)
    avoid = {*domain_sentences(), *open_sentences()}
    with get_context("spawn").Pool(WORKERS) as pool:
        pool.starmap(synthesise, [(folder, worker, WORKERS, utterances, avoid) for worker in range(WORKERS)])


def copy_quantiser(checkpoint: Path, folder: Path) -> Path:
    """Write the quantiser of an exported checkpoint to `rvq.pt` in `folder`, as `fit_codec` does; return its path."""
    path, tables = folder / "rvq.pt", load_file(checkpoint / WEIGHTS_FILE)
    names = {"mu": "mean", "P": "basis", "cb": "codebooks"}
    torch.save({key: tables[f"quantiser.{name}"].float() for key, name in names.items()}, path)
    return path


def train_codec(folder: Path, rvq: Path, out: Path) -> None:
    """Train the vocoder and write the codec's files."""
    run = [sys.executable, "-m"]
    vocoder = folder / "vocoder"
    subprocess.run([*run, "training.tiny.train_vocoder", "--data", folder, "--rvq", rvq, "--out", vocoder], check=True)
    subprocess.run(
        [*run, "training.tiny.export_codec", "--vocoder", vocoder / "vocoder.pt", "--rvq", rvq, "--out", out],
        check=True,
    )


def main() -> None:
    """Run all steps in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="working folder for shards and checkpoints (6 GB)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported checkpoint")
    parser.add_argument("--utterances", type=int, default=24_000)
    parser.add_argument("--start", type=Path, help="exported checkpoint to train further")
    parser.add_argument("--minutes", type=float, default=92, help="training time of the language model, in minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    synthesise_all(arguments.folder, arguments.utterances)
    load_test_sets(arguments.folder)
    start = arguments.start
    rvq = fit_codec(arguments.folder) if start is None else copy_quantiser(start, arguments.folder)
    encode_shards(arguments.folder, rvq)
    config = TrainingConfig(arguments.folder, arguments.minutes)
    if start is not None:
        config = replace(config, start=start, peak=FURTHER_PEAK, flat=0.0)
    train(config)
    export(config.checkpoint, arguments.out)
    if start is None:
        train_codec(arguments.folder, rvq, arguments.out)
    else:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(start / name, arguments.out / name)
    evaluate(arguments.folder, arguments.out, SCALES, SEEDS, list(VOICES))


if __name__ == "__main__":
    main()
