"""Codecs: codes to waveform and back. One file per codec, behind the protocol of `base`."""
