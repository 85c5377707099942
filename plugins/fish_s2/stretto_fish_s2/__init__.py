"""Fish Audio S2 Pro: Qwen3 over text and frames of ten codes, and a depth transformer for nine of them."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="fish_s2",
    build=lazy("stretto_fish_s2.family:build"),
    open_template=lazy("stretto_fish_s2.prompt:open_template"),
    convert="stretto_fish_s2.convert",
    releases="stretto_fish_s2:releases.json",
    recognise="stretto_fish_s2.recognise:recognise",
    notes="stretto_fish_s2:releases.md",
)
