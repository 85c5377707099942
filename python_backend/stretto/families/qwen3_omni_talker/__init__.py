"""Qwen3-Omni's talker: Qwen3-TTS's machine over experts, which speaks what a thinker elsewhere has heard and says."""
