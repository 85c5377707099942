"""Hooks for the documentation site (`mkdocs.yml`), and the generator of the option table in `docs/options.md`.

`python -m scripts.docs_site` writes the table. The site includes pages from outside `docs/`, such as those of plug-ins.
Links between files of the repository are converted, so that the same pages work on GitHub and on the site. The page of
published models gets a section on each family, which is not stored.
"""

import posixpath
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typing_extensions import Doc, is_typeddict

from stretto.family.plugin import plugins
from stretto.records.json_record import described
from stretto.releases.show import sections
from stretto_contract.schema import OptionsRecord

ROOT = Path(__file__).parents[1]
OPTIONS_PAGE = ROOT / "docs" / "options.md"
RELEASES_PAGE = "docs/published_models.md"
EXAMPLE = ROOT / "examples" / "custom_family"
TABLE = re.compile(r"(?<=<!-- table: python -m scripts\.docs_site -->\n\n).*?(?=<!-- end -->)", re.DOTALL)
# Pages of the repository outside docs/, and their paths on the site.
OUTSIDE = {"README.md": "index.md"} | {
    path: f"repository/{path}"
    for path in (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "integrations/pipecat/README.md",
        "integrations/livekit/README.md",
        "benchmarks/README.md",
        "benchmarks/results/engine.md",
        "benchmarks/results/ensemble.md",
        "benchmarks/results/robustness.md",
    )
}
LINK = re.compile(
    r"(?P<label>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>(?![a-z]+:|#|/)[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
)
FENCE = re.compile(r"^(```.*?^```|    [^\n]*)$", re.MULTILINE | re.DOTALL)


def site_paths() -> dict[str, str]:
    """Return the site path of every file that the site includes, by repository path."""
    docs = [path for path in sorted((ROOT / "docs").rglob("*")) if path.is_file()]
    families = {str(path.relative_to(ROOT)): f"families/{path.name}" for path in ROOT.glob("plugins/*/docs/*.md")}
    return OUTSIDE | families | {str(path.relative_to(ROOT)): str(path.relative_to(ROOT / "docs")) for path in docs}


def converted_links(markdown: str, source: str) -> str:
    """Return a page's `markdown` with links that work on the site. `source` is its path in the repository.

    If a link's target exists in the repository but not on the site, only the link's label remains. A link to a missing
    file is kept, and mkdocs reports it.
    """
    paths = site_paths()
    folder = posixpath.dirname(paths[source])

    def convert(match: re.Match[str]) -> str:
        label = LINK.sub(convert, match["label"])
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        if target in paths:
            return f"{label}({posixpath.relpath(paths[target], folder or '.')}{match['anchor'] or ''})"
        is_kept = label.startswith("!") or not (ROOT / target).exists()
        return match[0] if is_kept else label[1:-1]

    parts = FENCE.split(markdown)
    return "".join(text if at % 2 else LINK.sub(convert, text) for at, text in enumerate(parts))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside `docs/` to the site (mkdocs hook)."""
    from mkdocs.structure.files import File

    for path, uri in site_paths().items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def release_sections() -> str:
    """Return the sections on the releases of all families, and of the example package."""
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    from stretto_orpheus import PLUGIN

    return sections([*plugins(), PLUGIN])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Convert the links of a page, and add the generated sections (mkdocs hook)."""
    path = str(Path(page.file.abs_src_path).relative_to(ROOT))
    if path == RELEASES_PAGE:
        markdown = f"{markdown}\n{release_sections()}"
    return converted_links(markdown, path)


def option_rows(record: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return the name, expected value and description of each option. An object's fields follow the object.

    Args:
        record: TypedDict with an `Annotated` type, an `Expected` and a `Doc` for each key.
        prefix: Dotted path of the object that contains the options.
    """
    rows = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        option_type, *details = get_args(hint)
        (doc,) = [detail.documentation for detail in details if isinstance(detail, Doc)]
        rows.append((f"{prefix}{name}", described(hint) or "", doc))
        if is_typeddict(option_type):
            rows += option_rows(option_type, f"{prefix}{name}.")
    return rows


def option_table() -> str:
    """Return the Markdown table of all options. Options with the same description share a row."""
    names = defaultdict[tuple[str, str], list[str]](list)
    for name, expected, doc in option_rows(OptionsRecord):
        names[expected, doc].append(f"`{name}`")
    rows = [("option", "expected", "meaning"), ("---", "---", "---")]
    rows += [(", ".join(same), *described_by) for described_by, same in names.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def page_with_table(page: str) -> str:
    """Return the options page with an updated table."""
    return TABLE.sub(lambda _: option_table(), page)


if __name__ == "__main__":
    OPTIONS_PAGE.write_text(page_with_table(OPTIONS_PAGE.read_text()))
