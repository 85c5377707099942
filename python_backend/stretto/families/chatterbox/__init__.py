"""Chatterbox's T3: Llama over rows of text followed by codes, with learned positions and built-in guidance."""
