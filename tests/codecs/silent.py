"""Codecs of models that generate only text: they have no samples, so nothing of them is decoded or measured."""

SILENT = frozenset({"soundless", "vibevoice_asr"})
