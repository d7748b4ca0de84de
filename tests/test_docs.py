"""The documentation keeps its word: every block of code in docs/ runs, or says why it does not (marks: tests/pages.py);
what it names is there; the site builds, whole and without another host.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pkgutil import resolve_name

import pytest

import diffulm
from pages import (
    LANGUAGES,
    ROOT,
    SERVER,
    SHELLS,
    WHY,
    blocks,
    check,
    every_piece,
    run_python,
    run_shell,
    script,
    write_named,
)

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {page.stem: blocks(page.read_text("utf-8")) for page in DOCS}
TEXT = {page.stem: page.read_text("utf-8") for page in [*DOCS, ROOT / "README.md"]}
ROOTS = (ROOT, ROOT / "src" / "diffulm")
EVERY = [pytest.param(name, block, id=f"{name}-{block.line}") for name, page in PAGES.items() for block in page]


def pages_with(*marks):
    return [name for name, page in PAGES.items() if any(runs(block) and block.mark in marks for block in page)]


def runs(block):
    return block.language in (*SHELLS, "python") and block.mark not in WHY


@pytest.mark.parametrize(("name", "block"), EVERY)
def test_a_block_can_be_understood(name, block):
    assert block.language in LANGUAGES, f"line {block.line}: say what it is: {', '.join(LANGUAGES)}"
    assert block.mark in ("", "quick", "short", *WHY), f"line {block.line}: {block.mark}"
    check(block)
    if block.language == "json":
        rest = block.code.strip()
        while rest:  # one document, or one after the other
            _, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].strip()
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    made = [piece for piece in every_piece(block) if piece[0] == "make"] if block.language in SHELLS else []
    assert all(target in rules for piece in made for target in piece[1:] if "=" not in target)


def through(name, folder, request, *marks):
    """Run the blocks of a page that have one of these marks, in its order."""
    names = {"__name__": "__main__"}
    for block in PAGES[name]:
        if block.language == "yaml":
            write_named(block, folder)
        if not runs(block) or block.mark not in marks:
            continue
        code = block.code if block.language == "python" else script(block)
        if SERVER in code:
            code = code.replace(SERVER, request.getfixturevalue("server"))
        if block.language == "python":
            printed = run_python(code, f"docs/{name}.md", block.line, names, folder)
        else:
            printed = run_shell(code, folder, request.getfixturevalue("shared") if "DIFFULM_SHARED" in code else None)
        if block.mark == "quick" and block.printed is not None:
            assert printed == block.printed, f"docs/{name}.md, line {block.line}"


@pytest.mark.parametrize("name", pages_with("quick"))
def test_what_is_quick_runs(name, tmp_path, request):
    through(name, tmp_path, request, "quick")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", pages_with("", "short"))
def test_the_whole_page_runs(name, tmp_path, request):
    through(name, tmp_path, request, "quick", "", "short")


@pytest.mark.parametrize("name", TEXT)
def test_what_a_page_names_is_there(name):
    for span in re.findall(r"`([^`\n]+)`", TEXT[name]):
        if re.fullmatch(r"diffulm(\.\w+)+", span):
            resolve_name(span)  # ImportError or AttributeError, with the name
        elif re.fullmatch(r"(?!runs/)([a-z_]+/)+[a-z_\d-]+\.[a-z]+", span):
            ours = any((root / span.split("/")[0]).is_dir() for root in ROOTS)  # not of another repository
            assert not ours or any((root / span).exists() for root in ROOTS), span


def test_every_public_name_is_in_the_reference():
    told = set(re.findall(r"^::: diffulm\.(\w+)$", TEXT["api"], re.M))
    assert told == set(diffulm.__all__) - {"__version__"}


# -- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What `make docs` makes, where a link, an anchor or a page that is in no menu is an error."""
    folder = tmp_path_factory.mktemp("site")
    # not --quiet: that hides the warnings from --strict as well
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Asked(HTMLParser):
    """Addresses that a browser asks for by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link", "form"):
            self.addresses += [given[key] for key in ("src", "href", "action", "srcset") if given.get(key)]


def test_the_site_is_whole_and_asks_no_other_host(site):
    pages = sorted(site.glob("*.html"))
    assert {page.stem for page in pages} == {*PAGES, "404"}
    for page in pages:
        asked = Asked(page).addresses
        assert len(asked) > 3  # style, script, search
        assert [one for one in asked if re.match(r"(\w+:)?//", one)] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//|@import", sheet.read_text("utf-8")), sheet.name


def test_the_reference_and_the_readme_are_written_in(site):
    words = {page: (site / f"{page}.html").read_text("utf-8") for page in ("api", "commands", "index")}
    assert not any(":::" in text for text in words.values())
    assert "Continue each prompt by" in words["api"] and "on_text" in words["api"]  # lm.generate, from its docstring
    assert "&lt;hole:1-24&gt;" in words["api"]
    assert "--entropy-bound" in words["commands"]
    assert "anneal_steps" in words["commands"] and "How the future opens" in words["commands"]
    told = re.search(r"## See it work\n\n(.+)", TEXT["README"])[1]
    assert told in words["index"] and told not in TEXT["index"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.mark.slow
def test_a_browser_asks_no_other_host_and_finds(site):
    chromium, playwright = shutil.which("chromium"), pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server,
        playwright.sync_playwright() as play,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in PAGES:
            page.goto(f"{home}{name}.html")
        page.fill("input[name=query]", "first_hitting")
        page.wait_for_selector(".md-search-result__link")
        assert "decoding" in page.get_attribute(".md-search-result__link", "href")
        browser.close()
        server.shutdown()
    assert len(asked) > len(PAGES) and errors == []
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []
