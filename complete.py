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
import shutil
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
    from utils.files import MusicError, as_kind, printable
except ModuleNotFoundError as error:
    sys.exit(f"complete.py: {error.name} is not installed in this Python; run `make setup` in "
             f"{ROOT}, then start it with the Python in its .venv")

NOTEBOOK = chain.NOTEBOOKS["08"]
OWN = ("run_dir", "model_dir", "midi_file")  # paths, which are the user's and not the repository's
PLAYHEAD = '<div class="playhead"></div>'  # stands in each article of the gallery
FRAME = ('<div class="new" data-from="{:.2f}" style="position:absolute; top:0; bottom:0; '
         'left:{:.3%}; width:{:.3%}; border:2px solid #0ff; box-sizing:border-box; '
         'pointer-events:none"></div>')
SCRIPT = """<script>
for (const frame of document.querySelectorAll(".new")) {  // begin a little before what is new
  const article = frame.closest("article"), scroll = article.querySelector(".scroll");
  const audio = article.querySelector("audio");
  const start = () => { audio.currentTime = frame.dataset.from; };
  scroll.scrollLeft = frame.offsetLeft - scroll.clientWidth * 0.25;
  if (audio.readyState) start(); else audio.addEventListener("loadedmetadata", start, {once: true});
}
</script>
</body>"""
LEAD_IN = 32  # columns that are heard before the new ones, two bars of 4/4


def parameters_of_08() -> dict[str, dict[str, str]]:
    """Notebook 08's parameters that are options here: kind, default and help of each."""
    return {name: facts for name, facts in papermill.inspect_notebook(NOTEBOOK).items()
            if name not in OWN}


def parser_of(parameters: dict[str, dict[str, str]]) -> argparse.ArgumentParser:
    """The command line: a song, 08's parameters, and what the takes need."""
    parser = argparse.ArgumentParser(
        prog="complete.py", allow_abbrev=False, description=__doc__.partition(":")[0],
        epilog=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", nargs="?", help="a MIDI file; --mode long needs none")
    parser.add_argument("--takes", default="4", help="how many to choose from (default: 4)")
    parser.add_argument("--out", help="a folder for the results (default: runs/complete/SONG_MODE "
                                      "in the repository)")
    parser.add_argument("--model-dir", help="where diffusion.safetensors lies (default: the "
                                            "weights of the repository)")
    for name, facts in parameters.items():
        default = facts["default"].strip("\"'")
        text = facts["help"] + (f" (default: {default})" if default else "")
        parser.add_argument(option_of(name), help=text.replace("%", "%%"))
    return parser


def option_of(name: str) -> str:
    """A parameter's option: `first_bar` is --first-bar."""
    return "--" + name.replace("_", "-")


def asked_of(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, object]]:
    """What was asked for: the command line, and the values of 08's parameters among it.

    Raises `MusicError` for an unknown option, with the one that was probably meant, and for values
    that cannot be.
    """
    parameters = parameters_of_08()
    parser = parser_of(parameters)
    asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise MusicError(refusal(unknown[0], list(parser._option_string_actions)))
    defaults = {name: facts["default"].strip("\"'") for name, facts in parameters.items()}
    texts = {name: getattr(asked, name) for name in parameters}
    values = {name: as_kind(option_of(name), defaults[name] if text is None else text,
                            parameters[name]["inferred_type_name"]) for name, text in texts.items()}
    asked.takes = as_kind("--takes", asked.takes, "int")
    if not 1 <= asked.takes <= 99:
        raise MusicError(f"--takes is {asked.takes}; choose 1 to 99")
    edit.check(values["mode"], **{name: values[name] for name in edit.LIMITS})
    if (asked.song is None) != (values["mode"] == "long"):
        raise MusicError("give a MIDI file: python complete.py song.mid" if asked.song is None else
                         f"{asked.song}: --mode long begins from nothing; leave the file out, or "
                         "choose --mode continue")
    return asked, values


