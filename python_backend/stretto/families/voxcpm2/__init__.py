"""VoxCPM2: two stacked language models that generate patches of latents with a guided diffusion head."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="voxcpm2",
    build=lazy("stretto.families.voxcpm2.family:build"),
    open_template=lazy("stretto.families.voxcpm2.prompt:open_template"),
    convert="stretto.families.voxcpm2.convert",
    releases="stretto.families.voxcpm2:releases.json",
    recognise="stretto.families.voxcpm2.recognise:recognise",
    notes="stretto.families.voxcpm2:releases.md",
    phonemes={
        "cmu": lazy("stretto.families.voxcpm2.phonemes:write_cmu"),
        "pinyin": lazy("stretto.families.voxcpm2.phonemes:write_pinyin"),
    },
    architectures={"StrettoVoxCpmForCausalLM": "stretto.families.voxcpm2.model:StrettoVoxCpmForCausalLM"},
)
