r"""Write `heard.npz` for the tests: results of the authors' audio encoder with random weights.

git clone https://github.com/VITA-MLLM/VITA-Audio
pip install torch torchaudio funasr omegaconf "numpy<2" safetensors
PYTHONPATH=.:python_backend:VITA-Audio/vita_audio/models/qwen2_mtp_sensevoice_v4_48_3 \
    python -m tests.families.vita_audio.authors_hearing

The encoder comes from FunASR; the authors' copy differs only in the dtype of its mask.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from lab.releases import random_vita as random
from tests.encoders.recordings import speech
from tests.families.vita_audio.hearing import AUTHORS, HIDDEN, LENGTHS, NUM_POSITIONS, thinned


def main() -> None:
    from funasr.frontends.wav_frontend import WavFrontend
    from funasr.models.sense_voice.model import SenseVoiceEncoderSmall, SinusoidalPositionEncoder
    from resampler_projector import ResamplerProjector

    weights = {name: torch.from_numpy(value) for name, value in random.encoder_tensors(HIDDEN).items()}

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}

    config = yaml.safe_load(random.CONFIG)
    encoder = SenseVoiceEncoderSmall(input_size=random.WIDTH, **config["encoder_conf"]).eval()
    encoder.load_state_dict(below(f"{random.TOWER}encoder."))
    projector = ResamplerProjector(random.SIZE, HIDDEN).eval()
    projector.load_state_dict(below(random.ADAPTOR))
    asked = weights[f"{random.TOWER}embed.weight"][[0, 1, 2, 15]]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        numbers = random.write_numbers(Path(folder))
        frontend = WavFrontend(cmvn_file=str(numbers / "am.mvn"), **config["frontend_conf"], dither=0.0)
        found = {}
        for seconds in LENGTHS:
            pcm = torch.from_numpy(speech(seconds))[None]
            features, _ = frontend(pcm, [pcm.shape[1]])
            found[f"features {seconds}"] = thinned(features[0].numpy())
            rows = torch.cat([asked, features[0]])[None]
            encoded, _ = encoder(rows, torch.tensor([rows.shape[1]]))
            found[f"rows {seconds}"] = thinned(projector(encoded)[0].numpy())
    empty = torch.zeros(1, NUM_POSITIONS, random.WIDTH, dtype=torch.bfloat16)
    found["positions"] = thinned(SinusoidalPositionEncoder()(empty)[0].float().numpy())
    np.savez_compressed(AUTHORS, **found)


if __name__ == "__main__":
    main()
