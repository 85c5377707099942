"""VALL-E as ESPnet trains it."""
