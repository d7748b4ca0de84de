"""The playground in a real browser: headless Chromium, driven by Playwright, against `diffulm serve`."""

import json
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import urlencode

import pytest

from diffulm.options import GenerateOptions, sampler_names

expect = pytest.importorskip("playwright.sync_api").expect
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browsing = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the path")
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")  # what a browser does without being asked
WAIT = 60_000  # ms: a busy machine takes many times the second that a reply takes on a quiet one
SOURCE = "def add(first, second):\n    total = first + second\n    return total\n"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        flags = [f"--disable-{one}" for one in QUIET]
        program = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--no-first-run", *flags])
        yield program
        program.close()


@pytest.fixture
def visit(browser, server):
    """A function that opens the page. What the browser objects to afterwards, and a request elsewhere, fail the test.

    allowed: a pattern of the objections that are meant. routes: address -> what to do with such requests.
    """
    contexts, wrong = [], []

    def open_page(address="/", allowed="$^", routes=(), ready=True, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        complain = lambda line: re.search(allowed, line) or wrong.append(line)  # noqa: E731
        page.on("console", lambda one: complain(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda one: complain(str(one)))
        page.on("request", lambda one: None if one.url.startswith(f"{server}/") else wrong.append(one.url))
        for pattern, do in dict(routes).items():
            page.route(pattern, do)
        page.goto(server + address)
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def idle(page):
    """Wait until nothing runs any more."""
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "true", timeout=WAIT)


def press(page, button):
    page.locator(button).click()
    idle(page)


def write(page, text, selection=None):
    """Put a text into the editor; `selection` is a part of it, found once."""
    page.fill("#text", text)
    if selection is not None:
        assert text.count(selection) == 1
        start = text.index(selection)
        page.locator("#text").evaluate("(e, [a, b]) => e.setSelectionRange(a, b)", [start, start + len(selection)])


def masks(page):
    return page.locator("#canvas .masked").count()


def refused(status, message, param=None, **headers):
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
    return lambda route: route.fulfill(status=status, json=body, headers=headers)


@browsing
def test_a_selection_is_rewritten_and_replayed(visit):
    page = visit()
    write(page, SOURCE, "+ second")
    page.evaluate("""() => {
        window.seen = [];
        const look = () => window.seen.push(document.querySelectorAll("#canvas .masked").length);
        new MutationObserver(look).observe(document.querySelector("#canvas"), { childList: true });
    }""")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    idle(page)
    expect(page.locator("#said")).to_contain_text(re.compile("Rewritten:|The same text"))
    before, after = SOURCE.split("+ second")
    text = page.input_value("#text")
    assert text.startswith(before) and text.endswith(after) and len(text) > len(before + after)
    expect(page.locator("#frame")).to_contain_text(", 0 masked")
    assert page.locator("#canvas").text_content() == text
    assert page.locator("#canvas .given").count() > 5 and page.locator("#canvas .free").count() > 1
    tokens = int(page.locator("#costs tbody td").first.inner_text())
    assert tokens > 2 and set(range(tokens + 1)) == set(page.evaluate("window.seen"))  # one token a step, all seen

    page.focus("#slider")
    page.keyboard.press("Home")
    assert masks(page) == tokens and page.locator("#canvas .free").count() == 0
    assert "step 0" in page.get_attribute("#slider", "aria-valuetext").lower()
    page.keyboard.press("ArrowRight")
    assert masks(page) == tokens - 1 and page.locator("#canvas .new").count() == 1
    page.click("#play")
    expect(page.locator("#canvas .masked")).to_have_count(0, timeout=WAIT)

    page.click("#undo")
    assert page.input_value("#text") == SOURCE


@browsing
def test_the_parent_stands_beside_it(visit):
    page = visit()
    write(page, "def add(a, b):\n    return <hole:3>\n\nadd(1, 2)\n")
    press(page, "#fill")
    assert "<hole" not in page.input_value("#text") and page.input_value("#text").endswith("\n\nadd(1, 2)\n")
    assert page.locator("#parent-text .given").text_content() == "def add(a, b):\n    return "
    assert page.locator("#parent-text .new").text_content() != ""
    expect(page.locator("#parent-how")).to_contain_text("cannot see")
    rows = [row.split("\t") for row in page.locator("#costs tbody").inner_text().split("\n")]
    assert [row[0].split(",")[0] for row in rows] == ["pocket", "pocket-ar"]
    assert [row[1:3] for row in rows] == [["3", "3"], ["3", "3"]] and all(float(row[3]) > 0 for row in rows)


@browsing
def test_a_link_gives_the_text_again(visit, server):
    page = visit()
    page.fill("#temperature", "1")
    page.fill("#max_tokens", "6")
    page.uncheck("#ask-parent")
    write(page, "import os\n\n")
    press(page, "#continue")
    made = page.input_value("#text")
    assert made.startswith("import os\n\n") and len(made) > len("import os\n\n")
    assert page.input_value("#seed") == ""  # drawn, and in the link

    other = visit(page.url.removeprefix(server))
    assert other.input_value("#text") == "import os\n\n" and other.input_value("#temperature") == "1"
    expect(other.locator("#linked-what")).to_contain_text("a continuation by pocket, seed")
    other.uncheck("#ask-parent")
    press(other, "#linked-run")
    assert other.input_value("#text") == made


@browsing
def test_chat_answers(visit):
    page = visit()
    page.click("#tab-chat")
    expect(page.locator("#untuned")).to_be_visible()  # pocket was not tuned to
    page.fill("#max_tokens", "12")
    page.fill("#say", "def add(a, b):")
    page.focus("#say")
    page.keyboard.press("Enter")
    idle(page)
    assert page.locator("#talk li").count() == 2
    expect(page.locator("#said")).to_contain_text("pocket: ")
    assert page.input_value("#say") == ""
    expect(page.locator("#frame")).to_contain_text(", 0 masked")


class _Form(HTMLParser):
    """The values of each select, the placeholder of each input."""

    def __init__(self):
        super().__init__()
        self.options, self.placeholders, self.select = {}, {}, ""

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.select = known["id"] if tag == "select" else self.select
        if tag == "option":
            self.options.setdefault(self.select, []).append(known["value"])
        if tag == "input":
            self.placeholders[known["id"]] = known.get("placeholder")


def test_the_form_knows_the_samplers_and_the_defaults():
    from diffulm.serving.bodies import CompletionBody

    form, defaults = _Form(), GenerateOptions()
    form.feed(files("diffulm").joinpath("assets/playground/index.html").read_text("utf-8"))
    assert sorted([*filter(None, form.options["sampler"]), defaults.sampler]) == sampler_names()
    assert float(form.placeholders["temperature"]) == defaults.temperature
    assert float(form.placeholders["top_p"]) == defaults.top_p
    assert int(form.placeholders["max_tokens"]) == CompletionBody.model_fields["max_tokens"].default


def test_nothing_is_inline():
    """What the server's Content-Security-Policy would not run or paint."""
    html = files("diffulm").joinpath("assets/playground/index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|https?://", html)


@browsing
@pytest.mark.slow
def test_a_free_hole_is_put_in_and_filled(visit):
    page = visit()
    write(page, "def close(self): self.file.close()\n")
    page.focus("#text")
    page.keyboard.press("Control+Home")
    for _ in "def ":
        page.keyboard.press("ArrowRight")
    page.fill("#tokens", "2")
    page.click("#hole")
    assert page.input_value("#text") == "def <hole:2>close(self): self.file.close()\n"
    page.keyboard.press("Control+z")
    page.click("#free-hole")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    idle(page)
    text = page.input_value("#text")
    assert text.startswith("def ") and text.endswith("close(self): self.file.close()\n") and "<hole" not in text
    assert int(page.get_attribute("#slider", "max")) >= 1
    page.focus("#text")
    page.keyboard.press("Control+z")  # what the key has put in is undone by the key
    assert "<hole>" in page.input_value("#text")


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("span", ["exactly", "most"])
def test_the_length_of_a_rewrite(visit, span):
    page = visit()
    page.uncheck("#ask-parent")
    page.select_option("#span", span)
    page.fill("#tokens", "5")
    write(page, SOURCE, "total = ")
    press(page, "#rewrite")
    tokens = int(page.locator("#costs tbody td").first.inner_text())
    assert tokens == 5 if span == "exactly" else 1 <= tokens <= 5
    assert page.input_value("#text").endswith("first + second\n    return total\n")


@browsing
@pytest.mark.slow
def test_several_tokens_at_a_time(visit):
    page = visit()
    page.uncheck("#ask-parent")
    page.select_option("#pace", "4")
    write(page, SOURCE)
    press(page, "#continue")
    assert page.locator("#costs tbody td").nth(1).inner_text() == "4"  # forwards for 16 tokens


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_colours(visit, scheme):
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    write(page, SOURCE + "x" * 100, "+ second")
    press(page, "#rewrite")
    page.click("#settings summary")
    found = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", found))) > 600) == (scheme == "light")
    for tab in ("write", "chat"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
        assert page.evaluate(CUT_OFF) == []
        assert page.evaluate(PALE) == []


# What sticks out of the window, and text that stands out too little from what is behind it (WCAG: 4.5 to 1).
CUT_OFF = """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
  && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80))"""
PALE = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => (e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : []);
  const says = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.value;
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && says(e) && !e.matches(".masked, option"))
    .filter((e) => {
      const back = behind(e);
      const [a, b] = [light(over(back)), light(over([...back, getComputedStyle(e).color]))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    }).map((e) => e.outerHTML.slice(0, 100));
}"""


@browsing
@pytest.mark.slow
def test_with_the_keyboard_alone(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "tab-write"
    page.keyboard.press("ArrowRight")
    expect(page.locator("#chat")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#chat")).to_be_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "text"
    page.keyboard.press("Control+a")
    page.keyboard.type("x = y")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Control+Enter")
    idle(page)
    assert page.input_value("#text").startswith("x = ")
    assert page.evaluate("() => document.activeElement.id") == "text"  # the focus stays
    reached = []
    while (now := page.evaluate(FOCUSED))[0] not in ("", *reached[:-1]) and len(reached) < 100:
        assert now[1], f"{now[0]} has the focus and does not show it"
        reached.append(now[0])
        page.keyboard.press("Tab")
    wanted = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, summary, a[href]")]
        .filter((e) => e.checkVisibility() && e.tabIndex >= 0).map((e) => e.id || e.tagName)""")
    assert set(wanted) - set(reached) == {"tab-write"}  # all of them but the one before


