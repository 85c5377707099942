"""Orpheus passes the suite of model families."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stretto_orpheus import PLUGIN
from stretto_orpheus.family import OrpheusVocabulary

from lab.releases.random_orpheus import write_release, write_snac
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import FamilyCase, FamilySuite

MARKERS = {name: 64 + index for index, name in enumerate(OrpheusVocabulary().markers)}
SMALL = OrpheusVocabulary(80 + 7 * 16, 64, 80, 16, MARKERS, max_model_len=256)


def write(folder: Path, size: str) -> list[str]:
    release = write_release(folder / "release", num_shards=1)
    codec = write_snac(folder / "snac")
    files = [f"--model={release}", f"--config={release}/config.json", f"--tokenizer={release}"]
    return ["orpheus", *files, f"--codec={codec}"]


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """Return the authors' prompt: markers around the words, with a single begin of text."""
    markers = release.family.markers
    words = release.preprocessor.template._subwords.ids("leo: so <laugh> it was", "text")
    ids = [markers["human"], markers["begin_of_text"], *words]
    ids += [markers[name] for name in ("end_of_turn", "end_of_human", "ai", "speech")]
    return {"named voice": ({"text": "so <laugh> it was", "options": '{"voice": "Leo"}'}, np.array(ids)[:, None])}


class TestOrpheus(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        prompts=prompts,
        refused_inputs=[(asked(" "), "text: expected text of at least one character")],
        conformance={"vocabulary": SMALL.to_record(), "backbone": "llama", "hidden": 64, "layers": 2},
    )
