"""New bars for a MIDI file of yours, in several takes to choose from: python complete.py song.mid

    python complete.py song.mid                                  eight bars follow, in four takes
    python complete.py song.mid --mode infill --first-bar 9 --bars 4
    python complete.py song.mid --mode vary --strength 0.4 --takes 2
    python complete.py melody.mid --mode accompany --chords "C Am F G"
    python complete.py --mode long --bars 32

It may be started from any folder: the song and --out are looked for in the folder where you are.
Each take is a run of notebook 08 with a seed of its own, and 08's parameters are the options. The
same as `python chain.py complete song.mid`.
"""

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
try:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from tqdm import tqdm

    import chain
    from utils import edit, show
    from utils.files import MusicError, printable
except ModuleNotFoundError as error:
    sys.exit(f"complete.py: {error.name} is not installed in this Python; run `make setup` in "
             f"{ROOT}, then start it with the Python in its .venv")

OWN = ("run_dir", "model_dir", "midi_file")  # paths, which are the user's and not the repository's
LEAD_IN = 32  # columns that are heard before the new ones, two bars of 4/4
PLAYHEAD = '<div class="playhead"></div>'  # stands in each article of the gallery
FRAME = ('<div class="new" data-from="{:.2f}" style="position:absolute; top:0; bottom:0; '
         'left:{:.3%}; width:{:.3%}; border:2px solid #0ff; box-sizing:border-box; '
         'pointer-events:none"></div>')
SCRIPT = """<script>
for (const frame of document.querySelectorAll(".new")) {  // begin a little before what is new
  const article = frame.closest("article"), scroll = article.querySelector(".scroll");
  article.querySelector("audio").currentTime = frame.dataset.from;
  scroll.scrollLeft = frame.offsetLeft - scroll.clientWidth * 0.25;
}
</script>
</body>"""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are refused in one line."""

    def error(self, message: str) -> None:
        raise MusicError(f"{message}; python complete.py --help lists the options")

    def parse_args(self, given: list[str]) -> argparse.Namespace:
        """Refuses an unknown option with the one that may have been meant."""
        asked, unknown = self.parse_known_args(given)
        if unknown and not unknown[0].startswith("-"):
            self.error(f"{unknown[0]}: one MIDI file at a time, and a text with blanks in quotes")
        if unknown:
            meant = difflib.get_close_matches(unknown[0].partition("=")[0],
                                              self._option_string_actions, n=1)
            self.error(f"{unknown[0]}: no such option" + (
                f", did you mean {meant[0]}?" if meant else ""))
        return asked


def parameters_of_08() -> dict[str, dict[str, str]]:
    """Notebook 08's parameters that are options here: kind, default and help of each."""
    return {name: facts
            for name, facts in papermill.inspect_notebook(chain.NOTEBOOKS["08"]).items()
            if name not in OWN}


def parser_of(parameters: dict[str, dict[str, str]]) -> argparse.ArgumentParser:
    """The command line: a song, 08's parameters, and what the takes need."""
    parser = Parser(
        prog="complete.py", allow_abbrev=False, description=__doc__.partition(":")[0],
        epilog=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", nargs="?", help="a MIDI file; --mode long needs none")
    parser.add_argument("--takes", type=int, default=4, help="how many to choose from (default: 4)")
    parser.add_argument("--out", help="a folder for the results (default: runs/complete/SONG_MODE "
                                      "in the repository)")
    parser.add_argument("--model-dir", default=ROOT / "data/models",
                        help="where diffusion.safetensors lies (default: the repository's weights)")
    kinds = {"int": int, "float": float, "str": str}
    for name, facts in parameters.items():
        default = facts["default"].strip("\"'")
        text = facts["help"] + (f" (default: {default})" if default else "")
        parser.add_argument("--" + name.replace("_", "-"), help=text.replace("%", "%%"),
                            default=default, type=kinds[facts["inferred_type_name"]])
    return parser


def asked_of(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, object]]:
    """What was asked for: the command line, and the values of 08's parameters among it.

    Raises `MusicError` for an unknown option and for values that cannot be.
    """
    parameters = parameters_of_08()
    asked = parser_of(parameters).parse_args(arguments)
    values = {name: getattr(asked, name) for name in parameters}
    edit.check(asked.mode, **{name: values[name] for name in edit.LIMITS})
    if not 1 <= asked.takes <= 99:
        raise MusicError(f"--takes is {asked.takes}; choose 1 to 99")
    if asked.song is None and asked.mode != "long":
        raise MusicError("give a MIDI file: python complete.py song.mid")
    if asked.song and asked.mode == "long":
        raise MusicError(f"{asked.song}: --mode long begins from nothing; leave the file out, or "
                         "choose --mode continue")
    return asked, values


