"""Point the package at its repository, for a release: links on the index, and images of README.

python .ci/release.py https://host/owner/name v0.2.0

changes pyproject.toml and README.md in place. Relative links work in a checkout and nowhere else.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def absolute(text: str, base: str, tag: str) -> str:
    """Make the relative links of a Markdown text absolute, those of images to the raw file."""

    def image(match: re.Match) -> str:
        return f"{match[1]}({base}/raw/{tag}/{match[2]})"

    def link(match: re.Match) -> str:
        return f"{match[1]}({base}/blob/{tag}/{match[2]})"

    relative = r"\((?!https?:|#|mailto:)([^)\s]+)\)"
    text = re.sub(r"(!\[[^\]]*\])" + relative, image, text)
    return re.sub(r"(?<!!)(\[[^\]]*\])" + relative, link, text)


def main(base: str, tag: str) -> None:
    """Rewrite both files."""
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(), base, tag))
    urls = (f'Repository = "{base}"\nIssues = "{base}/issues"\n'
            f'Changelog = "{base}/blob/{tag}/CHANGELOG.md"\n')  # fmt: skip
    text = project.read_text()
    project.write_text(text.replace("[project.urls]\n", "[project.urls]\n" + urls, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
