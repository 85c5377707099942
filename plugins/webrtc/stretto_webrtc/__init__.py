"""Realtime sessions over WebRTC, by OpenAI's calls. The other modules, except `network`, need the extra `webrtc`."""
