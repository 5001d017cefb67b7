"""The scripts around the tests: they parse, and say what they need."""

import os
import re
import shutil
import subprocess

import pytest

from real_midi import ROOT

BARE = ROOT / "tests" / "bare_machine.sh"


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_bare_machines_script_parses_and_says_what_it_needs(tmp_path):
    subprocess.run(["bash", "-n", BARE], check=True)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = subprocess.run(["bash", BARE], capture_output=True, text=True, check=False, env={
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (2, "bare_machine: start it as root, with sudo\n")


@pytest.mark.parametrize(("message", "places"), [
    ("Python 3.11 to 3.13 is needed", ["Makefile"]),
    ("is not installed in this Python", ["complete.py"]),
    ("Start this notebook inside the repository, or set MUSIC_ROOT to its folder.",
     ["docs/address.py"]),
    ("no such folder", ["utils/sources.py", "utils/files.py", "utils/corpus.py"]),
    ("no MIDI files", ["utils/sources.py", "utils/files.py", "utils/corpus.py"]),
    ("its process ended, most likely because memory ran out", ["chain.py"]),
    ("Silence: nothing to hear", ["utils/show.py"]),
])
def test_the_messages_that_instructions_txt_explains_are_those_of_the_code(message, places):
    assert message in (ROOT / "instructions.txt").read_text("utf-8")
    code = "".join((ROOT / place).read_text("utf-8") for place in places)
    assert message in re.sub(r'"\s*f?"', "", code)  # a message may go on in the next line


def test_options_in_the_readme_and_the_instructions_exist():
    """What stands behind `complete.py` is understood by it."""
    import complete

    options = complete.parser_of(complete.parameters_of_08())._option_string_actions
    for name in ("README.md", "instructions.txt"):
        text = (ROOT / name).read_text("utf-8")
        for line in text.splitlines():
            if "complete.py" in line or line.lstrip().startswith("--mode"):
                for option in re.findall(r"--[a-z-]+", line):
                    assert option in options, (name, option)
