"""What the README and the instructions say is what the code says."""

import re

import pytest

import complete
from real_midi import ROOT


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


@pytest.mark.parametrize("name", ["README.md", "instructions.txt"])
def test_options_of_complete_py_that_are_explained_exist(name):
    options = complete.parser_of(complete.parameters_of_08())._option_string_actions
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if "complete.py" in line or line.lstrip().startswith("--mode"):
            assert set(re.findall(r"--[a-z-]+", line)) <= set(options), line
