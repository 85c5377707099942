"""Windows of text and frames: the track of the text, the choice of rows, and the CFG pair."""
