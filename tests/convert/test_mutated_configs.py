"""No value of a release's configs makes the converter fail, hang, or exhaust the memory."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.family_releases import LAYOUTS
from tests.tiers import by_night

# Every how manyth conversion is done by day.
BY_DAY = (("sesame/csm-1b", "types", 400),)
BY_NIGHT = by_night(
    *([(layout, kind, 1)] for layout in LAYOUTS for kind in ("integers", "types")),
    ids=[f"{layout}-{kind}" for layout in LAYOUTS for kind in ("integers", "types")],
)


@pytest.mark.parametrize("cases", [pytest.param(BY_DAY, id="some"), *BY_NIGHT])
def test_changed_config_is_refused_or_converted(cases: Sequence[tuple[str, str, int]], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.mutated_releases", *(str(word) for case in cases for word in case)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each for each in said if "complaint" in each] == []
    assert [each["conversions"] > 0 for each in said] == [True] * len(cases)
