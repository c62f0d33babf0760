"""The notebook in a real browser: controls, a training, its cancelling, languages, hostile data."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from medcot.config.schema import MEDICAL_O1
from medcot.reporting.storage import read_report
from medcot.runs.history import bundled_run
from tests.support.browser import CHROMIUM, FLAGS, PATIENCE, SECTIONS, wait_until_whole
from tests.support.fakes import make_tiny_model
from tests.support.paths import REAL_CACHE, ROOT

OPTIONS = {
    "samples": 6, "steps": 3, "batch": 2, "save-steps": 2, "test-samples": 3,
    "generate-samples": 1, "max-new-tokens": 4, "mcq": "sample", "mcq-samples": 2,
    "max-length": 1536, "rank": 4,
}  # fmt: skip
MOVES = 40
"""Of a slider. Most of a move's processor time is the browser's: `bench/notebook.py` makes 100."""

EDITOR_TOKEN = "a token for the editor"
IMAGE = "<img src=x onerror='window.hacked=1'>"
HOSTILE = (
    f"</script></textarea></div>{IMAGE}<script>window.hacked=1</script>"
    "<svg onload='window.hacked=1'> {{7*7}} $x$ [a](javascript:window.hacked=1) "
) + "W" * 400

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def write_rows(path):
    """Eighteen rows, so that each part has some, every one with markup in all of its texts."""
    rows = [
        {
            "id": f"row{n}<b>",
            # Of its own: questions that share much would count as leaks and not be trained on.
            "Question": f"{IMAGE} {' '.join(f'patient{n}sign{k}' for k in range(20))}?",
            "Complex_CoT": f"Thought {n} {HOSTILE}",
            "Response": f"Response {n} {HOSTILE}",
            "specialty": "<script>window.hacked=1</script>",
        }
        for n in range(18)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder):
    """The notebook as `make app` serves it, with a tiny model and hostile rows: its address."""
    make_tiny_model(folder / "model", vocabulary=49_152)
    write_rows(folder / "rows.jsonl")
    with serve(folder, "run", ROOT / "apps" / "tutorial.py") as served:
        yield served


@contextmanager
def serve(folder, mode, notebook):
    """The notebook as `make app` serves it, or `marimo edit`: its address and its process."""
    options = OPTIONS | {"model": folder / "model", "dataset": folder / "rows.jsonl"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medcot.notebook.server"]
    if mode == "edit":
        command = [sys.executable, "-m", "marimo", "edit", str(notebook)]
        command += ["--no-sandbox", "--token-password", EDITOR_TOKEN]
    command += ["--headless", "--host", "127.0.0.1", "--port", str(port), "--"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    home = {"HOME": str(folder), "MEDCOT_CACHE": str(REAL_CACHE), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDCOT_")} | home
    with (
        (folder / f"{mode}.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_for(lambda: answers(port))
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                pytest.fail("the server of open pages did not end")


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(place, headers=None):
    """Status and body of the first page, without a browser."""
    with closing(HTTPConnection(place)) as asking:
        asking.request("GET", "/", headers=headers or {})
        answer = asking.getresponse()
        return answer.status, answer.read()


def wait_for(condition, seconds=PATIENCE, pause=0.1):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(pause)
    return found


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def page(browser, server):
    """One visitor's page, open through all of the tests, in their order."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * PATIENCE)
    opened = context.new_page()
    opened.problems, opened.outside, opened.heard = [], [], []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("dialog", lambda dialog: opened.problems.append(dialog.message) or dialog.dismiss())
    opened.on("request", lambda request: opened.outside.append(request.url))
    opened.on(
        "websocket",
        lambda one: one.on("framereceived", lambda text: opened.heard.append(str(text))),
    )
    started = time.monotonic()
    opened.goto(server[0])
    wait_until_whole(opened)
    opened.first_view_s = time.monotonic() - started
    yield opened
    context.close()


def fact(page, name):
    """The value that the page gives beside ``name``, in its last such place."""
    return page.locator(f'dt:text-is("{name}") + dd').last.inner_text()


def knob(page, name):
    return page.locator(f'[data-knob="{name}"] [role="slider"]')


def runs_of(folder):
    found = sorted((folder / "runs").glob("*/status.json"), key=lambda path: path.stat().st_mtime)
    return [(path.parent, json.loads(path.read_text())["stage"]) for path in found]


def test_the_first_view_shows_a_finished_result_and_every_section(page):
    for key in SECTIONS:
        assert page.locator(f"#{key}").count() == 1, key
    rows = read_report(bundled_run("en").path).paired.nll.n
    page.wait_for_selector(f"text=on {rows} test rows")
    assert page.first_view_s < 60  # measured alone: see docs/experiments.md


