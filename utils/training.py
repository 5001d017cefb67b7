"""What a training needs besides its lesson: a checkpoint, a log, and a time budget in steps.

Used by notebook 02 (PyTorch) and notebook 03 (Keras). It imports neither: two functions say what
the state of a training is, and how to restore it.
"""

import contextlib
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from utils import corpus
from utils.files import MusicError, atomic, write_table

OVERHEAD = 1.15  # what a step takes beyond its gradients: the optimizer and the EMA
SAVE_EVERY_S = 60  # seconds of training between two checkpoints, at most
FACTS = {"about", "step", "train_steps", "log"}  # in each checkpoint, beside the training's state


def write_arrays(state: dict[str, Any], file: BinaryIO) -> None:
    """Write arrays, and whatever JSON can hold, as one npz file."""
    np.savez(file, **{name: value if isinstance(value, np.ndarray) else np.array(json.dumps(value))
                      for name, value in state.items()})


def read_arrays(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote. Runs no code from the file."""
    with np.load(path) as file:
        return {name: json.loads(str(value)) if value.dtype.kind == "U" else value
                for name, value in dict(file).items()}


def steps_within(minutes: float, one_step: Callable[[], None], repeats: int = 6) -> int:
    """How many steps fit into `minutes`, at least 4. `one_step()` computes a step's gradients; the
    fastest of `repeats` calls counts, after one to warm up."""
    took_s = []
    for _ in range(1 + repeats):
        start_s = time.perf_counter()
        one_step()
        took_s.append(time.perf_counter() - start_s)
    return max(4, int(60 * minutes / OVERHEAD / min(took_s[1:])))


# ---------------------------------------------------------------- what to learn from


def shares_of_one(**shares: float) -> None:
    """Refuse a share that is above 1, or below 0 and not the -1 that leaves it open."""
    for name, value in shares.items():
        if not (0 <= value <= 1 or value == -1):
            raise MusicError(f"{name} is {value}; choose 0 to 1")


def sources_of(styles: str, images: Path, batch_size: int) -> dict[str, tuple[Path, int]]:
    """The folder of images and the number of images in a batch of each style, by name.

    `styles` is `name=run_dir:images, ...`; where it is empty, `images` is the only folder, and its
    style has no name. Raises `MusicError` where the numbers do not add up to `batch_size`.
    """
    if not styles:
        return {"": (images, batch_size)}
    try:
        pairs = [item.strip().partition("=")[::2] for item in styles.split(",")]
        found = {name: (Path(folder.rpartition(":")[0]) / "images" / "diffusion" / "train",
                        int(folder.rpartition(":")[2])) for name, folder in pairs}
    except ValueError:
        found = {}
    shares = [share for _, share in found.values()]
    if not found or min(shares) < 1 or sum(shares) != batch_size:
        raise MusicError(f"styles {styles!r}: write name=run_dir:images, separated by commas, "
                         f"{batch_size} images in all")
    return found


def read_ahead(sources: dict[str, tuple[Path, int]], preset_name: str, seed: int, start: int
               ) -> Iterator[np.ndarray]:
    """Batches for ever, from batch `start`: uint8 `[B, pitches, steps]`, those of each source in
    turn. The next batch is read while this one is used."""
    streams = [corpus.stream_rolls(folder, share, preset_name, seed, start)
               for folder, share in sources.values()]
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(lambda: [next(stream) for stream in streams])
        while True:
            batch = ahead.result()
            ahead = reader.submit(lambda: [next(stream) for stream in streams])
            yield np.concatenate(batch)


# ---------------------------------------------------------------- the training


class Training:
    """Counts the steps and the seconds of one training, logs its numbers, saves and resumes it.

        training = Training(checkpoint_path, log_path, minutes=2, resume=resume)
        training.plan(one_step)                      # minutes become a number of steps
        training.begin(about, save, load)            # resumes, or starts at step 0
        for step in training.steps():                # the number of steps done before this one
            loss = ...
            training.record(loss=loss)               # counts, logs, saves when it is time

    Keras has a loop of its own: call `start`, `record` and `stop` in a callback. With neither
    `plan` nor `train_steps`, the training ends when `minutes` of training time are over.
    Every refusal is a `MusicError` of one line.
    """

    def __init__(self, path: str | Path, log_path: str | Path, *, train_steps: int = 0,
                 minutes: float = 0.0, resume: bool = False, save_every: int = 200,
                 batch_size: int = 1, write: Callable[[dict, BinaryIO], None] = write_arrays,
                 read: Callable[[Path], dict] = read_arrays, remedy: str = "set another seed"):
        """`save_every` is in steps; `write` and `read` store a dict, PyTorch's with `torch.save`;
        `remedy` is what to do when a loss is not a number. Raises for a damaged checkpoint."""
        self.path, self.log_path = Path(path), Path(log_path)
        self.train_steps, self.minutes, self.save_every = train_steps, minutes, save_every
        self._given_steps = train_steps
        self.batch_size, self.write, self.read, self.remedy = batch_size, write, read, remedy
        self.step, self.names, self.rows, self.about = 0, [], [], {}
        self.quiet = False  # True in all processes but one: they save and show nothing
        self._seconds, self._since, self._waiting, self._bar = 0.0, None, [], None
        self._saved_s = self._reported_s = 0.0
        self.saved = self._read() if resume and self.path.is_file() else None

    # ------------------------------------------------------------ how long

    @property
    def seconds(self) -> float:
        """Training time so far, that of resumed runs included; saving and previews do not count."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    @property
    def done(self) -> float:
        """The share of the training that is done, from 0 to 1."""
        if self.train_steps:
            return self.step / self.train_steps
        return self.seconds / max(60 * self.minutes, 1)

    def plan(self, one_step: Callable[[], None]) -> int:
        """The number of steps: as given, as a resumed run had it, or as many as fit into
        `minutes`, where `one_step()` computes the gradients of one."""
        if not self._given_steps:
            self.train_steps = (self.saved["train_steps"] if self.saved
                                else steps_within(self.minutes, one_step))
        return self.train_steps

    def kept(self, name: str, value: Any) -> Any:
        """A setting that was left open: as a resumed run had it, otherwise `value`."""
        return self.saved["about"].get(name, value) if self.saved else value

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside is not training time."""
        running, self._seconds, self._since = self._since is not None, self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter() if running else None

    # ------------------------------------------------------------ the loop

    def begin(self, about: dict[str, Any], save: Callable[[], dict[str, Any]],
              load: Callable[[dict[str, Any]], None]) -> None:
        """Resume from the checkpoint, or keep that of an earlier training under another name.

        `about` is what the checkpoint depends on, JSON values by name: a checkpoint with another
        value is refused. `save()` returns the state; `load(state)` restores it.
        """
        self.about, self._save, self._load = about, save, load
        if self.saved:
            self.restore(self.saved)
            self.saved = None
        elif self.path.is_file():
            kept = self.path.replace(self.path.with_suffix(f".previous{self.path.suffix}"))
            print("the checkpoint of an earlier training is kept as", kept.as_posix())
        if self.train_steps and self.step > self.train_steps:
            raise MusicError(f"{self.path}: trained already; give a train_steps of {self.step} "
                             "or more")

    def steps(self) -> Iterator[int]:
        """The number of steps done before each step to do. The loop must `record` each step."""
        self.start()
        try:
            while self.done < 1:
                yield self.step
        finally:
            self.stop()

    def start(self) -> None:
        """Start the clock and the progress bar."""
        self._bar = tqdm(total=self.train_steps or None, initial=self.step, desc="training",
                         mininterval=1, disable=self.quiet)
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock and the progress bar."""
        self._seconds, self._since = self.seconds, None
        self._bar.close()

    def record(self, **numbers: Any) -> None:
        """End a step. Its numbers may still be on a device: they are read now and then, because
        that makes a GPU wait. Raises where one is not finite."""
        self.step += 1
        self._waiting.append(numbers)
        self._bar.update()
        due = (self.step % self.save_every == 0 or self.done >= 1
               or self.seconds > self._saved_s + SAVE_EVERY_S)
        if due or self.step % 20 == 0:
            self._report()
        if due and self.quiet:
            self._saved_s = self.seconds
        elif due:
            self.save()

    def column(self, name: str) -> np.ndarray:
        """A number at every step so far, float64 `[steps]`."""
        self._report()
        return np.array([row[["step", *self.names].index(name)] for row in self.rows], float)

    def _report(self) -> None:
        """Read the waiting numbers into the log and the progress bar."""
        if not self._waiting:
            return
        values = [[float(value) for value in numbers.values()] for numbers in self._waiting]
        if not np.isfinite(values).all():
            raise self.not_a_number()
        speed = round(self.batch_size * len(values) / max(self.seconds - self._reported_s, 1e-9), 1)
        first, self.names = self.step - len(values) + 1, list(self._waiting[0])
        self.rows += [(step, *row, speed) for step, row in enumerate(values, first)]
        self._waiting, self._reported_s = [], self.seconds
        means = zip(self.names, np.mean(values, axis=0), strict=True)
        shown = ", ".join(f"{name} {mean:.3g}" for name, mean in itertools.islice(means, 3))
        self._bar.set_postfix_str(f"{shown}, {speed} images/s", refresh=False)

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write the checkpoint and the log, each whole or not at all. Raises, and keeps the earlier
        checkpoint, where a weight is not finite."""
        self._report()
        with self.paused():
            state = self._save()
            if not _finite(state):
                raise self.not_a_number()
            state |= {"about": self.about, "step": self.step, "train_steps": self.train_steps,
                      "log": self.rows, "names": self.names, "seconds": self.seconds}
            self.write(state, buffer := io.BytesIO())
            with atomic(self.path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
            write_table(self.log_path, ("step", *self.names, "pictures_per_s"), self.rows)
        self._saved_s = self.seconds

    def restore(self, saved: dict[str, Any] | None = None) -> None:
        """Restore a checkpoint, the last one if none is given. Raises where it does not fit."""
        saved = self._read() if saved is None else saved
        ours = json.loads(json.dumps(self.about))
        theirs = json.loads(json.dumps(saved["about"]))
        different = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if different:
            raise MusicError(f"{self.path}: trained with another {', '.join(different)}; give the "
                             "same parameters, or set resume to False")
        try:
            self._load(saved)
        except Exception:  # of another version of the program
            raise MusicError(f"{self.path}: damaged, or made by another version of this project; "
                             "set resume to False") from None
        self.step, self.rows = int(saved["step"]), [tuple(row) for row in saved["log"]]
        self.names = saved.get("names", ["loss"])
        self._seconds = self._saved_s = self._reported_s = float(saved.get("seconds", 0))

    def _read(self) -> dict[str, Any]:
        try:
            saved = self.read(self.path)
            if not saved.keys() >= FACTS:
                raise ValueError("not a checkpoint")
            return saved
        except Exception:
            raise MusicError(f"{self.path}: damaged; set resume to False") from None

    # ------------------------------------------------------------ when it stops

    def way_on(self) -> str:
        """What to do after a stop, in words."""
        if self.path.is_file():
            return f"set resume to True to go on from {self.path}"
        return "run again: nothing was saved yet"

    def not_a_number(self) -> MusicError:
        """The error of a training whose numbers are no longer finite."""
        return MusicError(f"a loss or a weight is not a number after step {self.step}; "
                          f"{self.remedy}, and {self.way_on()}")

    @contextlib.contextmanager
    def explained(self, processes: int = 1) -> Iterator[None]:
        """Turn Ctrl-C, and what ends one of several processes, into one line with the remedy."""
        try:
            yield
        except KeyboardInterrupt:
            raise MusicError(f"stopped; {self.way_on()}") from None
        except Exception as error:
            if processes == 1:
                raise
            raise MusicError(f"a process stopped ({type(error).__name__}); "
                             f"{self.way_on()}") from None


def _finite(value: Any) -> bool:
    """Whether all floating-point arrays in nested dicts and lists are finite."""
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_finite(item) for item in value)
    floating = "float" in str(getattr(value, "dtype", ""))
    return not floating or bool((abs(value) < math.inf).all())
