"""VibeVoice Realtime: a text model below a speech model, text streamed in windows, and latents of acoustic frames."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="vibevoice_realtime",
    build=lazy("stretto_vibevoice.vibevoice_realtime.family:build"),
    open_template=lazy("stretto_vibevoice.vibevoice_realtime.prompt:open_template"),
    text_codec=lazy("stretto_vibevoice.vibevoice_realtime.prompt:text_codec"),
    convert="stretto_vibevoice.vibevoice_realtime.convert",
    releases="stretto_vibevoice.vibevoice_realtime:releases.json",
    recognise="stretto_vibevoice.vibevoice_realtime.recognise:recognise",
    notes="stretto_vibevoice.vibevoice_realtime:releases.md",
    architectures={
        "StrettoVibeVoiceRealtimeForCausalLM": (
            "stretto_vibevoice.vibevoice_realtime.model:StrettoVibeVoiceRealtimeForCausalLM"
        )
    },
)