def test_no_text_of_the_data_becomes_part_of_the_page(page):
    page.wait_for_timeout(500)
    assert page.locator(".mc-text", has_text="<img src=x onerror").count() >= 3
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x'], .mc svg[onload], .mc script").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "an over-long word made the page wider than the window"


def test_moving_the_rank_changes_the_count_of_parameters(page):
    before = fact(page, "Trained parameters")
    knob(page, "rank").press("ArrowRight")
    wait_for(lambda: fact(page, "Trained parameters") != before)
    shape_sum = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    assert fact(page, "Trained parameters") == f"{6 * 2 * shape_sum:,}"


def test_a_slider_says_its_name_and_its_value_and_not_the_place_of_its_mark(page):
    thumb = knob(page, "rank")
    assert thumb.get_attribute("aria-label") == "LoRA rank: the width of the update."
    assert thumb.get_attribute("aria-valuetext") == "6", "one mark above the start's 4"
    assert thumb.get_attribute("aria-valuenow") != "6"
    assert knob(page, "few_steps").get_attribute("aria-valuetext") == "4"


def test_a_slider_move_takes_little_of_the_server(page, server):
    """Processor time of the server, so that a busy machine does not decide the test."""
    ticks = os.sysconf("SC_CLK_TCK")

    def spent():
        fields = Path(f"/proc/{server[1]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    taken, waited = [], []
    for number in range(MOVES):
        page.heard.clear()
        before, started = spent(), time.monotonic()
        knob(page, "rank").press("ArrowLeft" if number % 2 else "ArrowRight")
        while not any("completed-run" in frame for frame in page.heard):
            page.wait_for_timeout(20)
            assert time.monotonic() < started + PATIENCE
        waited.append(time.monotonic() - started)
        taken.append(spent() - before)
    p95 = MOVES * 95 // 100 - 1
    print(f"server p95 {sorted(taken)[p95]:.3f} s, from key to end {sorted(waited)[p95]:.3f} s")
    assert sorted(taken)[p95] < 0.15


def test_the_small_model_is_loaded_by_a_click_and_then_follows_the_sliders(page):
    page.get_by_role("button", name="Load the small model").click()
    page.wait_for_selector("text=by this one step")
    before = fact(page, "Gradient of B (norm)")
    assert fact(page, "Gradient of A (norm)") == "0", "its path goes through B, which is zero"
    knob(page, "alpha").press("ArrowRight")
    wait_for(lambda: fact(page, "Gradient of B (norm)") != before)
    knob(page, "alpha").press("ArrowLeft")


def test_a_training_is_followed_to_its_end_and_its_result_is_shown(page, folder):
    page.get_by_role("button", name="Train with these settings").click()
    page.wait_for_selector('[data-job="running"]')
    steps = set()

    def seen():
        if page.locator('[data-job] dt:text-is("Step") + dd').count():
            steps.add(page.locator('[data-job] dt:text-is("Step") + dd').inner_text())
        assert page.locator('[data-job="failed"]').count() == 0, page.inner_text("[data-job]")
        return page.locator('[data-job="done"]').count()

    wait_for(seen, 120, pause=0.5)
    assert any(step.startswith("3 / 3") for step in steps)
    assert page.locator("[data-job] svg.mc-chart:visible").count() == 1
    path, stage = runs_of(folder)[-1]
    assert stage == "done"
    page.wait_for_selector(f"text=Shown is the run {path.name}")


def test_moving_a_slider_loses_no_result(page, folder):
    path, _ = runs_of(folder)[-1]
    knob(page, "rank").press("ArrowRight")
    page.wait_for_timeout(1500)
    assert page.locator('[data-job="done"]').count() == 1
    assert page.get_by_text(f"Shown is the run {path.name}").count() >= 1
    assert len(runs_of(folder)) == 1


def test_switching_the_language_keeps_the_result_and_the_sliders(page, folder):
    rank = knob(page, "rank").get_attribute("aria-valuenow")
    path, _ = runs_of(folder)[-1]
    page.get_by_text("中文", exact=True).first.click()
    page.wait_for_selector("text=教小模型学会医学推理")
    page.wait_for_selector(f"text=这里展示的是运行 {path.name}")
    assert knob(page, "rank").get_attribute("aria-valuenow") == rank
    assert page.locator('[data-job="done"]').count() == 1
    assert len(runs_of(folder)) == 1
    page.get_by_text("English", exact=True).first.click()
    page.wait_for_selector("text=Teach a small model")


def test_a_second_visitor_waits_and_cancelling_keeps_what_was_learnt(page, browser, server, folder):
    knob(page, "length").press("End")
    wait_for(lambda: fact(page, "Steps") == "1,000,000")
    page.get_by_role("button", name="Train with these settings").click()
    wait_for(
        lambda: len(runs_of(folder)) == 2 and (runs_of(folder)[-1][0] / "events.jsonl").exists(), 60
    )
    other = browser.new_context().new_page()
    other.set_default_timeout(1000 * PATIENCE)
    other.goto(server[0])
    wait_until_whole(other)
    assert other.get_by_role("button", name="Cancel", exact=True).count() == 0
    other.get_by_role("button", name="Train with these settings").click()
    other.wait_for_selector("text=/another training is running.* left of this/")
    other.context.close()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector('[data-job="cancelled"]')
    path, stage = runs_of(folder)[-1]
    assert stage == "cancelled"
    assert (path / "adapter" / "adapter_model.safetensors").exists()
    page.get_by_role("button", name="Go on with the cancelled run").wait_for()


def test_a_reloaded_page_finds_its_own_training_again(page, server):
    """By a cookie: whoever is sent the page's address may not cancel the training."""
    assert page.url == f"{server[0]}/"
    page.reload()
    wait_until_whole(page)
    page.wait_for_selector('[data-job="cancelled"]')
    page.wait_for_selector("text=Go on with the cancelled run")


def test_a_wrong_setting_is_explained_and_the_page_goes_on(page):
    knob(page, "max_length").press("Home")
    page.wait_for_selector("text=That does not work")
    assert page.get_by_text("every row is longer; the shortest has").count() >= 1
    for _ in range(9):
        knob(page, "max_length").press("ArrowRight")
    wait_for(lambda: page.get_by_text("That does not work").count() == 0)


def test_a_set_that_cannot_be_loaded_is_explained_and_the_page_goes_on(page, folder):
    """Without a network: the plan still stands, for rows of typical length."""
    choice = page.locator('[data-knob="dataset"] select')
    choice.select_option(label=MEDICAL_O1)
    page.wait_for_selector("text=stand in for it here")
    page.get_by_role("button", name="Load from the hub").click()
    page.wait_for_selector("text=What to do: use a local file or --preset demo")
    assert page.locator("#evidence").count() == 1
    choice.select_option(label=str(folder / "rows.jsonl"))
    wait_for(lambda: page.get_by_text("What to do: use a local file").count() == 0)
    page.wait_for_selector(".mc-tokens")


def test_another_site_s_page_gets_no_message_and_another_name_no_page(server):
    place = server[0].removeprefix("http://")
    address = f"ws://{place}/ws?session_id=s_foreign"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, origin="http://evil.example", proxy=None)
    assert refused.value.response.status_code == 403
    status, told = get(place, {"Host": "evil.example"})
    assert status == 421
    assert b"medcot" not in told


