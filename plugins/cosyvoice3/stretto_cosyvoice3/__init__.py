"""CosyVoice 3: Qwen2 over text followed by codes, with voices from recordings."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin, lazy

VOICES_BYTES = 2 << 30  # of kept results on a CPU; each second of a voice but the last takes 180 MB
PLUGIN = family_plugin(
    __name__,
    phonemes={
        "cmu": lazy(f"{__name__}.tokens:write_cmu"),
        "pinyin": lazy(f"{__name__}.tokens:write_pinyin"),
    },
    decoders={"cosyvoice3": DecoderSize(8.3, 1167.9, voices_bytes=VOICES_BYTES)},
)
