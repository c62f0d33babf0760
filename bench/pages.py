"""Pictures of every page that a reader sees, and what is wrong with them.

    python bench/pages.py DIR [--site SITE] [--report FILE] [--train] [--languages en,zh]

Serves `apps/tutorial.py` as `make app` does, opens it in Chromium in both languages, light and
dark, 390 and 1280 pixels wide, and saves a picture of each whole page in DIR; with --train also one
while a training of few steps runs, one after it, and one while the next is being cancelled. SITE is
what `make tutorial` wrote, FILE a run's report.html. Prints each page's height. Exit code 1 if a
page logs an error, asks any other host for something, or is wider than its window.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from notebook import CHROMIUM, FLAGS, VIEW, serve

from medcot.catalog import say

WIDTHS = {390: 844, 1280: 900}
SCHEMES = ("light", "dark")
TRAININGS = (("en", "light", 1280), ("zh", "dark", 390))
FEW = {
    "samples": 8, "steps": 3, "batch": 2, "test-samples": 4, "generate-samples": 1,
    "max-new-tokens": 24, "mcq-samples": 4,
}  # fmt: skip
"""A training that takes a minute."""

TALLEST = "Math.max(...[...document.querySelectorAll('*')].map(one => one.scrollHeight))"
WIDEST = "document.documentElement.scrollWidth - window.innerWidth"


def main() -> int:
    """Save the pictures, print the table, and return the exit code."""
    from playwright.sync_api import sync_playwright

    options = read_arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    print("| page | height (px) |\n| --- | ---: |")
    given = [part for name, value in FEW.items() for part in (f"--{name}", str(value))]
    with sync_playwright() as playwright, serve(*(given if options.train else ())) as served:
        browser, address = (
            playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS),
            served[0],
        )
        views = [*itertools.product(options.languages.split(","), SCHEMES, WIDTHS)]
        for language, scheme, width in views:
            page = watch(browser, scheme, width, address, problems)
            open_notebook(page, address, language)
            save(page, options.folder / f"app-{language}-{scheme}-{width}.png", problems)
            page.context.close()
        for language, scheme, width in TRAININGS if options.train else ():
            page = watch(browser, scheme, width, address, problems)
            open_notebook(page, address, language)
            train(page, language, options.folder / f"{language}-{scheme}-{width}.png", problems)
            page.context.close()
        for name, file in list_files(options):
            for scheme, width in itertools.product(SCHEMES, WIDTHS):
                page = watch(browser, scheme, width, "file:", problems)
                page.goto(file.resolve().as_uri())
                page.wait_for_timeout(1500)
                save(page, options.folder / f"{name}-{scheme}-{width}.png", problems)
                page.context.close()
        browser.close()
    print("\n".join(["", *problems]) if problems else "\nno error, no other host, nothing too wide")
    return bool(problems)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--languages", default="en,zh")
    return parser.parse_args()


def list_files(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """List the static pages to look at, each with a name for its pictures."""
    found = [("report", options.report)] if options.report else []
    if options.site:
        found += [(f"site-{path.stem}", path) for path in sorted(options.site.glob("*.html"))]
    return found


def watch(browser: Any, scheme: str, width: int, own: str, problems: list[str]) -> Any:
    """Open a window whose errors, and requests to others than ``own``, become ``problems``."""
    size = {"width": width, "height": WIDTHS[width]}
    page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
    allowed = (own, own.replace("http", "ws"), "data:", "blob:")

    def hear(message: Any) -> None:
        if message.type == "error":
            problems.append(f"console: {message.text[:200]}")

    def ask(request: Any) -> None:
        if not request.url.startswith(allowed):
            problems.append(f"outside: {request.url[:200]}")

    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", hear)
    page.on("request", ask)
    return page


def open_notebook(page: Any, address: str, language: str) -> None:
    """Open the notebook in ``language``, once all sections and what draws after them are there."""
    page.goto(address)
    for part in VIEW:
        page.wait_for_selector(part, timeout=120_000, state="attached")
    if language == "zh":
        page.get_by_text("中文", exact=True).first.click()
        page.wait_for_selector('#evidence:text-matches("[\u4e00-\u9fff]")', timeout=120_000)
    page.wait_for_timeout(2500)


def save(page: Any, file: Path, problems: list[str]) -> None:
    """Save the whole page, and print how high it is."""
    height, over = page.evaluate(TALLEST), page.evaluate(WIDEST)
    if over > 0:
        problems.append(f"{file.stem}: {over} px too wide")
    print(f"| {file.stem} | {height:,} |", flush=True)
    for _ in range(2):  # marimo's letters grow with the window's height
        tall = {"width": page.viewport_size["width"], "height": page.evaluate(TALLEST)}
        page.set_viewport_size(tall)
        page.wait_for_timeout(500)
    page.screenshot(path=file)


def train(page: Any, language: str, file: Path, problems: list[str]) -> None:
    """Train by the page's button, then begin again and cancel; save the page at each point."""
    job, start = page.locator("[data-job]"), say("train", language)
    page.get_by_role("button", name=start).click()
    page.wait_for_selector("[data-job=running] svg", timeout=400_000)
    job.screenshot(path=file.with_name(f"training-{file.name}"))
    page.wait_for_selector("[data-job=done]", timeout=400_000)
    page.wait_for_timeout(3000)
    job.screenshot(path=file.with_name(f"trained-{file.name}"))
    page.get_by_role("button", name=start).click()
    page.wait_for_selector("[data-job=running]")
    page.get_by_role("button", name=say("cancel", language), exact=True).click()
    page.get_by_text(say("training_cancelling", language)).wait_for()
    job.screenshot(path=file.with_name(f"cancelling-{file.name}"))
    page.wait_for_selector("[data-job=cancelled]", timeout=60_000)
    save(page, file.with_name(f"app-trained-{file.name}"), problems)


if __name__ == "__main__":
    sys.exit(main())
