"""Every family has a template."""

from python_backend.families.registry import FAMILIES
from python_backend.preprocessing.prompt import TEMPLATES


def test_every_family_can_be_prompted() -> None:
    assert TEMPLATES.keys() == FAMILIES.keys()