def test_nothing_was_asked_of_any_other_host(page, server):
    own = re.compile(rf"{re.escape(server[0])}|data:|blob:|ws://127\.0\.0\.1")
    assert [url for url in page.outside if not own.match(url)] == []
    assert page.problems == []
    assert page.evaluate("window.hacked") is None


@pytest.fixture(scope="module")
def editor(server, folder):
    """The notebook in marimo's editor, with marimo's own token."""
    # A copy: the editor may save what it has opened.
    shutil.copytree(ROOT / "apps", folder / "apps", ignore=shutil.ignore_patterns("__*__"))
    shutil.copy2(ROOT / "pyproject.toml", folder)
    with serve(folder, "edit", folder / "apps" / "tutorial.py") as (address, _):
        yield address


def test_edit_mode_asks_for_its_token(editor):
    status, told = get(editor.removeprefix("http://"))
    assert status in (302, 303, 307, 401)
    assert b"medcot" not in told
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{editor.replace('http', 'ws')}/ws?session_id=s_foreign", proxy=None)
    assert refused.value.response.status_code == 403


def test_edit_mode_follows_a_slider_too_and_offers_what_a_served_page_does_not(browser, editor):
    page = browser.new_context().new_page()
    page.set_default_timeout(1000 * PATIENCE)
    # The editor's view without code: sixty code editors cost the browser a minute of a core.
    page.goto(f"{editor}?access_token={EDITOR_TOKEN}&view-as=present")
    wait_until_whole(page)
    before = fact(page, "Trained parameters")
    knob(page, "rank").press("ArrowRight")
    wait_for(lambda: fact(page, "Trained parameters") != before)
    page.locator("summary", has=page.locator("#kaggle")).click()
    assert page.get_by_role("button", name="Build the kernel").count() == 1
    assert page.locator('[data-knob="dataset"] input').count() == 1, "any file may be named"
    page.context.close()
