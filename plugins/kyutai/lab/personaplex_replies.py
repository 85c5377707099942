"""Generate a test fixture with replies of PersonaPlex's authors' code on a small random release, frame by frame.

    python -m plugins.kyutai.lab.personaplex_replies plugins/kyutai/tests/data/personaplex_replies.npz
    python -m plugins.kyutai.lab.personaplex_replies --check plugins/kyutai/tests/data/personaplex_replies.npz

The first command writes the fixture, the second compares it with new replies. The folder `moshi` of
https://github.com/NVIDIA/personaplex (commit 3428dfd) must be importable, with einops and sphn. Each reply has a voice
and a role, which may be empty. The first reply is greedy; the others are sampled as in `moshi_replies`. Each voice is
read from its published file and from the codes of its recording, with equal results. The long reply passes the
published window. The authors' code returns each frame one step after it is known. Its first frame is the last frame of
the prompt, so it reads one frame more.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lab.authors.reply_fixture import run_arrays
from plugins.kyutai.lab.moshi_replies import gumbel_sampling, sampling_by
from plugins.kyutai.lab.random_personaplex import CONFIG, voice_codes, voice_file, write_release
from stretto.family.text import sentencepiece_at
from stretto_kyutai.moshi.convert import vocabulary

NUM_FRAMES = 80
NUM_LONG_FRAMES = 3050
ROLE = "who said that the garden door is open"
# Seed, voice and role of each reply. Seed 0 is greedy.
REPLIES = ((0, "NATF0", ROLE), (1001, "VARM4", ROLE), (1002, "NATM1", ""))
LONG: dict[str, Any] = {"context": 3000, "num_layers": 1, "depformer_num_layers": 1}
LONG_REPLY = (7, "NATF0", "")
NOT_FOR_THE_MODEL = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type", "version"}
FIRST_CODES = vocabulary({**CONFIG, "dep_q": 8}).first_codes
STEPS = 8  # of the depth transformer; the others generate the user's codes, which are given


class GivenCodes(torch.nn.Module):
    """Encoder that returns given codes [8, n], frame by frame, instead of those of its samples."""

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__()
        self.device_of = torch.nn.Parameter(torch.zeros(1))
        self._left = [torch.from_numpy(codes[None, :, at : at + 1]) for at in range(codes.shape[1])]

    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        return self._left.pop(0)


def user_codes(number: int, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Return the codes of the user's frames in reply `number`, int64 [8, num_frames]."""
    return np.random.default_rng([11, number]).integers(0, CONFIG["card"], (8, num_frames))


def load(folder: Path, config: dict[str, Any]) -> Any:
    """Return the authors' model of a release."""
    from moshi.models.lm import LMModel

    numbers = {key: value for key, value in config.items() if key not in NOT_FOR_THE_MODEL}
    model = LMModel(**numbers, dtype=torch.float32)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def reply(lm: Any, voice: np.ndarray | Path, role: list[int], user: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of a reply, int64 [T, 9]: the text and the codes of each.

    Args:
        lm: The authors' model.
        voice: Codes of the recording of a voice, [8, V], or a published voice file.
        role: Tokens of the role.
        user: The user's codes, [8, T].
        seed: Seed of the noise; 0 is greedy.
    """
    from moshi.models.lm import LMGen

    num_silent = int(0.5 * 12.5)
    rows = [0]
    frames = []
    settings = {"sample_rate": 24_000, "frame_rate": 12.5, "audio_silence_frame_cnt": num_silent}
    generator = LMGen(lm, device="cpu", use_sampling=seed > 0, text_prompt_tokens=role, check=True, **settings)
    if isinstance(voice, Path):
        generator.load_voice_prompt_embeddings(str(voice))
    else:
        generator.voice_prompt_audio = np.zeros((1, 1920 * voice.shape[1]), np.float32)
    mimi = GivenCodes(np.zeros((8, 0), int) if isinstance(voice, Path) else voice)
    sample = gumbel_sampling([seed], rows, 1 + CONFIG["dep_q"], STEPS, FIRST_CODES) if seed else None
    with sampling_by(sample), generator.streaming(1):
        prepare = generator.prepare_step_input

        def note_row(*given: Any, **named: Any) -> Any:
            rows[0] = max(0, generator._streaming_state.offset - 1)
            return prepare(*given, **named)

        generator.prepare_step_input = note_row
        generator.step_system_prompts(mimi)
        for frame in [*range(user.shape[1]), 0]:
            frames.append(generator.step(torch.from_numpy(user[None, :, frame : frame + 1]))[0, :9, 0].tolist())
    return np.array(frames[1:])


def by_file_and_by_codes(
    folder: Path, name: str, roles: Sequence[int], user: np.ndarray, seed: int, **changed: Any
) -> np.ndarray:
    """Return the frames of a reply in a voice, after its published file and after the codes of its recording."""
    config = {**CONFIG, **changed}
    codes = voice_codes(name)
    stored = voice_file(codes, load_file(folder / "model.safetensors"), config)
    torch.save(stored, folder / f"{name}.pt")
    by_codes, by_file = (
        reply(load(folder, config), voice, list(roles), user, seed) for voice in (codes, folder / f"{name}.pt")
    )
    assert (by_codes == by_file).all(), f"{name}: the file is another voice"
    return by_codes


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    """Return the arrays of the fixture: `role`, `frames` [3, T, 9] and `long_frames`."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    with tempfile.TemporaryDirectory() as name:
        folder = write_release(Path(name) / "release")
        tokens = sentencepiece_at(folder / CONFIG["tokenizer_name"]).encode(f"<system> {ROLE} <system>")
        frames = [
            by_file_and_by_codes(folder, voice, tokens if role else [], user_codes(number), seed)
            for number, (seed, voice, role) in enumerate(REPLIES)
        ]
        seed, voice, _ = LONG_REPLY
        long = write_release(Path(name) / "long", **LONG)
        user = user_codes(len(REPLIES), NUM_LONG_FRAMES)
        long_frames = reply(load(long, {**CONFIG, **LONG}), voice_codes(voice), [], user, seed)
    made = {"role": np.array(tokens), "frames": np.stack(frames), "long_frames": long_frames}
    return {key: value.astype(np.uint16) for key, value in made.items()}


if __name__ == "__main__":
    run_arrays(__doc__, make, tolerance=0.0)
