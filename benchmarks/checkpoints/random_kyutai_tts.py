"""Small random releases of Kyutai TTS in the published layout, with the oracle's weights (`random_kyutai_stt`)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.checkpoints import random_kyutai_stt, random_moshi

# As kyutai/tts-0.75b-en-public: a text stream, a recording of the voice before the reply, guidance by pairs.
CONFIG: dict[str, Any] = {
    **random_moshi.CONFIG,
    "model_type": "tts",
    "n_q": 8,
    "dep_q": 8,
    "context": 40,
    "depformer_dim_feedforward": 96,
    "delays": [0, 0, *[2] * 7],
    "conditioners": {},
    "fuser": {"sum": [], "cross": []},
    "tts_config": {"audio_delay": 0.4},
    "model_id": {"sig": "00000001", "epoch": 1},
}


def write_release(folder: Path, seed: int = 7, **changed: Any) -> Path:
    """Write a release; `changed` are fields of its config.json."""
    config = {**CONFIG, **changed}
    random_kyutai_stt.write_parts(folder, config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = random_moshi.lm_shapes(config)
    save_file(
        {name: random_kyutai_stt.values(name, shape, seed) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    return folder
