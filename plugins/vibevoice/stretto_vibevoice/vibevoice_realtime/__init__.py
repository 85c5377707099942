"""VibeVoice Realtime: a text model below a speech model, text streamed in windows, and latents of acoustic frames."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.prompt:text_codec"),
    architectures={"StrettoVibeVoiceRealtimeForCausalLM": (f"{__name__}.model:StrettoVibeVoiceRealtimeForCausalLM")},
)
