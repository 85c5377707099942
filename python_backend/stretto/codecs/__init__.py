"""Codecs: codes to waveform and back. One file or folder per codec, with the protocol of `base`."""
