"""PersonaPlex: Moshi with a prompt that sets the voice and the role."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="personaplex",
    build=lazy("stretto_kyutai.personaplex.family:build", "personaplex"),
    open_template=lazy("stretto_kyutai.personaplex.prompt:open_template"),
    text_codec=lazy("stretto_kyutai.moshi.reader:open_text_codec"),
    convert="stretto_kyutai.personaplex.convert",
    releases="stretto_kyutai.personaplex:releases.json",
    recognise="stretto_kyutai.personaplex.recognise:recognise",
    notes="stretto_kyutai.personaplex:releases.md",
    open_live_input=lazy("stretto_kyutai.personaplex.prompt:open_live_input"),
)
