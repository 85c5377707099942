"""CosyVoice 3: Qwen2 over text followed by codes, with voices from recordings."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    phonemes={
        "cmu": lazy(f"{__name__}.tokens:write_cmu"),
        "pinyin": lazy(f"{__name__}.tokens:write_pinyin"),
    },
)
