"""VibeVoice Realtime: a text model whose hidden states a speech model reads, and text streamed in windows."""

from stretto.family.plugin import family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    text_codec=lazy(f"{__name__}.prompt:text_codec"),
    architectures={"StrettoVibeVoiceRealtimeForCausalLM": (f"{__name__}.model:StrettoVibeVoiceRealtimeForCausalLM")},
)
