"""Write the repository's address wherever it stands: python docs/address.py [ADDRESS]

The setup cell of each notebook, the badges and the clone line of README.md and CITATION.cff get it.
Without ADDRESS it is the one in README.md, so that a new notebook gets the same setup cell. The
setup cell itself is `SETUP`, here: a change of it is made here, and written by this script.
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
SETUP = '''import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = "https://github.com/OWNER/NAME"  # your copy, on Colab
if "google.colab" in sys.modules and not Path("utils").is_dir():
    !git clone --depth 1 {REPOSITORY} music-through-pictures
    if not Path("music-through-pictures").is_dir():
        raise SystemExit(f"{REPOSITORY} cannot be cloned; put your copy's address into this cell.")
    os.chdir("music-through-pictures")
    needed = "pretty_midi mido symusic midi2audio midirenderer pebble pychord anywidget psygnal"
    missing = " ".join(n for n in needed.split() if importlib.util.find_spec(n) is None)
    if missing:
        %pip install -q --no-deps -c requirements.txt {missing}
places = [Path.cwd(), *Path.cwd().parents, Path(os.environ.get("MUSIC_ROOT", ".")).resolve()]
root = next((p for p in places if (p / "utils" / "pianoroll.py").is_file()), None)
if root is None:
    raise SystemExit("Start this notebook inside the repository, or set MUSIC_ROOT to its folder.")
os.chdir(root)
sys.path.insert(0, str(root))'''
PLACES = (r"(?<=colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+",  # in README.md, CITATION.cff
          r"(?<=https://github\.com/)[\w.-]+/[\w.-]+(?=/actions/workflows/test\.yml)",
          r"(?<=git clone https://github\.com/)[\w.-]+/[\w.-]+",
          r'(?<=repository-code: "https://github\.com/)[\w.-]+/[\w.-]+')


def address_in(text: str) -> str:
    """`OWNER/NAME` of README's text, from the link of its first badge."""
    return re.search(PLACES[1], text)[0]


def write_text(path: Path, address: str) -> None:
    """Put `OWNER/NAME` into the links of a text file."""
    text = path.read_text(encoding="utf-8")
    for place in PLACES:
        text = re.sub(place, address, text)
    path.write_text(text, encoding="utf-8")


def write_setup(path: Path, address: str) -> None:
    """Make the notebook's first code cell the setup cell; its stored outputs stay."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.source = SETUP.replace("OWNER/NAME", address)
    nbformat.write(notebook, path)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """The exit status: 2 for an address that is none."""
    if arguments:
        found = ADDRESS.fullmatch(arguments[0])
        if not found:
            print(f"{arguments[0]}: give https://github.com/OWNER/NAME", file=sys.stderr)
            return 2
        address = found[1]
    else:
        address = address_in((root / "README.md").read_text(encoding="utf-8"))
    for name in ("README.md", "CITATION.cff"):
        write_text(root / name, address)
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        write_setup(path, address)
    print(f"https://github.com/{address} stands in README.md, CITATION.cff and all notebooks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
