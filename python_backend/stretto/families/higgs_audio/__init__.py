"""Higgs Audio v2: Llama with separate feed-forward layers for rows of text and rows of eight codes."""
