"""Orpheus 3B (Canopy Labs) as a Stretto plug-in, registered by the entry point `orpheus` in `stretto.families`."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="orpheus",
    build=lazy("stretto_orpheus.family:build"),
    open_template=lazy("stretto_orpheus.prompt:open_template"),
    convert="stretto_orpheus.convert",
    releases="stretto_orpheus:releases.json",
    recognise="stretto_orpheus.recognise:recognise",
    notes="stretto_orpheus:releases.md",
)
