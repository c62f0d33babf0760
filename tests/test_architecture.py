import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_imports_point_down():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_path_of_a_machine_is_in_the_project():
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    for name in filter(None, tracked):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert "/ro" + "ot/" not in text, name
            assert "/wo" + "rk/" not in text, name
