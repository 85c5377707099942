"""Mechanism for windows of text and frames: the text's track, the choice of rows, and the CFG pair."""
