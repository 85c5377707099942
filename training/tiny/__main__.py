"""The bundled model from an empty folder: python -m training.tiny --folder DIR --out DIR

    words ─► flite ─► shards ─► quantiser ─► codes ─► language model ─┐
                         └────► vocoder ────────────► codec ──────────┴─► checkpoint ─► word error rates

Every step is skipped where its result exists, and goes on where it was interrupted, so the command may be repeated.
Needs flite (`apt-get install flite`) and the extra `train`. About four hours on two cores.
"""

import argparse
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import torch

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


def synthesise_all(folder: Path, utterances: int) -> None:
    """Speak the training sentences with one process per worker; the test sentences are left out."""
    load_pronunciations(folder)
    avoid = {*domain_sentences(), *open_sentences()}
    with get_context("spawn").Pool(WORKERS) as pool:
        pool.starmap(synthesise, [(folder, worker, WORKERS, utterances, avoid) for worker in range(WORKERS)])


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
    """Every step in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where shards and checkpoints are kept (6 GB)")
    parser.add_argument("--out", type=Path, required=True, help="where the exported checkpoint goes")
    parser.add_argument("--utterances", type=int, default=24_000)
    parser.add_argument("--minutes", type=float, default=92, help="of training the language model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    synthesise_all(arguments.folder, arguments.utterances)
    load_test_sets(arguments.folder)
    rvq = fit_codec(arguments.folder)
    encode_shards(arguments.folder, rvq)
    config = TrainingConfig(arguments.folder, arguments.minutes)
    train(config)
    export(config.checkpoint, arguments.out)
    train_codec(arguments.folder, rvq, arguments.out)
    evaluate(arguments.folder, arguments.out, SCALES, SEEDS, list(VOICES))


if __name__ == "__main__":
    main()
