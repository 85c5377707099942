"""Command `stretto pull`: download, check and convert a published release.

stretto pull NAME          release of the names table (stretto list --all)
stretto pull OWNER/NAME    repository on the hub; OWNER/NAME#PART for one of several models
stretto pull ./FOLDER      release in a folder
"""

import argparse
import sys
from dataclasses import replace

from stretto.errors import CommandParser
from stretto.releases.errors import ReleaseError
from stretto.releases.hub import Hub
from stretto.releases.install import Builder, Installer
from stretto.releases.models import InstalledModel, InstalledModels
from stretto.releases.options import choices_of, install_options, interrupted_by_sigterm, token_of
from stretto.releases.printing import gigabytes, line, plain


def main(words: list[str]) -> int:
    """Run `stretto pull` and return its exit code.

    Args:
        words: Command-line arguments after `stretto pull`.
    """
    flags = arguments(words)
    try:
        models = InstalledModels()
        with interrupted_by_sigterm(), Hub(token_of(flags)) as hub, Builder() as builder:
            installer = Installer(models, hub, builder, replace(choices_of(flags), updates=True))
            model = installer.install_named(flags.release)
            if flags.drop_sources:
                _drop_sources(model, models, hub)
    except ReleaseError as error:
        print(f"stretto pull: {plain(str(error))}", file=sys.stderr)
        return error.status
    line("installed", f"{model.manifest.name}: {gigabytes(model.manifest.num_bytes)} in {model.folder}")
    return 0


def _drop_sources(model: InstalledModel, models: InstalledModels, hub: Hub) -> None:
    """Remove the files that a model was made from from the hub's cache, except those of other installed models."""
    unused = models.cached_for([model])
    line("removed", f"{gigabytes(hub.remove(unused))} of the hub's cache")
    if kept := model.manifest.cached - unused:
        line("kept", f"{len(kept)} files that other installed models were made from, too")


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="stretto pull",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[install_options()],
    )
    parser.add_argument("release", help="name, OWNER/NAME, OWNER/NAME#PART, or path of a folder")
    about = "afterwards remove its files from the hub's cache, except those of other installed models"
    parser.add_argument("--drop-sources", action="store_true", help=about)
    return parser.parse_args(words)
