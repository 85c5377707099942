"""Talker of Qwen3-Omni: Qwen3-TTS's layout with a mixture of experts; it speaks the output of a separate thinker."""
