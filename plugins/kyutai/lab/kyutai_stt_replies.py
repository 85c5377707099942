"""Generate a test fixture with replies from Kyutai's own code for a small random release: text, pauses, Mimi codes.

    python -m plugins.kyutai.lab.kyutai_stt_replies plugins/kyutai/tests/data/kyutai_stt_replies.npz
    python -m plugins.kyutai.lab.kyutai_stt_replies --check plugins/kyutai/tests/data/kyutai_stt_replies.npz

The first command writes the fixture, the second compares it with new replies. moshi 0.2.13 must be importable, with
einops and sphn. The language model reads random codes. Mimi encodes random samples in one pass, because the authors'
own streaming is no longer exact once the window of Mimi's transformer is full.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import run_arrays
from plugins.kyutai.lab.random_kyutai_stt import CONFIG, MIMI_RECORD, write_release

NUM_FRAMES = 90
NUM_MIMI_FRAMES = 42
NUM_MIMI_CODEBOOKS = 8
FRAME = 1920
NOT_FOR_THE_MODEL = {
    "moshi_name",
    "mimi_name",
    "mimi_config_name",
    "tokenizer_name",
    "model_type",
    "stt_config",
    "lm_gen_config",
}
# The rest of Mimi's configuration, as published.
MIMI_DEFAULTS: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "causal": True,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "true_skip": True,
    },
    "quantizer": {"input_dimension": 32, "output_dimension": 32},
    "transformer": {
        "causal": True,
        "layer_scale": 0.01,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "input_dimension": 32,
        "output_dimensions": [32],
    },
}
TOLERANCE = 1e-5  # permitted difference of pause probabilities between processors


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    """Generate the arrays of the fixture."""
    from moshi.models import LMGen, loaders

    torch.set_num_threads(1)  # steps are too small to parallelise
    with tempfile.TemporaryDirectory() as name:
        folder = write_release(Path(name))
        numbers = {key: value for key, value in CONFIG.items() if key not in NOT_FOR_THE_MODEL}
        lm = loaders.get_moshi_lm(folder / "model.safetensors", numbers, dtype=torch.float32)
        mimi_numbers = {
            key: value | MIMI_RECORD.get(key, {}) if isinstance(value, dict) else value
            for key, value in MIMI_DEFAULTS.items()
        }
        mimi = loaders.get_mimi(folder / CONFIG["mimi_name"], mimi_numbers, num_codebooks=NUM_MIMI_CODEBOOKS)
    codes = np.random.default_rng(13).integers(0, CONFIG["card"], (CONFIG["n_q"], NUM_FRAMES))
    text = []
    pauses = []
    generator = LMGen(lm, temp=0, temp_text=0.0, check=True)
    with generator.streaming(1):
        for frame in [0, *range(NUM_FRAMES)]:  # the first call reads initial ids and ignores its input
            said, heads = generator.step_with_extra_heads(torch.from_numpy(codes[None, :, frame : frame + 1]))
            text.append(said[0, 0, 0].item())
            pauses.append([head[0, 0, 0].item() for head in heads])
    random = np.random.default_rng(15)
    pcm = (0.3 * random.standard_normal((1, 1, FRAME * NUM_MIMI_FRAMES))).astype(np.float16)
    mimi_codes = mimi.encode(torch.from_numpy(pcm).float())[0].numpy()
    return {
        "codes": codes.astype(np.uint8),
        "text": np.array(text, np.uint8),
        "pauses": np.array(pauses, np.float32),
        "pcm": pcm[0, 0],
        "mimi_codes": mimi_codes.astype(np.uint8),
    }


if __name__ == "__main__":
    run_arrays(__doc__, make, TOLERANCE)
