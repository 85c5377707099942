"""Kit for testing model families: random checkpoints, prompts, an engine in steps, the slow reference, conformance."""

from stretto.testing.conformance import assert_family_conforms

__all__ = ["assert_family_conforms"]
