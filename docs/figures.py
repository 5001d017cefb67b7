"""Make the README's pictures from what a run painted: python docs/figures.py runs/music"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from utils import pianoroll, show


def main(run_dir: str) -> None:
    """Write docs/samples.png: three pictures of each model, and a real one beside them."""
    for name in ("diffusion", "gan"):
        painted = sorted((Path(run_dir) / "samples" / name).glob("*.png"))[:3]
        piece = pianoroll.read_midi(sorted((ROOT / "data/midi").glob("*nocturne*"))[3])
        real = pianoroll.windows(piece, pianoroll.PRESETS[name])[0]
        pictures = [pianoroll.load_png(path) for path in painted] + [real]
        titles = [f"painted by {name}"] * len(painted) + ["a piece of the corpus"]
        figure = show.figure_of(pictures, titles, columns=4 if name == "diffusion" else 2)
        path = ROOT / "docs" / f"samples_{name}.png"
        path.write_bytes(show.png_of(figure))
        print(path.relative_to(ROOT).as_posix(), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/music")
