"""What MkDocs must be told of this repository: pages that stand outside docs/, and links that work on GitHub as well.

Pages are written for GitHub, with links from file to file. On the site a link to a file that is a page of it leads to that
page, and any other file of the repository is linked where `repo_url` (mkdocs.yml) says the repository is, or only named.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BRANCH = "main"
RESULTS = {
    f"results/{path.name}": f"benchmarks/results/{path.name}" for path in (ROOT / "benchmarks/results").glob("*.md")
}
# Pages that are files elsewhere in the repository: page -> file
ELSEWHERE = {
    "index.md": "README.md",
    "quickstart.md": "docs/quickstart.ipynb",
    "examples.md": "examples/README.md",
    "changelog.md": "CHANGELOG.md",
    "results/tables.md": "benchmarks/results",
    "results/study.md": "benchmarks/accuracy/README.md",
    **RESULTS,
}
ALONE = ("index.md", "tasks.md", "changelog.md")  # tabs of one page, which need no list of pages at their side
OPTIONS = "<!-- the options of SRigLConfig -->"  # where api/config.md wants their table

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *(```|~~~)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=_content(page, ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site, or to the repository."""
    here = page.file.src_uri
    if here in ALONE:
        page.meta["hide"] = ["navigation"]
    sources = {f"docs/{file.src_uri}": file.src_uri for file in files}
    sources |= {source: page for page, source in ELSEWHERE.items()}
    source = ELSEWHERE.get(here, f"docs/{here}")

    def rewritten(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return link[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if found in sources:
            to = posixpath.relpath(sources[found], posixpath.dirname(here) or ".")
            return f"{mark}[{text}]({to}{'#' if anchor else ''}{anchor})"
        if not (ROOT / found).exists():
            return link[0]  # MkDocs says so
        if config.repo_url:
            kind = "tree" if (ROOT / found).is_dir() else "blob"
            return f"{mark}[{text}]({config.repo_url.rstrip('/')}/{kind}/{BRANCH}/{found})"
        name = text.strip("`")
        return f"`{found}`" if found.endswith(name) else f"{text} (`{found}`)"

    lines, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= bool(_FENCE.match(line))
        if line.startswith("|"):
            line = line.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        lines.append(line if fenced else _LINK.sub(rewritten, line))
    text = "\n".join(lines).replace(OPTIONS, _options_table() if OPTIONS in markdown else OPTIONS)
    if here == "quickstart.md":
        text += "\n\n[Download the notebook](quickstart.ipynb){ .md-button }\n"
    return text


def _content(page: str, source: Path) -> str:
    if source.is_dir():
        return _table_of_results()
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        return _notebook(text)
    return text if text.startswith("#") else f"# {_title(source)}\n\n{text}"


def _title(source: Path) -> str:
    return source.stem.replace("_", " ").capitalize()


def _notebook(text: str) -> str:
    """A notebook without outputs as Markdown."""
    cells = []
    for cell in json.loads(text)["cells"]:
        lines = "".join(cell["source"])
        cells.append(f"```python\n{lines}\n```" if cell["cell_type"] == "code" else lines)
    return "\n\n".join(cells)


def _table_of_results() -> str:
    rows = []
    for page, source in sorted(RESULTS.items()):
        head = (ROOT / source).read_text(encoding="utf-8")
        facts = [re.search(rf"^- {fact}: (.*)$", head, flags=re.MULTILINE) for fact in ("command", "date", "machine")]
        command, *where = (fact[1] if fact else "" for fact in facts)
        rows.append(f"| [{_title(ROOT / source)}]({Path(page).name}) | {command} | {', '.join(where)} |")
    table = "\n".join(["| table | command | measured |", "|---|---|---|", *rows])
    return f"# Tables\n\nAs the benchmarks wrote them. The study of accuracy has [its own page](../accuracy.md).\n\n{table}\n"


def _options_table() -> str:
    """The fields of SRigLConfig with their defaults and help texts, read from its source."""
    tree = ast.parse((ROOT / "hf_srigl/config.py").read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SRigLConfig")
    rows = ["| option and default | |", "|---|---|"]
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            given: dict[str, Any] = {keyword.arg or "": keyword.value for keyword in node.value.keywords}
            default = ast.unparse(given["default"]) if "default" in given else "[]"
            help_text = ast.literal_eval(given["metadata"])["help"]
            rows.append(f"| `{ast.unparse(node.target)} = {default}` | {help_text} |")
    return "\n".join(rows)
