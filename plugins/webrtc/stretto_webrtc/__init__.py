"""Realtime sessions over WebRTC, by OpenAI's calls. All modules except `network` need the extra `webrtc`.

`peer` receives the caller's audio and events, `channel` passes audio to the session, and `playout` sends speech.
"""
