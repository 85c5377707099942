"""Phonon (Gradium, https://huggingface.co/gradium/phonon-31m-en): speech as latents of 80 ms each.

    tts     voice, n rows │ text ids │ [bos] ─► x0 x1 x2 … xe … [end]

The rows are those of Pocket TTS. The rows of a voice are latents that a speaker codec has encoded from a recording and
that are projected to the model's width. No other row precedes them.
"""

from dataclasses import dataclass, replace

from stretto.family.base import Family, builder
from stretto.records.sampling import LatentSampling, SamplingConfig
from stretto_pocket.pocket_tts.family import PocketVocabulary, pocket_tts

NAME = "phonon"
# Frames from the detected end, for texts of at most four words and for longer ones.
SHORT_TAIL_ROWS = 4
TAIL_ROWS = 2
FEW_WORDS = 4


@dataclass(frozen=True)
class PhononVocabulary(PocketVocabulary):
    """Ids, voices and hyperparameters of a release. `steps` is the default number of solver steps per latent."""

    has_voice_begin: bool = False
    steps: int = 1

    @property
    def sampling(self) -> SamplingConfig:
        of_pocket = super().sampling
        return replace(
            of_pocket, audio=replace(of_pocket.audio, min_rows=0), latents=LatentSampling(self.steps, TAIL_ROWS)
        )


def phonon(vocabulary: PhononVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    return replace(pocket_tts(vocabulary), name=NAME, voice_details={})


build = builder(PhononVocabulary, phonon)
