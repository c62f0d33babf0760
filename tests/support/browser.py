"""The browser that pages are opened in, and when the notebook counts as shown."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECTIONS = ("settings", "rows", "prompt", "labels", "data", "lora", "layer", "step", "loop", "plan")
SECTIONS += ("train", "answers", "pairs", "interval", "verdict", "evidence", "run", "ask", "runs")
SECTIONS += ("browse", "kaggle", "away", "cost", "next")
PATIENCE = 90
"""Seconds until something on the page counts as never coming: other tests use the cores too."""


def wait_until_whole(page):
    """Cells come in the order of what they depend on: the last section is not the last to come."""
    for key in SECTIONS:
        page.wait_for_selector(f"#{key}")
    page.wait_for_selector(".mc-bar")
