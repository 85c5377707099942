"""VoxCPM2: two stacked language models that generate patches of latents with a guided diffusion head."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    phonemes={
        "cmu": lazy(f"{__name__}.phonemes:write_cmu"),
        "pinyin": lazy(f"{__name__}.phonemes:write_pinyin"),
    },
    architectures={"StrettoVoxCpmForCausalLM": f"{__name__}.model:StrettoVoxCpmForCausalLM"},
    decoders={"audiovae": DecoderSize(8.66, 18.1)},
)