# ---------------------------------------------------------------- the takes


def take(values: dict, out: Path) -> tuple[Path, Path | None]:
    """One run of notebook 08, its results moved to `out`: the MIDI, and the song's WAV."""
    with tempfile.TemporaryDirectory(dir=out) as run:
        chain.run_chain(run, values, only=["08"], live=False)
        made = [path.replace(out / path.name) for path in Path(run, "midi", "complete").iterdir()]
    return (next(path for path in made if path.suffix == ".mid"),
            next((path for path in made if path.name.endswith("_original.wav")), None))


def gallery(song: edit.MidiPiece | None, columns: tuple[int, int],
            takes: dict[int, tuple[Path, Path | None]], path: Path, title: str) -> None:
    """One page: the song, and beside it the takes by seed, each with its new columns framed."""
    pieces, frames = [], []
    if song:
        pieces.append(("your piece", song.roll, next(iter(takes.values()))[1], song.path))
        frames.append("")
    for seed, (midi, _) in takes.items():
        roll = edit.open_midi(midi).roll
        begin, end = (min(edge / roll.pixels.shape[1], 1) for edge in columns)
        start_s = edit.seconds_until(roll, max(columns[0] - LEAD_IN, 0))
        pieces.append((f"{title}, seed {seed}", roll, midi.with_suffix(".wav"), midi))
        frames.append(FRAME.format(start_s, begin, end - begin))
    show.gallery(pieces, path, f"{title}: the new notes lie in the frame")
    head, *articles = path.read_text("utf-8").replace("</body>", SCRIPT).split(PLAYHEAD)
    path.write_text(head + "".join(frame + PLAYHEAD + article for frame, article in
                                   zip(frames, articles, strict=True)), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where no take succeeded, 2 where what was asked for cannot be done."""
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows cannot take every character
        stream.reconfigure(errors="replace")
    try:
        asked, values = asked_of(arguments)
        path = Path(asked.song).expanduser().absolute() if asked.song else None
        song = edit.open_midi(path) if path else None
        columns = (edit.choose_bars(song, asked.mode, asked.bars, asked.first_bar) if song
                   else (0, 16 * asked.bars))
    except MusicError as error:
        print(error, file=sys.stderr)
        return 2
    stem = printable(path.stem) if path else ""
    title = ", ".join(filter(None, (stem, asked.mode)))
    folder = "_".join(filter(None, (stem[:40], asked.mode)))
    out = Path(asked.out or ROOT / "runs" / "complete" / folder).expanduser().absolute()
    if out.is_file():
        print(f"{out}: is a file; give --out a folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    values |= {"model_dir": str(Path(asked.model_dir).expanduser().absolute()),
               "midi_file": str(path or "")}
    takes = {}
    for seed in tqdm(range(asked.seed, asked.seed + asked.takes), f"{asked.mode}, each take"):
        try:
            takes[seed] = take(values | {"seed": seed}, out)
        except (PapermillExecutionError, MusicError) as error:
            print(f"seed {seed}: {chain.one_line(error)}", file=sys.stderr)
    if not takes:
        return 1
    gallery(song, columns, takes, out / "gallery.html", title)
    print(f"{len(takes)} takes, each as MIDI, WAV and image: {out}")
    print(f"look and listen: open {out / 'gallery.html'} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
