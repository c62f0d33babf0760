"""Which runs a page shows beside its own."""

import shutil

from medcot.runs import history
from medcot.runs.history import bundled_run, companion, read_run


def test_a_run_is_compared_with_the_bundled_one_in_its_language(tmp_path):
    for language, other in (("en", "zh"), ("zh", "en")):
        shutil.copytree(bundled_run(language).path, tmp_path / language)
        assert companion(read_run(tmp_path / language)).name == f"demo-{language}"
        assert companion(bundled_run(language)).name == f"demo-{other}"


def test_where_only_one_bundled_run_is_carried_any_run_is_compared_with_it(tmp_path, monkeypatch):
    """As in a copied kernel whose language was changed."""
    shutil.copytree(bundled_run("zh").path, tmp_path / "run")
    shutil.copytree(bundled_run("en").path, tmp_path / "finished" / "demo-en")
    monkeypatch.setattr(history, "files", lambda package: tmp_path)
    assert companion(read_run(tmp_path / "run")).name == "demo-en"
