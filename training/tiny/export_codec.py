"""Write the codec's files: python -m training.tiny.export_codec --codec FILE --out DIR

`codec.json` has the sizes. `codec.safetensors` has the weights in float16, except that the pitch trunk is in float32.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.codecs.tiny.codec import CONFIG_FILE, WEIGHTS_FILE

PRECISE = "decoder.pitch_trunk."  # errors in the pitch add up over the utterance


def write_weights(out: Path, weights: dict[str, Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (tensor.float() if name.startswith(PRECISE) else tensor.half()).contiguous()
        for name, tensor in weights.items()
    }
    save_file(tensors, out / WEIGHTS_FILE)
    (out / WEIGHTS_FILE).chmod(0o644)  # save_file makes the file readable only by its owner


def export(codec_file: Path, out: Path) -> None:
    """Write the two files that `stretto.codecs.tiny.codec.load` reads."""
    saved = torch.load(codec_file, map_location="cpu")
    write_weights(out, saved["codec"])
    (out / CONFIG_FILE).write_text(json.dumps(saved["config"], indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", type=Path, required=True, help="checkpoint of train_codec")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.codec, arguments.out)
