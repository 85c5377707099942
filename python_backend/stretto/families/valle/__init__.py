"""VALL-E as trained by ESPnet."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="valle",
    build=lazy("stretto.families.valle.family:build", "valle"),
    open_template=lazy("stretto.families.valle.prompt:open_template"),
    convert="stretto.families.valle.convert",
    recognise="stretto.families.valle.recognise:recognise",
    load_refinement=lazy("stretto.families.valle.refinement:load"),
    architectures={"StrettoValleForCausalLM": "stretto.engine.models.backbones:StrettoGpt2ForCausalLM"},
)
