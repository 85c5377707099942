"""Reference with MTP modules, which recomputes every row from all earlier rows."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from stretto.family.base import Family
from stretto.testing.reference import CachedRows, ReferenceModel, Row
from tests.reference.vita_audio import VitaReference


class ModuleContext(CachedRows):
    """A sequence of rows without any cache."""

    modules: VitaReference
    guessed: list[torch.Tensor]  # hidden states of the main model and of each module

    def read_ahead(self, guess: list[Row]) -> None:
        self.guess, self.guessed = guess, list(self.modules.all_hidden(self.embed(guess), len(guess)))

    @torch.no_grad()
    def last_hidden(self, rows: list[Row], place: int) -> torch.Tensor:
        """Return the hidden state [1, H] for the row after `rows`, of the main model or of module `place` - 1."""
        if rows == self.guess[: len(rows)]:
            return self.guessed[place][len(rows) - place - 1][None]
        return self.modules.hidden(self.embed(rows), place - 1)[-1:]


class ModuleReference(ReferenceModel):
    """Hugging Face's Qwen2 in float64, whose last layers serve as modules."""

    def __init__(self, folder: Path, family: Family, max_model_len: int):
        config = json.loads((folder / "config.json").read_text())
        assert family.mechanism.steps is not None
        num_modules = config["num_nextn_predict_layers"] = family.mechanism.steps.max_extra
        config["num_hidden_layers"] += num_modules
        weights: dict[str, np.ndarray] = load_file(folder / "model.safetensors")
        self._take(VitaReference(config, weights), family, max_model_len)

    @classmethod
    def over(cls, modules: VitaReference, family: Family, max_model_len: int) -> "ModuleReference":
        """Return the family's reference with the modules of a loaded release."""
        made = cls.__new__(cls)
        made._take(modules, family, max_model_len)
        return made

    def _take(self, modules: VitaReference, family: Family, max_model_len: int) -> None:
        self.family, self.max_model_len, self.modules = family, max_model_len, modules
        self.model, self.bias = modules.model, None

    def context(self, heard: dict[int, torch.Tensor] | None = None) -> ModuleContext:
        """Return an empty sequence of rows."""
        made = ModuleContext(self.model, self.family, heard)
        made.modules = self.modules
        return made
