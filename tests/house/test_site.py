"""The site that `make docs` builds: without a warning, no dead link or anchor, nothing fetched from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hf_srigl

ROOT = Path(hf_srigl.__file__).parent.parent
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings_handlers") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"pip install '.[docs]' for {', '.join(MISSING)}")
ELSEWHERE = "https://example.org/somebody/hf_srigl"


class Links(HTMLParser):
    """What a page refers to, what can be referred to in it, and what a browser fetches to show it."""

    def __init__(self, page):
        super().__init__()
        self.links, self.anchors, self.fetched, self.text = [], set(), [], page.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.update(attrs[name] for name in ("id", "name") if attrs.get(name))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        loads = tag == "link" and attrs.get("rel") not in ("canonical", "prev", "next", "alternate")
        self.fetched += [attrs[name] for name in ("src", "href") if attrs.get(name) and (name == "src" or loads)]


def build(folder, **environment):
    # not --quiet, with which MkDocs counts no warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    unset = {name: value for name, value in os.environ.items() if name not in ("SITE_REPO_URL", "SITE_URL")}
    environment = {**unset, "NO_MKDOCS_2_WARNING": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {page.relative_to(folder).as_posix(): Links(page) for page in folder.rglob("*.html")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return folder, build(folder)


def test_no_link_of_the_site_is_dead(site):
    folder, pages = site
    dead = []
    for name, page in pages.items():
        if name == "404.html":  # its links start at the root of wherever the site is published
            continue
        for link in {*page.links, *page.fetched}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (folder / name).parent / unquote(parts.path) if parts.path else folder / name
            target = Path(os.path.normpath(target / "index.html" if target.is_dir() else target))
            if not target.is_file():
                dead.append(f"{name}: {link}")
            elif parts.fragment and unquote(parts.fragment) not in pages[target.relative_to(folder).as_posix()].anchors:
                dead.append(f"{name}: no such place: {link}")
    assert not dead, "\n".join(dead)


def test_nothing_is_fetched_from_elsewhere(site):
    _, pages = site
    for name, page in pages.items():
        assert [link for link in page.fetched if urlsplit(link).netloc] == [], name


def test_every_page_of_the_repository_and_every_public_name_is_there(site):
    folder, pages = site
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("")
        assert (name / "index.html" if name.name != "index" else name.with_suffix(".html")).as_posix() in pages, path
    for name in (
        "index.html",
        "examples/index.html",
        "changelog/index.html",
        "quickstart/index.html",
        "results/tables/index.html",
    ):
        assert name in pages
    for name in (path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md")):
        assert f"results/{name}/index.html" in pages
    reference = set().union(*(page.anchors for name, page in pages.items() if name.startswith("api/")))
    assert {f"hf_srigl.{name}" for name in hf_srigl.__all__} <= reference
    assert (folder / "search" / "search_index.json").stat().st_size > 100_000


def test_docstrings_are_spelled_out(site):
    _, pages = site
    config = pages["api/config/index.html"].text
    for name in ("sparsity", "options"):  # "sparsity: ... options: ..." on one line of the source
        assert f"<b><code>{name}</code></b>" in config
    masks = pages["api/helpers/index.html"].text
    for name in ("model", "progress"):  # "model, progress: ..."
        assert f"<b><code>{name}</code></b>" in masks
    for name, page in pages.items():
        if name.startswith("api/"):
            assert "&gt;&gt;&gt;" not in re.sub(r"<code.*?</code>", "", page.text, flags=re.DOTALL), name


def test_the_options_are_those_of_the_configuration(site):
    _, pages = site
    text = pages["api/config/index.html"].text
    for name in hf_srigl.SRigLConfig().to_dict():
        assert f"<td><code>{name} = " in text, name
    assert "<td><code>sparsity = 0.9</code></td>" in text


def test_the_repository_is_linked_where_its_address_is_known(site, tmp_path):
    _, pages = site
    example, results = "examples/accelerate_loop.py", "benchmarks/results"
    assert f"<code>{example}</code>" in pages["using/index.html"].text
    linked = build(tmp_path / "site", SITE_REPO_URL=ELSEWHERE, SITE_URL="https://example.org/site/")
    assert f"{ELSEWHERE}/blob/main/{example}" in linked["using/index.html"].links
    assert f"{ELSEWHERE}/tree/main/examples/configs" in linked["examples/index.html"].links
    assert not any(ELSEWHERE in link and results in link for page in linked.values() for link in page.links)  # pages
