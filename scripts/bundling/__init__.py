"""What `scripts/offline_bundle.py` does: choose wheels, trim them, cut them into parts, join them again."""
