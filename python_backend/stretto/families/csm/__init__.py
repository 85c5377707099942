"""CSM: Llama over Mimi frames, with a depth transformer that completes each frame."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__)
