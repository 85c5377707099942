"""Write the codec's files: python -m training.tiny.export_codec --vocoder FILE --rvq FILE --out DIR

`codec.json` has the sizes. `codec.safetensors` has the weights in float16, except that the pitch trunk is in float32.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stretto.codecs.tiny.codec import CONFIG_FILE, WEIGHTS_FILE
from training.tiny.clips import MEL_FRAMES, load_quantiser

PRECISE = "vocoder.pitch_trunk."  # errors in the pitch add up over the utterance


def export(vocoder_file: Path, quantiser_file: Path, out: Path) -> None:
    """Write the two files that `stretto.codecs.tiny.codec.load` reads."""
    saved, quantiser = torch.load(vocoder_file), load_quantiser(quantiser_file)
    num_codebooks, codebook_size, rank = quantiser.codebooks.shape
    record = {
        "num_codebooks": num_codebooks,
        "codebook_size": codebook_size,
        "mel_frames": MEL_FRAMES,
        "rank": rank,
        "vocoder": saved["config"],
    }
    tensors = {f"vocoder.{name}": tensor for name, tensor in saved["vocoder"].items()}
    tensors |= {f"quantiser.{name}": tensor for name, tensor in quantiser.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n")
    save_file(
        {n: (t if n.startswith(PRECISE) else t.half()).contiguous() for n, t in tensors.items()}, out / WEIGHTS_FILE
    )
    (out / WEIGHTS_FILE).chmod(0o644)  # save_file makes the file readable only by its owner


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocoder", type=Path, required=True, help="checkpoint of train_vocoder")
    parser.add_argument("--rvq", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.vocoder, arguments.rvq, arguments.out)
