"""Where the bundled model lies, from the root of the repository."""

from pathlib import Path

CHECKPOINT = Path("model_repository/language_model/1/checkpoint")
ENGINE_ARGS = Path("model_repository/language_model/1/engine.json")
