"""`stretto pull` of a repository with a model for each language."""

from pathlib import Path

import pytest

from plugins.pocket.lab.random_pocket import write_release
from stretto.releases.messages import ReleaseError
from tests.hub import Repository
from tests.releases.test_install import (  # noqa: F401 (fixtures)
    Pull,
    children,
    contents,
    home,
    models,
    pull,
    repository,
    server,
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "voice")


def test_two_models_in_a_repository(  # the fixtures are imported
    pull: Pull,  # noqa: F811
    repository: Repository,  # noqa: F811
    release: Path,
) -> None:
    languages = ("french", "german")
    files = {f"languages/{each}/{name}": data for each in languages for name, data in contents(release).items()}
    repository.commit(files)
    with pytest.raises(ReleaseError, match="repository with 2 models: acme/voice#languages/french") as caught:
        pull()
    assert caught.value.status == 2
    found = [pull(f"acme/voice#languages/{language}") for language in languages]
    assert [each.manifest.request.release for each in found] == [
        "acme/voice#languages/french",
        "acme/voice#languages/german",
    ]
    assert found[0].folder != found[1].folder
    assert [pull(each.manifest.request.release, updates=False) for each in found] == found
