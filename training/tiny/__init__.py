"""Training of the bundled model, from an empty folder to the committed checkpoint; see `__main__.py`."""
