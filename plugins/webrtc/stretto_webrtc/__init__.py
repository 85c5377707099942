"""Realtime sessions over WebRTC, by OpenAI's calls.

The caller's audio and events arrive in `peer`, and `channel` passes audio to the session; `playout` sends speech to
the caller. All modules except `network` need the extra `webrtc`.
"""
