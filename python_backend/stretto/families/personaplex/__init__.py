"""PersonaPlex: Moshi with a prompt that sets the voice and the role."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="personaplex",
    build=lazy("stretto.families.personaplex.family:build", "personaplex"),
    open_template=lazy("stretto.families.personaplex.prompt:open_template"),
    text_codec=lazy("stretto.families.moshi.reader:open_text_codec"),
    convert="stretto.families.personaplex.convert",
    releases="stretto.families.personaplex:releases.json",
    recognise="stretto.families.personaplex.recognise:recognise",
    notes="stretto.families.personaplex:releases.md",
    open_live_input=lazy("stretto.families.personaplex.prompt:open_live_input"),
)
