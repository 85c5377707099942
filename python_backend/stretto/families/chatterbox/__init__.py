"""Chatterbox's T3: Llama over rows of text and then of codes, with learned positions; always guided."""
