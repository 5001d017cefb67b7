"""What a training needs besides its lesson: a checkpoint, a log, and a time budget in steps.

Used by notebook 02 (PyTorch) and notebook 03 (Keras). It imports neither: two functions say what
the state of a training is, and how to restore it.
"""

import contextlib
import io
import json
import re
import time
import timeit
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
FACTS = {"about", "step", "train_steps", "log", "names", "seconds"}  # in each checkpoint


def write_arrays(state: dict[str, Any], file: BinaryIO) -> None:
    """Write arrays, and whatever JSON can hold, as one npz file."""
    np.savez(file, **{name: value if isinstance(value, np.ndarray) else np.array(json.dumps(value))
                      for name, value in state.items()})


def read_arrays(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote. Runs no code from the file."""
    with np.load(path) as file:
        return {name: json.loads(str(value)) if value.dtype.kind == "U" else value
                for name, value in file.items()}


def steps_within(minutes: float, one_step: Callable[[], None]) -> int:
    """How many steps fit into `minutes`, at least 4. `one_step()` computes a step's gradients; the
    fastest of six calls counts, after one to warm up."""
    took_s = timeit.repeat(one_step, number=1, repeat=7)
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
    items = [re.fullmatch(r"(.*?)=(.*):(\d+)", item.strip()) for item in styles.split(",")]
    found = {item[1]: (Path(item[2], "images", "diffusion", "train"), int(item[3]))
             for item in items if item}
    shares = [share for _, share in found.values()]
    if len(found) < len(items) or 0 in shares or sum(shares) != batch_size:
        raise MusicError(f"styles {styles!r}: write name=run_dir:images, separated by commas, "
                         f"{batch_size} images in all")
    return found


def read_ahead(sources: dict[str, tuple[Path, int]], preset_name: str, seed: int, start: int
               ) -> Iterator[np.ndarray]:
    """Batches for ever, from batch `start`: uint8 `[B, pitches, steps]`, those of each source in
    turn. The next batch is read while this one is used."""
    streams = [corpus.stream_rolls(folder, share, preset_name, seed, start)
               for folder, share in sources.values()]
    batches = map(np.concatenate, zip(*streams, strict=True))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, batches)
        while True:
            batch, ahead = ahead.result(), reader.submit(next, batches)
            yield batch


# ---------------------------------------------------------------- the training


class Training:
    """Counts the steps and the seconds of one training, logs its numbers, saves and resumes it.

        training = Training(checkpoint_path, log_path, minutes=2, resume=resume)
        training.plan(one_step)                      # minutes become a number of steps
        training.begin(about, save, load)            # resumes, or starts at step 0
        for step in training.steps():                # the number of steps done before this one
            loss = ...
            training.record(loss=loss)               # counts, logs, saves when it is time

    With neither `plan` nor `train_steps`, the training ends when `minutes` of training time are
    over. Every refusal is a `MusicError` of one line.
    """

    def __init__(self, path: str | Path, log_path: str | Path, *, train_steps: int = 0,
                 minutes: float = 0.0, resume: bool = False, save_every: int = 200,
                 batch_size: int = 1, write: Callable[[dict, BinaryIO], None] = write_arrays,
                 read: Callable[[Path], dict] = read_arrays, remedy: str = "set another seed"):
        """`save_every` is in steps; `write` and `read` store a dict, PyTorch's with `torch.save`;
        `remedy` is what to do when a loss is not a number. Raises for a damaged checkpoint."""
        self.path, self.log_path, self.minutes = Path(path), Path(log_path), minutes
        self.train_steps = self.given_steps = train_steps
        self.save_every, self.batch_size = save_every, batch_size
        self.write, self.read, self.remedy = write, read, remedy
        self.quiet = False  # True in all processes but one: they save and show nothing
        self.step, self.names, self.rows = 0, [], []  # a row: step, numbers, images a second
        self._waiting, self._bar = [], None  # numbers still to be read; the progress bar
        self._seconds, self._since = 0.0, None  # time before the clock was started, and when it was
        self._saved_s = self._reported_s = 0.0  # `seconds` at the last checkpoint, the last report
        self.saved = self._read() if resume and self.path.is_file() else None

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
        if not self.given_steps:
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
        self._bar = tqdm(total=self.train_steps or None, initial=self.step, desc="training",
                         mininterval=1, disable=self.quiet)
        self._since = time.perf_counter()
        try:
            while self.done < 1:
                yield self.step
        finally:
            self._seconds, self._since = self.seconds, None
            self._bar.close()

    def record(self, **numbers: Any) -> None:
        """End a step. Its numbers may still be on a device: they are read now and then, because
        that makes a GPU wait. Raises where one is not finite."""
        self.step += 1
        self._waiting.append(numbers)
        self._bar.update()
        if (self.step % self.save_every == 0 or self.done >= 1
                or self.seconds > self._saved_s + SAVE_EVERY_S):
            self.save()
        elif self.step % 20 == 0:
            self._report()

    def column(self, name: str) -> np.ndarray:
        """A number at every step so far, float64 `[steps]`."""
        self._report()
        return np.array([row[["step", *self.names].index(name)] for row in self.rows], float)

    def _report(self) -> None:
        """Read the waiting numbers into the log and the progress bar."""
        if not self._waiting:
            return
        values = np.array([[float(value) for value in numbers.values()]
                           for numbers in self._waiting])  # [steps since the last time, numbers]
        if not np.isfinite(values).all():
            raise self._stopped(f"a loss is not a number after step {self.step}: {self.remedy}")
        speed = round(self.batch_size * len(values) / max(self.seconds - self._reported_s, 1e-9), 1)
        first, self.names = self.step - len(values) + 1, list(self._waiting[0])
        self.rows += [(step, *row, speed) for step, row in enumerate(values.tolist(), first)]
        self._waiting, self._reported_s = [], self.seconds
        means = dict(zip(self.names[:3], values.mean(axis=0), strict=False))
        self._bar.set_postfix(means, images_per_s=speed, refresh=False)

    def save(self) -> None:
        """Write the checkpoint and the log, each whole or not at all. Raises, and keeps the earlier
        checkpoint, where a weight is not finite."""
        self._report()
        self._saved_s = self.seconds
        if self.quiet:
            return
        with self.paused():
            state = self._save()
            if not _finite(state):
                raise self._stopped(f"a weight is not a number after step {self.step}: "
                                    f"{self.remedy}")
            state |= {
                "about": self.about, "step": self.step, "train_steps": self.train_steps,
                "log": self.rows, "names": self.names, "seconds": self.seconds}
            self.write(state, buffer := io.BytesIO())
            with atomic(self.path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
            write_table(self.log_path, ("step", *self.names, "pictures_per_s"), self.rows)

    def restore(self, saved: dict[str, Any] | None = None) -> None:
        """Restore a checkpoint, the last one if none is given. Raises where it does not fit."""
        saved = saved or self._read()
        ours, theirs = (json.loads(json.dumps(about)) for about in (self.about, saved["about"]))
        different = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if different:
            raise MusicError(f"{self.path}: trained with another {', '.join(different)}; give the "
                             "same parameters, or set resume to False")
        with self._refusing():
            self._load(saved)
            self.step, self.names = int(saved["step"]), saved["names"]
            self.rows = [tuple(row) for row in saved["log"]]
            self._seconds = self._saved_s = self._reported_s = float(saved["seconds"])

    def _read(self) -> dict[str, Any]:
        with self._refusing():
            saved = self.read(self.path)
            return {name: saved[name] for name in FACTS} | saved  # an error if one is missing

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn any error in reading the checkpoint into one line."""
        try:
            yield
        except Exception:
            raise MusicError(f"{self.path}: damaged, or made by another version of this project; "
                             "set resume to False") from None

    def _stopped(self, why: str) -> MusicError:
        """The error of a training that has ended early: why, and how to go on."""
        remedy = (f"set resume to True to go on from {self.path}" if self.path.is_file()
                  else "run again: nothing was saved yet")
        return MusicError(f"{why}; {remedy}")

    @contextlib.contextmanager
    def explained(self, processes: int = 1) -> Iterator[None]:
        """Turn Ctrl-C, and what ends one of several processes, into one line with the remedy."""
        try:
            yield
        except KeyboardInterrupt:
            raise self._stopped("stopped") from None
        except Exception as error:
            if processes == 1:
                raise
            raise self._stopped(f"a process stopped ({type(error).__name__})") from None


def _finite(value: Any) -> bool:
    """Whether all floating-point arrays in nested dicts and lists are finite."""
    if isinstance(value, (dict, list, tuple)):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    floating = "float" in str(getattr(value, "dtype", ""))
    return not floating or bool((abs(value) < float("inf")).all())
