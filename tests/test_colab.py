"""The setup cell where Colab runs it: another folder, nothing of ours installed, a git and a pip
that record what they are asked for. And the address, which stands in one place."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest

from real_midi import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import address
import portable_keras

OURS = ("pretty_midi", "mido", "symusic", "midi2audio", "midirenderer", "pebble", "pychord",
        "anywidget", "psygnal")
SETUP = address.SETUP.replace("OWNER/NAME", "a-reader/a-copy")
SHELL = """
import json, os, sys, types
from pathlib import Path
for name in ("google", "google.colab"):
    sys.modules[name] = types.ModuleType(name)
hidden, asked = set(sys.argv[2].split()), []
for name in hidden:
    sys.modules[name] = None  # not installed, as on Colab
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()

def pip(line):
    asked.append(line)
    for name in hidden & set(line.split()):
        del sys.modules[name]

shell.register_magic_function(pip, magic_name="pip")
for source in json.loads(Path(sys.argv[1]).read_text()):
    result = shell.run_cell(source)
    if not result.success:
        sys.exit(f"{result.error_in_exec or result.error_before_exec!r}")
print(json.dumps({"pip": asked, "cwd": os.getcwd()}))
"""
GIT = """#!{python}
import shutil, sys
open("git.txt", "w").write(" ".join(sys.argv[1:]))
if "none" not in sys.argv[4]:
    shutil.copytree({tree!r}, sys.argv[5])
"""


@pytest.fixture
def colab(tmp_path):
    """Run cells as Colab would, in the folder `content`; returns the finished process."""
    if sys.platform == "win32":
        pytest.skip("the stand-in for git is a Unix script")
    tree, programs, content = tmp_path / "tree", tmp_path / "bin", tmp_path / "content"
    for name in ("utils", "data"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "requirements.txt", tree)
    programs.mkdir()
    content.mkdir()
    (programs / "git").write_text(GIT.format(python=sys.executable, tree=str(tree)))
    (programs / "git").chmod(0o755)
    (tmp_path / "shell.py").write_text(SHELL)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                                "IPYTHONDIR": str(tmp_path / "ipython"), "MPLBACKEND": "agg"}
    environment.pop("MUSIC_ROOT", None)

    def run(cells: list[str], hidden=OURS) -> subprocess.CompletedProcess:
        (tmp_path / "cells.json").write_text(json.dumps(cells))
        return subprocess.run(
            [sys.executable, tmp_path / "shell.py", tmp_path / "cells.json", " ".join(hidden)],
            cwd=content, env=environment, capture_output=True, text=True, check=False)
    return run


def test_a_notebook_runs_there_with_the_readers_copy_and_what_is_missing(colab, tmp_path):
    notebook = nbformat.read(next((ROOT / "notebooks").glob("05_*.ipynb")), 4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    done = colab([SETUP, *cells[1:]])
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    content, said = tmp_path / "content", json.loads(done.stdout.splitlines()[-1])
    assert (content / "git.txt").read_text() == (
        "clone --depth 1 https://github.com/a-reader/a-copy music-through-pictures")
    (line,) = said["pip"]
    options = ["install", "-q", "--no-deps", "-c", "requirements.txt"]
    assert line.split() == [*options, *OURS], "no word of torch, TensorFlow and numpy"
    assert said["cwd"] == str(content / "music-through-pictures")
    assert list((content / "music-through-pictures/runs/default/midi").rglob("*.mid"))


@pytest.mark.parametrize("hidden", [["mido"], []])
def test_what_colab_has_in_another_version_is_left_alone(colab, hidden):
    said = json.loads(colab([SETUP], hidden).stdout.splitlines()[-1])
    assert [line.split()[5:] for line in said["pip"]] == ([hidden] if hidden else [])


def test_an_address_that_cannot_be_cloned_is_named(colab):
    done = colab([SETUP.replace("a-reader", "none")])
    assert done.returncode and "none/a-copy cannot be cloned; put your copy's" in done.stderr


# ---------------------------------------------------------------- the address


def test_one_command_writes_the_address_everywhere(tmp_path, capsys):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    readme, before = tmp_path / "README.md", address.address_in((ROOT / "README.md").read_text())
    assert address.main(["some-one"], tmp_path) == 2
    assert "give https://github.com/OWNER/NAME" in capsys.readouterr().err
    assert address.main(["https://github.com/some-one/her.copy"], tmp_path) == 0
    for path in (readme, tmp_path / "CITATION.cff", *(tmp_path / "notebooks").iterdir()):
        text = path.read_text("utf-8")
        assert "some-one/her.copy" in text and before not in text, path.name
    assert "git clone https://github.com/some-one/her.copy music\n" in readme.read_text("utf-8")
    assert address.main([], tmp_path) == 0
    assert address.address_in(readme.read_text("utf-8")) == "some-one/her.copy"


def test_each_notebook_has_a_colab_badge_and_the_setup_cell():
    readme = (ROOT / "README.md").read_text("utf-8")
    owner = address.address_in(readme)
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        link = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{path.name}"
        assert readme.count(link) == 1, path.name
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert cells[0].source == address.SETUP.replace("OWNER/NAME", owner), path.name


def test_the_readme_names_the_versions_that_version_ends_tries():
    oldest, newest = (dict(line.split("==") for line in
                           (ROOT / f"tests/versions/{end}.txt").read_text("utf-8").splitlines()
                           if "==" in line) for end in ("oldest", "newest"))
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in ("PyTorch", "TensorFlow", "Keras", "NumPy"):
        first, last = (".".join(versions[name.lower().replace("pyt", "t")].split(".")[:2])
                       for versions in (oldest, newest))
        assert f"{name} {first} to {last}" in readme
    assert oldest.keys() == newest.keys()


def test_the_shipped_gan_opens_in_older_versions_of_keras():
    for path in (ROOT / "data" / "models").glob("*.keras"):
        config = json.loads(zipfile.ZipFile(path).read("config.json"))
        assert portable_keras.portable(config) == json.dumps(config), "run docs/portable_keras.py"
