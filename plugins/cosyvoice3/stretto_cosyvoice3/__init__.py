"""CosyVoice 3: Qwen2 over text followed by codes, with voices from recordings."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="cosyvoice3",
    build=lazy("stretto_cosyvoice3.family:build"),
    open_template=lazy("stretto_cosyvoice3.prompt:open_template"),
    convert="stretto_cosyvoice3.convert",
    releases="stretto_cosyvoice3:releases.json",
    recognise="stretto_cosyvoice3.recognise:recognise",
    notes="stretto_cosyvoice3:releases.md",
    phonemes={
        "cmu": lazy("stretto_cosyvoice3.tokens:write_cmu"),
        "pinyin": lazy("stretto_cosyvoice3.tokens:write_pinyin"),
    },
)
