"""The codec of Higgs Audio with random weights, for the tests and measurements of all codecs."""

from functools import partial

from transformers import HiggsAudioV2TokenizerConfig

from lab.releases.codec_cases import CodecCase
from lab.releases.every_codec import made
from lab.releases.random_codecs import acoustic_config, hubert_config, write_checkpoint
from stretto_higgs_audio.codec import HiggsModel

NAME = "higgs"


def higgs(is_narrow: bool) -> HiggsModel:
    """Return the Higgs Audio codec: 8 codebooks at 24 kHz."""
    config = HiggsAudioV2TokenizerConfig(
        acoustic_model_config=acoustic_config([8, 5, 4, 2, 3], is_narrow),
        semantic_model_config=hubert_config(is_narrow),
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_dim=8 if is_narrow else 64,
    )
    return HiggsModel(config)


MODELS = {NAME: higgs}
CASES = {NAME: CodecCase(made(NAME), partial(write_checkpoint, NAME), (4, 25))}
