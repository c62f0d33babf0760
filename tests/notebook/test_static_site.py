"""The static tutorial: made by a real export with a real training, read in a browser offline."""

import functools
import html
import http.server
import re
import shutil
import threading
from pathlib import Path

import pytest

from medcot.errors import InputError, RunFailed
from medcot.notebook import static_site
from medcot.notebook.static_pages import FILES, PAGES, read_session
from medcot.notebook.static_site import build_site
from medcot.runs.history import bundled_run
from tests.support.browser import CHROMIUM, FLAGS, PATIENCE, SECTIONS, wait_until_whole
from tests.support.fakes import make_tiny_model
from tests.support.paths import ROOT

pytestmark = pytest.mark.xdist_group("browser")
OPTIONS = (
    "--samples 6 --steps 2 --batch 2 --save-steps 2 --test-samples 3 --generate-samples 1"
    " --max-new-tokens 4 --mcq sample --mcq-samples 2"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, with a two-step training of a tiny model that both of its pages show."""
    folder = tmp_path_factory.mktemp("site")
    model = make_tiny_model(folder / "model")
    options = ["--language", "en", "--model", str(model), *OPTIONS.split()]
    build_site(folder / "pages", options=options)
    return folder / "pages"


def read(site, name):
    return (site / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*PAGES.values(), *FILES.values()])
def test_no_page_names_any_other_host_or_folder_of_this_machine(site, name):
    page = read(site, name)
    names = set(re.findall(r"https?://([^/\"' <>\\]+)", page))
    assert names <= {"www.w3.org"}, "only the names of XML vocabularies"
    assert str(ROOT) not in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_single_file_has_every_section_with_something_in_it(site, language):
    page = read(site, FILES[language])
    pieces = re.split(r'<h2 id="(\w+)">', page)
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert tuple(found) == SECTIONS
    for key, content in found.items():
        assert len(re.sub(r"<[^>]+>|\s", "", content)) > 60, f"{key} is empty"
    for key in ("data", "lora", "evidence", "run"):
        assert "<svg" in found[key], f"no figure in {key}"
    assert "<math" in found["lora"]
    assert "<script" not in page
    assert "<marimo-" not in page


def test_the_training_of_the_export_is_what_the_pages_show(site):
    page = read(site, FILES["en"])
    assert re.search(r"nats per token on 3 test rows|did not change at all on 3", page)
    assert "Training loss over 2 steps" in page
    assert "Shown is the run tutorial" in page
    assert "这里展示的是运行 tutorial" in read(site, FILES["zh"]), "the language was named"


def test_each_page_trains_in_its_own_language_unless_one_is_named(tmp_path, monkeypatch):
    asked = []

    def execute(folder, language, options):
        asked.append((language, options[0], Path(options[1]).name, *options[2:]))
        if options[0] == "--out":
            shutil.copytree(bundled_run("en").path, options[1])
        return "page"

    monkeypatch.setattr(static_site, "_execute", execute)
    monkeypatch.setattr(static_site, "_copy_assets", lambda out: None)
    monkeypatch.setattr(static_site, "_write_pages", lambda exported, out: exported)
    demo = ("--preset", "demo")
    build_site(tmp_path, options=["--steps", "2"])
    assert asked == [
        ("en", "--out", "tutorial", *demo, "--language", "en", "--steps", "2"),
        ("zh", "--out", "tutorial-zh", *demo, "--language", "zh", "--steps", "2"),
    ]
    asked.clear()
    build_site(tmp_path, options=["--language=zh"])
    assert asked == [
        ("en", "--out", "tutorial", *demo, "--language=zh"), ("zh", "--run", "tutorial"),
    ]  # fmt: skip
    asked.clear()
    build_site(tmp_path)
    assert asked == [
        ("en", "--out", "tutorial", *demo, "--language", "en", "--seeds", "3"),
        ("zh", "--run", "demo-zh"),
    ]


def test_the_code_that_teaches_is_shown_and_the_glue_is_not(site):
    page = read(site, FILES["en"])
    shown = html.unescape(re.sub("<[^>]+>", "", page))
    assert "planned = attempt(make_plan" in shown
    assert "W + config.alpha / config.rank * B @ A" in shown
    assert "mo.ui.refresh" not in shown
    assert "<pre class=" not in page.partition('class="mc-title"')[0], (
        "a hidden cell shows something"
    )


def test_a_finished_run_is_published_without_training(tmp_path, monkeypatch):
    monkeypatch.setattr(static_site, "PAGES", {"en": PAGES["en"]})  # one page says it
    build_site(tmp_path / "pages", bundled_run("en").path)
    page = read(tmp_path / "pages", FILES["en"])
    assert "Shown is the run demo-en" in page
    assert "2,442,240" in page


def test_a_run_that_is_none_and_a_page_without_a_session_are_refused(tmp_path):
    with pytest.raises((InputError, RunFailed)):
        build_site(tmp_path / "pages", tmp_path / "nowhere")
    shutil.copytree(bundled_run("en").path, tmp_path / "half")
    (tmp_path / "half" / "report.json").unlink()
    with pytest.raises(RunFailed, match="has no report"):
        build_site(tmp_path / "pages", tmp_path / "half")
    with pytest.raises(RunFailed, match="no session"):
        read_session("<html></html>")


@pytest.fixture(scope="module")
def server(site):
    handler = functools.partial(QuietHandler, directory=str(site))
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(
    ("name", "width"),
    [("index.html", 1280), ("zh.html", 390), ("tutorial-en.html", 390), ("tutorial-zh.html", 1280)],
)
def test_every_page_is_whole_without_a_network(browser, server, site, name, width):
    served = name in PAGES.values()
    address = f"{server}/{name}" if served else (site / name).as_uri()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark")
    own = re.compile(rf"{re.escape(server)}/|data:|blob:" if served else r"file:|data:")
    refused, problems = [], []

    def only_own(route):
        if own.match(route.request.url):
            return route.continue_()
        refused.append(route.request.url)
        return route.abort()

    context.set_default_timeout(1000 * PATIENCE)
    context.route("**/*", only_own)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.goto(address)
    wait_until_whole(page)
    page.wait_for_timeout(500)
    assert refused == []
    assert problems == []
    for key in SECTIONS:
        assert page.locator(f"#{key}").bounding_box()["height"] > 0
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    charts = page.locator("[role=img] svg.mc-chart:visible")
    for chart in charts.all():
        assert chart.bounding_box()["height"] > 40
    assert charts.count() >= 6
    assert page.locator("math").count() >= 6
    assert page.locator(".mc-formula math").bounding_box()["height"] > 15
    assert page.locator("[role=img]:not([aria-label])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    background, ink = page.evaluate(
        "[document.body, document.querySelector('.mc')].map(e => getComputedStyle(e))"
        ".map((s, i) => i ? s.color : s.backgroundColor)"
    )
    assert brightness(ink) > 180, "dark was asked for"
    assert brightness(background) < 80 or background == "rgba(0, 0, 0, 0)"
    context.close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_served_page_opened_from_disk_hands_over_to_the_single_file(browser, site):
    page = browser.new_page()
    page.goto((site / PAGES["zh"]).as_uri())
    page.wait_for_url(f"**/{FILES['zh']}")
    page.wait_for_selector(".mc-title")
    page.close()


def brightness(colour):
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3