FOCUSED = """() => { const e = document.activeElement;
  return e === document.body ? ["", true] : [e.id || e.tagName, getComputedStyle(e).outlineStyle !== "none"]; }"""


@browsing
@pytest.mark.slow
def test_every_control_has_a_name(visit):
    page = visit()
    press(page, "#fill")
    page.click("#tab-chat")
    page.fill("#max_tokens", "4")
    page.fill("#say", "hello")
    press(page, "#send")
    for tab in ("chat", "write"):
        page.click(f"#tab-{tab}")
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        named = {}
        for node in tree:
            if not node.get("ignored"):
                named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        for role in (
            "button",
            "textbox",
            "combobox",
            "slider",
            "tab",
            "tabpanel",
            "checkbox",
            "table",
            "region",
            "tablist",
        ):
            assert named[role] and all(named[role]), (role, named[role])
        assert "status" in named


@browsing
@pytest.mark.slow
def test_stop_ends_the_request(visit):
    page = visit()
    page.fill("#max_tokens", "200")
    write(page, SOURCE)
    page.click("#continue")
    page.wait_for_selector("#canvas .masked")
    with page.expect_event("requestfailed") as failed:
        page.click("#stop")
    assert failed.value.url.endswith("/v1/completions")
    idle(page)
    expect(page.locator("#said")).to_contain_text("Stopped")
    assert page.input_value("#text") == SOURCE and page.locator("#problem").is_hidden()
    page.fill("#max_tokens", "4")
    press(page, "#continue")
    assert page.input_value("#text").startswith(SOURCE) and page.input_value("#text") != SOURCE


