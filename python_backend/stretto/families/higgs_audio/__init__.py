"""Higgs Audio v2: Llama whose feed-forward layers are two, one for rows of text and one for rows of eight codes."""
