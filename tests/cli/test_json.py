"""Facts for programs: every command that prints some can print them as JSON."""

import json

from medcot.cli.kaggle import cli as kaggle
from medcot.cli.main import cli, main
from medcot.notebook import static_site

WITHOUT = {"app", "kaggle", "tutorial"}
"""The notebook prints no facts; the other two pass ``--json`` on to a program of their own."""


def test_every_command_that_prints_facts_prints_them_as_json():
    commands = {name: one for name, one in cli.commands.items() if name not in WITHOUT}
    commands |= {f"kaggle {name}": one for name, one in kaggle.commands.items()}
    commands["tutorial"] = static_site.main
    lacking = [
        name for name, one in commands.items() if not any("--json" in p.opts for p in one.params)
    ]
    assert lacking == []
    assert len(commands) > 20


def test_a_priced_study_is_one_document(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["plan", "--preset", "demo", "--seeds", "2", "--vary", "rank=4,16"]
    main([*options, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["arms_s"]) == ["rank-4", "rank-16"]
    assert facts["total_s"] == sum(facts["arms_s"].values()) > 0
    main(options)
    assert "2 arms x 2 seeds" in capsys.readouterr().out


def test_the_written_pages_are_one_document(capsys, tmp_path, monkeypatch):
    page = tmp_path / "index.html"
    page.write_text("<p>")
    monkeypatch.setattr(static_site, "build_site", lambda *_: [page])
    static_site.main(["--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == [{"page": str(page), "bytes": 3}]