def refusal(unknown: str, options: list[str]) -> str:
    """Why an argument is refused, in one line."""
    if not unknown.startswith("-"):
        return f"{unknown}: one MIDI file at a time; put a text with blanks in quotes"
    if unknown.lower().endswith((".mid", ".midi")):
        return f"{unknown}: no such option; write a file whose name begins with - as ./{unknown}"
    meant = difflib.get_close_matches(unknown.partition("=")[0], options, n=1)
    return f"{unknown}: no such option; " + (
        f"did you mean {meant[0]}?" if meant else "python complete.py --help lists them all")


# ---------------------------------------------------------------- the takes


def take(song: Path | None, model_dir: Path, values: dict, out: Path) -> tuple[Path, Path, Path]:
    """One run of notebook 08, its results moved to `out`: the MIDI, its WAV, and the song's WAV."""
    with tempfile.TemporaryDirectory(dir=out) as run:
        paths = {"model_dir": str(model_dir), "midi_file": str(song or "")}
        chain.run_chain(run, values | paths, only=["08"], live=False)
        made = list(Path(run, "midi", "complete").iterdir())
        (midi,) = (path.name for path in made if path.suffix == ".mid")
        for path in made:
            shutil.move(path, out / path.name)  # as a file of its own: an earlier one is replaced
    original = f"{Path(midi).stem}.wav" if song is None else next(
        path.name for path in made if path.name.endswith("_original.wav"))
    return out / midi, (out / midi).with_suffix(".wav"), out / original


def framed(page: str, frames: list[tuple[float, float, float] | None]) -> str:
    """The gallery's page with a frame over the new part of each piece.

    A frame is the second at which its player begins, and shares of the roll: from, and width.
    """
    head, *articles = page.replace("</body>", SCRIPT).split(PLAYHEAD)
    parts = [(FRAME.format(*frame) if frame else "") + PLAYHEAD + article
             for frame, article in zip(frames, articles, strict=True)]
    return head + "".join(parts)


def gallery(song: edit.MidiPiece | None, columns: tuple[int, int],
            takes: dict[int, tuple[Path, Path, Path]], path: Path, title: str) -> None:
    """One page: the song, and beside it the takes by seed, each with its new columns framed."""
    pieces, frames = [], []
    if song:
        original = next(iter(takes.values()))[2]
        pieces.append(("your piece", song.picture, original, song.path))
        frames.append(None)
    for seed, (midi, wav, _) in takes.items():
        picture = edit.open_midi(midi).picture
        begin, end = (min(edge / picture.pixels.shape[1], 1) for edge in columns)
        start_s = edit.seconds_until(picture, max(columns[0] - LEAD_IN, 0))
        pieces.append((f"{title}, seed {seed}", picture, wav, midi))
        frames.append((start_s, begin, end - begin))
    show.gallery(pieces, path, f"{title}: the new notes lie in the frame")
    path.write_text(framed(path.read_text("utf-8"), frames), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where no take succeeded, 2 where what was asked for cannot be done."""
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows cannot take every character
        stream.reconfigure(errors="replace")
    try:
        asked, values = asked_of(arguments)
        mode = values["mode"]
        path = Path(asked.song).expanduser().absolute() if asked.song else None
        song = edit.open_midi(path) if path else None
        columns = (edit.choose_bars(song, mode, values["bars"], values["first_bar"]) if song
                   else (0, 16 * values["bars"]))
    except MusicError as error:
        print(error, file=sys.stderr)
        return 2
    model_dir = Path(asked.model_dir or ROOT / "data/models").expanduser().absolute()
    name = f"{printable(path.stem)[:40]}_{mode}" if path else mode
    out = Path(asked.out or ROOT / "runs" / "complete" / name).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    takes, seeds = {}, [values["seed"] + i for i in range(asked.takes)]
    for seed in tqdm(seeds, f"{mode}, each take", unit="take"):
        try:
            takes[seed] = take(path, model_dir, values | {"seed": seed}, out)
        except (PapermillExecutionError, MusicError) as error:
            print(f"seed {seed}: {chain.one_line(error)}", file=sys.stderr)
    if not takes:
        return 1
    title = f"{printable(path.stem)}, {mode}" if path else mode
    gallery(song, columns, takes, out / "gallery.html", title)
    print(f"{len(takes)} takes, each as MIDI, WAV and image: {out}")
    print(f"look and listen: open {out / 'gallery.html'} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