@browsing
@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_in_the_tab(visit):
    def guard(route):
        if route.request.headers.get("authorization") == "Bearer open":
            route.continue_()
        else:
            refused(401, "a key is needed")(route)

    page = visit(allowed="401", routes={"**/v1/**": guard}, ready=False)
    expect(page.locator("#key-dialog")).to_be_visible()
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-why")).to_have_text("a key is needed")
    page.fill("#key", "open")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready]")
    write(page, SOURCE)
    press(page, "#continue")
    assert page.input_value("#text") != SOURCE
    assert "open" in page.evaluate("() => Object.values(sessionStorage)")
    assert page.evaluate("() => localStorage.length") == 0 and page.context.cookies() == []
    assert "open" not in page.url.split("#")[1]
    page.reload()
    page.wait_for_selector("body[data-ready]")  # without being asked again


ENDS = 'data: {"choices": [{"index": 0, "text": " half"}]}\n\n'
FAILURES = {
    "full": (refused(429, "the queue is full", **{"Retry-After": "7"}), "the queue is full (try again in 7 s)"),
    "down": (refused(503, "the model is not ready"), "the model is not ready"),
    "strange": (lambda route: route.fulfill(status=502, body="<html>no"), "(502)"),
    "gone": (lambda route: route.abort("connectionrefused"), "The server does not answer"),
    "torn": (lambda route: route.fulfill(body=ENDS, content_type="text/event-stream"), "in the middle of the answer"),
    "late": (
        lambda route: route.fulfill(body=f"{ENDS}data: {json.dumps({'error': {'message': 'died'}})}\n\n"),
        "died",
    ),
}


