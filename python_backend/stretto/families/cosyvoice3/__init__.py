"""CosyVoice 3: Qwen2 over text followed by codes, with voices from recordings."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="cosyvoice3",
    build=lazy("stretto.families.cosyvoice3.family:build"),
    open_template=lazy("stretto.families.cosyvoice3.prompt:open_template"),
    convert="stretto.families.cosyvoice3.convert",
    releases="stretto.families.cosyvoice3:releases.json",
    recognise="stretto.families.cosyvoice3.recognise:recognise",
    notes="stretto.families.cosyvoice3:releases.md",
    phonemes={
        "cmu": lazy("stretto.families.cosyvoice3.tokens:write_cmu"),
        "pinyin": lazy("stretto.families.cosyvoice3.tokens:write_pinyin"),
    },
)
