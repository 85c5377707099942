"""The refinement benchmark fills the codebooks that it reports."""

import argparse

import numpy as np

from benchmarks.refinement import KNOWN, make_refinement, measure, passages


def test_batched_refinement_matches_unbatched_refinement() -> None:
    arguments = argparse.Namespace(frames=20, rows=5, width=64, layers=1, rounds=1, threads=1)
    told = passages(3, arguments.frames, arguments.rows)
    assert all(18 <= len(passage.first_codes) <= 20 for passage in told)
    refinement = make_refinement(arguments.width, arguments.layers, "cpu")
    codes = refinement.fill(told)[1]
    assert codes.shape == (KNOWN.num_codebooks, len(told[1].first_codes))
    np.testing.assert_array_equal(codes[0], told[1].first_codes)
    figures = measure(refinement, 3, arguments)
    assert (figures["utterances"], figures["differ"]) == (3, 0)
    assert min(float(str(figures[name])) for name in ("fill_s", "speedup_cpu", "real_time_factor")) > 0
