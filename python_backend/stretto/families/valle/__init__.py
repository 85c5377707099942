"""VALL-E as trained by ESPnet."""
