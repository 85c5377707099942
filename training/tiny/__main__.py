"""Train the bundled model: python -m training.tiny --scripts DIR --folder DIR --device cuda

    scripts ─► teacher ─► shards ─► codec ─► codes ─► language model

The first folder has the files that `training.tiny.scripts` and `teacher.cut_teacher` write. One GPU and 16 cores need
about ten minutes: the codec learns while the shards are synthesised. If interrupted, the command continues when it is
started again. `export` and `export_codec` then write the checkpoint.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.tiny.codec import TinyCodec, TinyConfig
from training.tiny import builders, synthesise
from training.tiny.corpus import Corpus, load_packed, pack, save_packed
from training.tiny.encode import ShardEncoder, encode, unspoken
from training.tiny.export_codec import PRECISE
from training.tiny.teacher import Head
from training.tiny.train import Trainer, TrainingConfig
from training.tiny.train_codec import CodecTraining, train_codec

UNSPOKEN = 4000  # recordings without speech
ENCODING_THREADS = 3


@dataclass(frozen=True)
class Plan:
    """Folders, device and times of a training run.

    Attributes:
        scripts: Folder of the scripts and of the teacher's parts.
        keep: Folder for copies of the weights, in float16.
        until_s: Time after the start at which the training of the language model ends, in seconds.
    """

    scripts: Path
    folder: Path
    keep: Path
    device: str
    workers: int
    codec_s: float
    until_s: float
    limit: int = 1 << 30
    string_files: int = 50
    codec: Callable[[float], CodecTraining] = CodecTraining
    model: Callable[..., TrainingConfig] = TrainingConfig


def load_codec(path: Path, device: str) -> TinyCodec:
    """Return the codec from a checkpoint of its training."""
    saved = torch.load(path, map_location=device)
    codec = TinyCodec(TinyConfig(**saved["config"])).to(device)
    codec.load_state_dict(saved["codec"])
    return codec.eval().requires_grad_(False)


def codes_of(shard: Path) -> Path:
    return shard.with_name(shard.name.replace("shard", "codes"))


def encode_shards(plan: Plan) -> None:
    """Write the codes of every shard that has none yet."""
    codec = load_codec(plan.folder / "codec.pt", plan.device)
    encoder = ShardEncoder(codec, Head(plan.scripts, plan.device), plan.device)

    def encode_shard(path: Path) -> None:
        speak, listen = encoder.codes(synthesise.read_shard(path))
        save_packed(codes_of(path), {"speak": speak, "listen": listen})

    left = [path for path in sorted(plan.folder.glob("shard_????.npz")) if not codes_of(path).exists()]
    with ThreadPoolExecutor(ENCODING_THREADS) as threads:
        list(threads.map(encode_shard, left))


def without_speech(plan: Plan, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return packed sequences with an empty transcript, and their codes."""
    codec = load_codec(plan.folder / "codec.pt", plan.device)
    generator = torch.Generator(plan.device).manual_seed(0)
    rows = []
    codes = []
    for frames in np.random.default_rng(0).integers(8, 160, -(-count // 50)):
        pcm = unspoken(int(frames), 50, generator)
        with torch.inference_mode():
            found = encode(codec, pcm, int(frames)).cpu().numpy()
        codes += list(found)
        rows += [builders.unheard(int(frames)) for _ in found]
    return pack(rows), np.concatenate(codes)


def corpora(plan: Plan) -> dict[str, Corpus]:
    """Return the sequences of the encoded shards, by task."""
    shards = [
        (synthesise.read_sequences(path), load_packed(codes_of(path)))
        for path in sorted(plan.folder.glob("shard_????.npz"))
        if codes_of(path).exists()
    ]
    silent, silent_codes = without_speech(plan, min(UNSPOKEN, 100 * len(shards)))

    def gathered(task: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([codes[task] for _, codes in shards]))

    speak = gathered("speak")
    listen = torch.cat([gathered("listen"), torch.from_numpy(silent_codes)])
    read = [load_packed(path) for path in sorted(plan.folder.glob("read_????.npz"))]
    found = {
        "tts": Corpus([packed["speak"] for packed, _ in shards], speak.to(plan.device), True, plan.device),
        "asr": Corpus(
            [*(packed["listen"] for packed, _ in shards), silent], listen.to(plan.device), False, plan.device
        ),
        "g2p": Corpus(read, None, False, plan.device),
    }
    print({task: (len(corpus), int(corpus.lengths.sum())) for task, corpus in found.items()}, flush=True)
    return found


def keep_codec(plan: Plan) -> None:
    """Copy the codec's averaged weights and its newest ones to `keep`, in float16."""
    saved = torch.load(plan.folder / "codec.pt", map_location="cpu")
    for kind, file in (("codec", "codec.pt"), ("last", "codec_last.pt")):
        weights = {name: weight if PRECISE in name else weight.half() for name, weight in saved[kind].items()}
        torch.save({"config": saved["config"], "codec": weights, "step": saved["step"]}, plan.keep / file)


def keep_model(plan: Plan, trainer: Trainer) -> None:
    """Copy the language model's weights to `keep`, in float16."""
    weights = {name: weight.half().cpu() for name, weight in trainer.network.state_dict().items()}
    state = {"network": weights, "config": asdict(trainer.network.model.config), "step": trainer.step}
    torch.save(state, plan.keep / "network.partial")
    (plan.keep / "network.partial").replace(plan.keep / "network.pt")


def train(plan: Plan) -> None:
    """Run all steps in order."""
    begun = time.monotonic()

    def log(what: str) -> None:
        print(f"[{time.monotonic() - begun:.0f} s] {what}", flush=True)

    for folder in (plan.folder, plan.keep):
        folder.mkdir(parents=True, exist_ok=True)
    processes = synthesise.start(plan.workers, plan.scripts, plan.scripts, plan.folder, plan.limit, plan.string_files)
    log("synthesis started")
    train_codec(plan.codec(plan.codec_s), plan.folder, plan.scripts, plan.folder, plan.device)
    keep_codec(plan)
    log(f"codec trained, {len(list(plan.folder.glob('shard_????.npz')))} shards")
    encode_shards(plan)
    for process in processes:
        process.terminate()
        process.join()
    encode_shards(plan)
    log("shards encoded")
    found = corpora(plan)
    left_s = plan.until_s - (time.monotonic() - begun)
    trainer = Trainer(plan.model(plan.folder, left_s, plan.device))
    log(f"language model: {sum(weight.numel() for weight in trainer.network.parameters())} weights, {left_s:.0f} s")
    trainer.run(found, lambda: keep_model(plan, trainer))
    keep_model(plan, trainer)
    log("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, required=True, help="folder of scripts and of the teacher's parts")
    parser.add_argument("--folder", type=Path, required=True, help="working folder (15 GB)")
    parser.add_argument(
        "--keep", type=Path, help="folder for copies of the weights; default: the working folder's `kept`"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=15, help="number of processes that synthesise")
    parser.add_argument("--codec-seconds", type=float, default=180)
    parser.add_argument("--until", type=float, default=570, help="end of the training, in seconds after the start")
    parser.add_argument("--limit", type=int, default=1 << 30, help="maximum number of scripts")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    train(
        Plan(
            arguments.scripts,
            arguments.folder,
            arguments.keep or arguments.folder / "kept",
            arguments.device,
            arguments.workers,
            arguments.codec_seconds,
            arguments.until,
            arguments.limit,
        )
    )


if __name__ == "__main__":
    main()
