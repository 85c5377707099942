"""Codecs of models that generate only text: they have no samples, so nothing of them is decoded or measured."""

from stretto.family.plugin import plugins

_FAMILIES = [plugin.build(None) for plugin in plugins()]
_SPEAKING = {family.codec for family in _FAMILIES if family.layout.codebook_streams}
SILENT = {"soundless", *(family.codec for family in _FAMILIES)} - _SPEAKING
