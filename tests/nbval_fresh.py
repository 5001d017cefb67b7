"""Run `pytest --nbval` on every notebook in a fresh copy of the tree, as a newcomer's clone is.

In the working tree an earlier run's pictures would change what 05 and 06 find.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from chain import fresh_copy

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        copy = fresh_copy(folder)
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env",
                   "--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "--nbval-cell-timeout",
                   "1200", "-p", "no:cacheprovider", *(sys.argv[1:] or ["notebooks"])]
        sys.exit(subprocess.run(command, cwd=copy, check=False).returncode)
