"""Higgs Audio v2: Llama with separate feed-forward layers for text rows and for rows of eight codes."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin
from stretto.family.recognition import CODEC_FROM_COMPANION, Needed, OneRelease

RELEASE = OneRelease(
    "higgs_audio_v2",
    "Higgs Audio v2",
    "higgs_audio_v2",
    refused={"higgs_audio": "Higgs Audio is read only in transformers format, with model_type higgs_audio_v2"},
    convert=CODEC_FROM_COMPANION,
    companions=(Needed("bosonai/higgs-audio-v2-tokenizer", ("*.json", "model.pth")),),
)
PLUGIN = family_plugin(
    __name__,
    recognise=f"{__name__}:RELEASE",
    name="higgs_audio_v2",
    architectures={"StrettoHiggsAudioForCausalLM": f"{__name__}.model:StrettoHiggsAudioForCausalLM"},
    decoders={"higgs": DecoderSize(7.23, 21.8)},
)
