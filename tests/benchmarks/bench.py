"""One table of what takes time, beside peers: `make bench` writes runs/bench/bench.md.

    python tests/benchmarks/bench.py [PATH]

Conversion, training, sampling, GAN, audio, metrics and completion, each in a process of its own,
so that one that fails leaves a line and the others go on. A ratio above 1 means that this project
is faster. The other scripts beside this one measure each of them at length.
"""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]
LIMIT_S = 240  # for one part


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of a few calls."""
    took = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        call()
        took.append(time.perf_counter() - start_s)
    return min(took)


# Each part yields rows: what, unit, ours, the peer's name, the peer's; None where there is no peer.


def conversion() -> Iterator[tuple]:
    import pretty_midi

    from utils import pianoroll
    paths = sorted((ROOT / "data" / "midi").glob("*.mid"))[::3]
    own = seconds(lambda: [pianoroll.read_midi(path) for path in paths])
    peer = seconds(lambda: [pretty_midi.PrettyMIDI(str(path)).get_piano_roll() for path in paths],
                   1)
    yield ("MIDI to piano roll", "ms a file", 1000 * own / len(paths), "pretty_midi",
           1000 * peer / len(paths))


def training() -> Iterator[tuple]:
    import bench_diffusion as bench
    own = bench.ours("small", 25, 2, 1)
    peer = bench.theirs("diffusers", bench.example, True, 25, 2, 1)
    yield ("training the diffusion model", "s an image", 1 / own.images_per_s,
           "diffusers' tutorial network, tuned", 1 / peer.images_per_s)
    yield ("sampling, 25 steps", "s an image", own.sample_s,
           "diffusers' tutorial network, tuned, 25 steps", peer.sample_s)


def gan() -> Iterator[tuple]:
    import bench_gan as bench
    import tensorflow as tf
    tf.config.optimizer.set_experimental_options({"remapping": False})
    game = bench.notebook_game()
    generate, theirs = tf.function(game["generator"]), bench.original_generator()
    generate_theirs = tf.function(theirs)
    z = tf.random.normal([16, 14])
    peer = "a GAN of 367 GMAC an image, most in two wide convolutions"
    yield ("generating by the GAN", "s an image", 1 / bench.per_second(lambda: generate(z), 16),
           peer, 1 / bench.per_second(lambda: generate_theirs(z[:1]), 1))
    rolls = tf.cast(tf.random.uniform([16, 106, 300], 0, 255, tf.int32), tf.uint8)
    step = bench.plain_step(theirs, bench.original_discriminator(), 1)
    yield ("training the GAN", "s an image", 1 / bench.per_second(lambda: game["learn"](rolls), 16),
           peer, 1 / bench.per_second(step, 1))


def sound() -> Iterator[tuple]:
    import midi2audio

    from utils import audio
    path = sorted((ROOT / "data" / "midi").glob("*.mid"))[2]
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "a.wav")
        own = seconds(lambda: audio.midi_to_wav(path, wav), 2)
        length_s = audio.midi_to_wav(path, wav).seconds
        renderer = midi2audio.FluidSynth(str(audio.default_sound_font()))
        try:
            peer = seconds(lambda: renderer.midi_to_audio(str(path), str(Path(folder, "b.wav"))), 2)
        except OSError:  # FluidSynth is not installed
            peer = None
    yield ("MIDI to WAV, normalised and checked", "s a minute of music", own * 60 / length_s,
           "midi2audio", peer and peer * 60 / length_s)


def measures() -> Iterator[tuple]:
    import bench_metrics as bench

    from utils import metrics
    rolls = bench.rolls(0)[:100]
    yield (f"metrics ({len(metrics.FEATURES)}; the other: 5)", "ms a piano roll",
           10 * seconds(lambda: metrics.features(rolls, 0)), "MusPy",
           10 * seconds(lambda: bench.with_muspy(rolls), 1))


def completion() -> Iterator[tuple]:
    import numpy as np

    from utils import inpaint, unet
    network = unet.load(ROOT / "data" / "models" / "diffusion.safetensors", "cpu")
    kept = np.zeros((128, 256), np.uint8)
    kept[60, :128:4] = 200
    own = seconds(lambda: inpaint.inpaint(network, kept, 128, 256, onsets_per_bar=16), 1)
    yield ("eight new bars in a song, 50 steps", "s", own, "", None)


PARTS = {"conversion": conversion, "training": training, "gan": gan, "audio": sound,
         "metrics": measures, "completion": completion}


def line_of(what: str, unit: str, ours: float, peer: str, theirs: float | None) -> str:
    """A row of the table."""
    beside = f"{theirs:.3g} | {theirs / ours:.1f} | {peer}" if theirs else "| | none measured"
    return f"| {what} | {unit} | {ours:.3g} | {beside} |"


def machine() -> str:
    """The machine in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main(path: str = str(ROOT / "runs" / "bench" / "bench.md")) -> int:
    """Measure all parts and write the table; the exit status is 1 where a part failed."""
    rows, failed = [], []
    for name in PARTS:
        print(f"measuring {name} …", flush=True)
        try:
            done = subprocess.run([sys.executable, __file__, "--part", name], cwd=ROOT, text=True,
                                  capture_output=True, timeout=LIMIT_S, check=False)
            output, reason = done.stdout, (done.stderr.strip().splitlines() or ["no figures"])[-1]
            whole = done.returncode == 0
        except subprocess.TimeoutExpired as error:  # what was measured until then counts
            output, reason, whole = (error.stdout or b"").decode(), f"more than {LIMIT_S} s", False
        rows += [line for line in output.splitlines() if line.startswith("| ")]
        if not whole:
            failed.append(f"{name}, in part or all of it: {reason}")
    text = "\n".join([
        "# Benchmarks", "", f"{machine()}, {datetime.date.today()}. A ratio above 1 means that "
        "this project is faster. `make bench` measures again, on your machine.", "",
        "| what | unit | this project | other library | ratio | which |",
        "|---|---|---|---|---|---|",
        *rows, *([""] + [f"Not measured: {line}" for line in failed] if failed else []), ""])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    print(f"\n{text}\n{path}")
    return int(bool(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        for row in PARTS[sys.argv[2]]():
            print(line_of(*row), flush=True)
    else:
        sys.exit(main(*sys.argv[1:]))
