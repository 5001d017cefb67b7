"""Make what the README shows, from what runs left: python docs/figures.py [MUSIC TRAINED ...]

MUSIC (runs/music) is a run of 04, 05, 06 and, with `-p 08.mode infill`, 08: three pictures of each
model, their sound, and a piece with new bars. The films come from the runs that TRAINED the
weights, where they are given.
"""

import shutil
import sys
from pathlib import Path

import soundfile

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from utils import pianoroll, show

FILMS = ("denoising.gif", "latent_walk.gif")
SHOWN = 3


def draw(run: Path, name: str) -> Path:
    """Pictures of a model, and a real one of the same size beside them."""
    painted = sorted((run / "samples" / name).glob("*.png"))[:SHOWN]
    piece = pianoroll.read_midi(sorted((ROOT / "data/midi").glob("*nocturne*"))[3])
    real = pianoroll.windows(piece, pianoroll.PRESETS[name])[0]
    pictures = [pianoroll.load_png(path) for path in painted] + [real]
    titles = [f"painted by {name}"] * len(painted) + ["a piece of the corpus"]
    figure = show.figure_of(pictures, titles, columns=4 if name == "diffusion" else 2)
    path = ROOT / "docs" / f"samples_{name}.png"
    path.write_bytes(show.png_of(figure))
    return path


def record(run: Path, name: str) -> list[Path]:
    """The sound of the same pictures, as OGG."""
    paths = []
    for i, wav in enumerate(sorted((run / "wav" / name).glob("*.wav"))[:SHOWN], 1):
        sound, rate = soundfile.read(wav)
        paths.append(ROOT / "docs" / f"{name}_{i}.ogg")
        with soundfile.SoundFile(paths[-1], "w", rate, sound[:1].size, format="OGG") as file:
            for start in range(0, len(sound), rate):  # in one piece, libsndfile overflows its stack
                file.write(sound[start : start + rate])
    return paths


def main(music: str = "runs/music", *trained: str) -> None:
    made = []
    for name in ("diffusion", "gan"):
        made += [draw(Path(music), name), *record(Path(music), name)]
    for completed in sorted((Path(music) / "midi" / "complete").glob("*_infill_*.png"))[:1]:
        made.append(Path(shutil.copy(completed, ROOT / "docs" / "completed.png")))
    for folder in trained:
        for film in FILMS:
            if (Path(folder) / "figures" / film).is_file():
                made.append(Path(shutil.copy(Path(folder) / "figures" / film, ROOT / "docs")))
    for path in made:
        print(f"{path.relative_to(ROOT).as_posix()}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
