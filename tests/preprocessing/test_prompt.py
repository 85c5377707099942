"""Every family has a template."""

from python_backend.families.registry import BUILDERS
from python_backend.preprocessing.prompt import TEMPLATES


def test_every_family_can_be_prompted() -> None:
    assert TEMPLATES.keys() <= BUILDERS.keys()
