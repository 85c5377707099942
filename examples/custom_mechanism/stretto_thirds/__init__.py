"""Family with a mechanism of its own, registered by the entry point `thirds` in `stretto.families`."""

from stretto.families.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(name="thirds", build=lazy("stretto_thirds.family:build"))
