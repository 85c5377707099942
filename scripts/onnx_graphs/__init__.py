"""Graphs that torch's exporter cannot make, written out operator by operator."""
