"""The bundled model, `tiny`."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="tiny",
    build=lazy("stretto.families.tiny.family:build"),
    open_template=lazy("stretto.families.tiny.prompt:open_template"),
    text_codec=lazy("stretto.families.tiny.prompt:open_text_codec"),
)
