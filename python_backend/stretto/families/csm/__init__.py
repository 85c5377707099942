"""CSM: Llama over Mimi frames, with a depth transformer that completes each frame."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="csm",
    build=lazy("stretto.families.csm.family:build", "csm"),
    open_template=lazy("stretto.families.csm.prompt:open_template"),
    convert="stretto.families.csm.convert",
    releases="stretto.families.csm:releases.json",
    recognise="stretto.families.csm.recognise:recognise",
    notes="stretto.families.csm:releases.md",
)
