"""OpusLM and its dialogue model."""

from stretto.family.plugin import FamilyPlugin, lazy

OPUSLM = FamilyPlugin(
    name="opuslm",
    build=lazy("stretto.families.opuslm.family:build", "opuslm"),
    open_template=lazy("stretto.families.opuslm.prompt:open_template"),
    convert="stretto.families.opuslm.convert",
    architectures={"StrettoOlmo2ForCausalLM": "stretto.families.opuslm.model:StrettoOlmo2ForCausalLM"},
    releases="stretto.families.opuslm:releases.json",
    recognise="stretto.families.opuslm.recognise:recognise",
    notes="stretto.families.opuslm:releases.md",
)
DIALOGUE = FamilyPlugin(
    name="opuslm_dialogue",
    build=lazy("stretto.families.opuslm.family:build", "opuslm_dialogue"),
    open_template=lazy("stretto.families.opuslm.prompt:open_template"),
    convert="stretto.families.opuslm.convert",
    releases="stretto.families.opuslm:releases.json",
    recognise="stretto.families.opuslm.recognise:recognise",
)