@browsing
@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line_and_the_text_stays(visit, name):
    do, line = FAILURES[name]
    page = visit(allowed="Failed to load resource", routes={"**/v1/completions": do})
    write(page, SOURCE)
    press(page, "#continue")
    expect(page.locator("#problem")).to_contain_text(line)
    assert "\n" not in page.locator("#problem").inner_text() and page.input_value("#text") == SOURCE
    page.unroute("**/v1/completions")
    press(page, "#continue")
    assert page.locator("#problem").is_hidden() and page.input_value("#text") != SOURCE


@browsing
@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", "-1"),
        ("seed", "-3"),
        ("threshold", "2"),
        ("block_size", "0"),
        ("max_tokens", "1.5"),
    ],
)
def test_what_the_server_refuses_stands_beside_its_field(visit, field, value):
    page = visit(allowed="400", viewport={"width": 700, "height": 700})  # narrow: the settings are closed
    write(page, SOURCE)
    page.click("#settings summary")
    page.fill(f"#{field}", value)
    page.click("#settings summary")
    with page.expect_response("**/v1/completions") as response:
        press(page, "#continue")
    error = response.value.json()["error"]
    assert response.value.status == 400 and error["param"] == field
    beside = page.locator(f"#{field} + .error")
    expect(beside).to_be_visible()
    assert beside.inner_text() == error["message"] and page.get_attribute(f"#{field}", "aria-invalid") == "true"
    assert page.input_value("#text") == SOURCE
    page.fill(f"#{field}", "")
    press(page, "#continue")
    assert beside.count() == 0 and page.input_value("#text") != SOURCE


@browsing
@pytest.mark.slow
def test_a_conversation_goes_on_retries_and_clears(visit):
    said = [{"role": "user", "content": "def f"}]
    state = {"do": "chat", "model": "pocket", "messages": json.dumps(said), "max_tokens": 6, "seed": 3}
    page = visit(f"/#{urlencode(state)}")
    press(page, "#linked-run")
    assert page.locator("#talk li").count() == 2
    page.fill("#system", "Write Python.")
    page.fill("#say", "and now\nclass A:")
    with page.expect_request("**/v1/chat/completions") as asked:
        press(page, "#send")
    messages = asked.value.post_data_json["messages"]
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"] == "and now\nclass A:" and asked.value.post_data_json["seed"] == 3
    press(page, "#retry")
    assert page.locator("#talk li").count() == 4
    page.click("#clear")
    assert page.locator("#talk li").count() == 0


@browsing
@pytest.mark.slow
def test_little_motion_and_a_reload(visit):
    page = visit(reduced_motion="reduce")
    write(page, SOURCE)
    page.evaluate("""() => {
        window.seen = 0;
        new MutationObserver(() => { window.seen += document.querySelectorAll("#canvas .masked").length; })
            .observe(document.querySelector("#canvas"), { childList: true });
    }""")
    press(page, "#continue")
    assert page.evaluate("window.seen") == 0 and page.locator("#canvas .free").count() > 1  # drawn once, when full
    page.focus("#slider")
    page.keyboard.press("Home")
    assert masks(page) == 16
    text = page.input_value("#text") + "# mine\n"
    page.fill("#text", text)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.input_value("#text") == text
