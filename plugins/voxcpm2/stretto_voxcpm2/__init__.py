"""VoxCPM2: two stacked language models that generate patches of latents with a guided diffusion head."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="voxcpm2",
    build=lazy("stretto_voxcpm2.family:build"),
    open_template=lazy("stretto_voxcpm2.prompt:open_template"),
    convert="stretto_voxcpm2.convert",
    releases="stretto_voxcpm2:releases.json",
    recognise="stretto_voxcpm2.recognise:recognise",
    notes="stretto_voxcpm2:releases.md",
    phonemes={
        "cmu": lazy("stretto_voxcpm2.phonemes:write_cmu"),
        "pinyin": lazy("stretto_voxcpm2.phonemes:write_pinyin"),
    },
    architectures={"StrettoVoxCpmForCausalLM": "stretto_voxcpm2.model:StrettoVoxCpmForCausalLM"},
)
