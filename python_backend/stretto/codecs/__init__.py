"""Codecs: codes to waveform and back. Each codec is a file or folder that implements the protocol in `base`."""
