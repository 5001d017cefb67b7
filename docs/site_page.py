"""Make the gallery page of the static site: python docs/site_page.py [COUNT]

`docs/index.html` is a gallery of what the shipped weights generate, COUNT pieces of each model
(default: 6): look, listen, download the MIDI, without installing anything. The seed is fixed and
nothing is chosen by hand. It takes about three minutes on a CPU. To look at it and at the studio,
serve the repository's root folder, with `python3 -m http.server` or GitHub Pages: the studio loads
`utils/canvas.js`.
"""

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import address

import chain
from utils import pianoroll, show

PAGE = ROOT / "docs" / "index.html"
NAMES = {"diffusion": "The diffusion model", "gan": "The GAN"}
TITLE = "Music through pictures"
STUDIO = "studio/index.html"  # a page that composes in the browser, where it is there


def pieces(run: Path) -> list[tuple]:
    """Title, image, WAV and MIDI of each piece of a run of 04, 05 and 06; silent ones have none."""
    found = []
    for folder, name in NAMES.items():
        for number, image in enumerate(sorted((run / "samples" / folder).glob("*.png")), 1):
            below = Path(folder, image.name)
            wav, midi = (run / kind / below.with_suffix(f".{kind[:3]}") for kind in ("wav", "midi"))
            if wav.is_file():
                found.append((f"{name}, piece {number}", pianoroll.load_png(image), wav, midi))
    return found


def introduced(page: str, links: list[tuple[str, str]]) -> str:
    """The gallery's page with a paragraph below its heading: what this is, and where to go on."""
    anchors = " · ".join(f'<a href="{target}">{text}</a>' for text, target in links)
    text = ("<p>Two small networks learned to generate images of music: a diffusion model in "
            "PyTorch, from pop songs, and a GAN in TensorFlow, from piano performances. These are "
            "their first pieces with a fixed seed, not chosen by hand. The notebooks of this "
            f"project explain every step from a MIDI file to such a piece.</p>\n<p>{anchors}</p>")
    return re.sub(r"(</h1>)", lambda found: f"{found[1]}\n{text}", page, count=1)


def links_of(docs: Path) -> list[tuple[str, str]]:
    """Where the page leads to: the studio where it is there, and the repository."""
    owner = address.address_in((ROOT / "README.md").read_text(encoding="utf-8"))
    studio = [("Compose in your browser", STUDIO)] if (docs / STUDIO).is_file() else []
    return [*studio, ("The project and its notebooks", f"https://github.com/{owner}")]


def main(count: int = 6, page: Path = PAGE) -> Path:
    """Generate, render and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        chain.run_chain(folder, {"04.count": count}, only=["04", "05", "06"])
        show.gallery(pieces(Path(folder)), page, TITLE)
    page.write_text(introduced(page.read_text("utf-8"), links_of(page.parent)), encoding="utf-8")
    (page.parent / ".nojekyll").touch()  # GitHub Pages serves the files as they are
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return page


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
