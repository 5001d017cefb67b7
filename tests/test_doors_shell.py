"""The scripts around the tests: they parse, and say what they need."""

import os
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
