"""PersonaPlex: Moshi with a prompt that sets the voice and the role."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy("stretto_kyutai.moshi.reader:open_text_codec"),
    open_live_input=lazy(f"{__name__}.prompt:open_live_input"),
)
