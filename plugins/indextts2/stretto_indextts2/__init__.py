"""IndexTTS-2: GPT-2 over text followed by codes, in the voice and with the emotion of recordings."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import VECTORS, family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoIndexTts2ForCausalLM": f"{__name__}.model:StrettoIndexTts2ForCausalLM"},
    audio_encoders={"indextts2_voice": VECTORS},
    decoders={"indextts2": DecoderSize(10.69, 1448.5, is_whole=True)},
)
