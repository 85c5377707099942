"""Orpheus 3B (Canopy Labs) as a Stretto plug-in, registered by the entry point `orpheus` in `stretto.families`."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__)
