"""Two families with mechanisms of their own, registered by entry points in `stretto.families`."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(name="thirds", build=lazy("stretto_thirds.family:build"))
FAST = FamilyPlugin(name="fast_thirds", build=lazy("stretto_thirds.steps:build"))
