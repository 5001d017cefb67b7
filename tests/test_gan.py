"""Notebook 03: the two networks, the rules that end the game, and a small training, resumed."""

import ast
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import NormalDist

import nbformat
import notebook_code
import numpy as np
import papermill
import pytest

from real_midi import ROOT
from utils import pianoroll, training

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
NOTEBOOK = ROOT / "notebooks" / "03_train_gan_tf.ipynb"
HEAD = """
import os, signal, sys
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # however the program is started
"""
GENERATE = """
import hashlib, sys
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1], safe_mode=True, compile=False)
z = np.random.default_rng(5).standard_normal((3, model.input_shape[1])).astype("float32")
gray = model.predict(z, verbose=0)
print(gray.shape, gray.min() >= 0, gray.max() <= 1, np.isfinite(gray).all(),
      hashlib.sha256(np.round(255 * gray).astype("uint8").tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, without running its training."""
    return notebook_code.definitions(NOTEBOOK, {
        "latent_dim": 14, "seed": 0, "penalty_weight": 0.3,
        "rolls": np.linspace(180, 220, 1000).astype(np.uint8)})


# ---------------------------------------------------------------- the networks


def kinds(network):
    """How many dense, convolutional and upsampling layers a network has."""
    names = [type(layer).__name__ for layer in network.layers]
    return {name: names.count(name) for name in sorted(names)
            if name in ("Dense", "Conv2D", "UpSampling2D")}


def test_the_networks_have_the_layers_and_the_shapes_that_the_lesson_names(lesson):
    generator, discriminator = lesson["build_generator"](), lesson["build_discriminator"]()
    assert kinds(generator) == {"Dense": 1, "Conv2D": 3, "UpSampling2D": 3}
    assert kinds(discriminator) == {"Dense": 1, "Conv2D": 5}
    assert generator.input_shape == (None, 14)
    assert generator.output_shape == discriminator.input_shape == (None, 106, 300, 1)
    assert discriminator.output_shape == (None, 1)
    assert not any("Lambda" in type(layer).__name__ for layer in generator.layers)


def test_the_discriminator_sees_whether_a_batch_is_all_the_same_picture(lesson):
    discriminator = lesson["build_discriminator"]()
    some = np.random.default_rng(0).random((4, 106, 300, 1)).astype("float32")
    alone = discriminator(np.repeat(some[:1], 4, axis=0)).numpy()[0]
    among_others = discriminator(some).numpy()[0]
    assert alone != pytest.approx(among_others, abs=1e-6)


def test_the_discriminator_gets_how_many_pitches_are_active_at_once(lesson):
    planes = np.zeros((1, 106, 300, 3), np.float32)
    planes[0, 10:13, :150, 0] = 1  # three pitches in half of the columns
    np.testing.assert_allclose(lesson["pitches_at_once"](planes)[0],
                               [5, 5, 5, 0, 0, 0, 0, 0], atol=1.3)


def test_the_discriminator_gets_how_a_rhythm_repeats(lesson):
    planes = np.zeros((2, 106, 300, 3), np.float32)
    planes[0, 40, ::16, 1] = 1  # once a bar
    planes[1, 40, np.random.default_rng(0).permutation(300)[:19], 1] = 1
    once_a_bar, anywhere = np.asarray(lesson["rhythm"](planes))
    assert (once_a_bar[:4] < 0).all() and (once_a_bar[4:] > 3).all()
    assert np.abs(anywhere).max() < 1.5


def test_space_to_depth_loses_nothing_and_a_channel_keeps_its_pitch_class(lesson):
    picture = np.random.default_rng(0).random((2, 106, 300, 2)).astype("float32")
    folded = np.asarray(lesson["space_to_depth"](picture))
    assert folded.shape == (2, 9, 75, 96)
    np.testing.assert_array_equal(folded[1, 3, 20].reshape(12, 4, 2), picture[1, 36:48, 80:84])
    halves = folded.reshape(2, 9, 75, 12, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5, 6)
    back = lesson["depth_to_space"](halves.reshape(2, 9, 150, 48), 2)
    np.testing.assert_array_equal(back, picture)


def test_subpixel_upsampling_gives_each_number_to_one_column(lesson):
    x = np.random.default_rng(0).random((2, 9, 5, 6)).astype("float32")
    np.testing.assert_array_equal(lesson["subpixel"](x, 3, 2), x.reshape(2, 9, 15, 2))


@pytest.fixture(scope="module")
def output_of(lesson):
    """The generator up to its output before decisions, with a bias on every layer."""
    generator = lesson["build_generator"]()
    rng = np.random.default_rng(0)
    generator.set_weights([w + rng.normal(0, 0.02, w.shape) for w in generator.get_weights()])
    return lesson["layer_outputs"](generator, generator.input, "planes")


def turns(share):
    """The latent number that stands for this share of a circle."""
    return NormalDist().inv_cdf(share)


def test_the_first_number_shifts_the_whole_circle_by_beats_and_changes_nothing(output_of):
    z = np.random.default_rng(1).standard_normal((4, 14)).astype("float32")
    z[:, 0] = [turns((beats + 0.5) / 88) for beats in (0, 1, 30, 87)]
    z[:, 1:] = z[0, 1:]
    output = output_of.predict(z, verbose=0)
    assert output.shape == (4, 106, 352, 3) and output[0].std() > 0.01
    for one, beats in zip(output, (0, 1, 30, 87), strict=True):
        np.testing.assert_allclose(one, np.roll(output[0], 4 * beats, axis=1), atol=1e-5)


def test_a_number_that_says_where_shifts_its_own_patterns(lesson):
    z = np.random.default_rng(1).standard_normal((1, 14)).astype("float32").repeat(2, axis=0)
    z[:, 2] = turns(0.2), turns(0.2 + 5 / 22)
    one, other = np.asarray(lesson["by_bar"](z)).reshape(2, 22, 10, 22)
    own = np.arange(10) % 4 == 2
    np.testing.assert_allclose(other[:, own], np.roll(one[:, own], -5, axis=0), atol=1e-4)
    np.testing.assert_allclose(other[:, ~own], one[:, ~own], atol=1e-4)


def test_what_the_generator_gives_is_what_snap_levels_leaves(lesson):
    generator = lesson["build_generator"]()
    last = generator.get_layer("output")
    last.kernel.assign(100 * last.kernel)  # large enough for notes
    gray = 255 * generator.predict(np.random.default_rng(0).standard_normal((2, 14)), verbose=0)
    levels = np.round(gray[..., 0]).astype(np.uint8)
    assert len(np.unique(levels)) > 10, "silence, sustain and many onsets"
    np.testing.assert_array_equal(levels, pianoroll.snap(levels))
    np.testing.assert_allclose(gray[..., 0], levels, atol=0.51)


def test_both_networks_mean_the_same_by_three_planes(lesson):
    """What the discriminator reads from a picture is what the generator's output came to."""
    output = np.random.default_rng(0).uniform(0, 1.2, (2, 106, 300, 3)).astype("float32")
    planes = np.asarray(lesson["to_planes"](output))
    read = np.asarray(lesson["read_planes"](lesson["to_gray"](planes)))
    np.testing.assert_array_equal(read[..., :2], planes[..., :2])
    np.testing.assert_allclose(read[..., 2], planes[..., 2], atol=1e-5)


def test_a_sustain_needs_an_onset_before_it(lesson):
    active, onset = np.zeros((2, 1, 3, 64, 1), np.float32)
    active[0, 0, :8, 0], onset[0, 0, 6] = [1, 1, 0, 1, 1, 0, 1, 1], 1
    active[0, 1, :32, 0], onset[0, 1, 0] = 1, 1
    active[0, 2, [62, 63, 0, 1], 0], onset[0, 2, 62] = 1, 1  # time is a circle
    kept = np.array(lesson["with_onsets"](active, onset))
    expected = active.copy()
    expected[0, 0, [0, 1, 3, 4]] = 0
    np.testing.assert_array_equal(kept, expected)


def test_the_gradient_passes_the_decision_but_not_outwards(lesson):
    import tensorflow as tf

    output = tf.constant([-2.0, -2.0, 0.1, 0.5, 3.0, 3.0])
    wish = tf.constant([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent goes against it
    with tf.GradientTape() as tape:
        tape.watch(output)
        decided = lesson["straight_through"](output)
        loss = tf.reduce_sum(wish * decided)
    np.testing.assert_array_equal(decided, [0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(tape.gradient(loss, output), [0, -1, 1, -1, 1, 0])


def test_a_silent_pixel_is_told_that_a_note_is_wanted(lesson):
    import tensorflow as tf

    as_for_an_onset = np.tile([0.2, 0.9, 0.0], (1, 106, 300, 1))
    output = tf.constant(as_for_an_onset, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(output)
        planes = lesson["to_planes"](output, lesson["straight_through"])
        onsets = tf.reduce_sum(planes[..., 1])
    gradient = tape.gradient(onsets, output).numpy()
    assert onsets == 0 and (gradient[..., 0] > 0.5).all() and (gradient[..., 1] == 0).all()


def test_onsets_take_the_velocities_of_the_data_and_sustains_have_none(lesson):
    output = np.float32([[0.2, 0.9, 9], [0.6, 0.4, 9], [0.6, 0.6, -9], [0.6, 0.6, 0],
                         [0.6, 0.6, 9]])
    planes = lesson["to_planes"](output.reshape(1, 1, 5, 3).repeat(40, axis=2))
    gray = 255 * np.asarray(lesson["to_gray"](planes))[0, 0, ::40, 0]
    np.testing.assert_allclose(gray, [0, 0, 180, 200, 220], atol=1.5)  # no sustain without an onset


def test_the_velocity_of_an_onset_can_be_learned(lesson):
    import tensorflow as tf

    output = tf.constant(np.tile([0.9, 0.9, 0.1], (1, 106, 300, 1)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(output)
        planes = lesson["to_planes"](output, lesson["straight_through"])
        velocity = tf.reduce_sum(planes[..., 2])
    assert (tape.gradient(velocity, output).numpy()[..., 2] > 0.9).all()


def test_augment_moves_notes_and_keeps_them(lesson):
    import tensorflow as tf

    picture = np.zeros((2, 106, 300, 1), np.float32)
    picture[:, 40, 8:12, 0] = [0.8, 0.25, 0.25, 0.25]
    tf.random.set_seed(0)  # one shift in 76 moves the note into the beat that is cut off
    for _ in range(5):
        moved = lesson["augment"](tf.constant(picture)).numpy()
        rows, columns = np.nonzero(moved[0, :, :, 0] > 0.5)
        assert len(rows) == 1 and abs(rows[0] - 40) <= 6 and (columns[0] - 8) % 4 == 0
        assert moved.sum() == pytest.approx(picture.sum())


def test_augment_drops_a_note_at_the_edge_and_turns_by_beats(lesson):
    """The lowest note never comes back as the highest, and beats stay beats across the seam."""
    import tensorflow as tf

    picture = np.zeros((1, 106, 300, 1), np.float32)
    picture[0, 0], picture[0, -1, ::4] = 0.25, 0.8  # a low drone, a high note on every beat
    seen = set()
    for _ in range(40):
        moved = lesson["augment"](tf.constant(picture)).numpy()[0, ..., 0]
        drone, high = (np.unique(np.nonzero(moved == level)[0])
                       for level in np.float32([0.25, 0.8]))
        assert all(row <= 6 for row in drone) and all(row >= 99 for row in high)
        assert set(np.nonzero(moved == np.float32(0.8))[1] % 4) <= {0}
        seen.add((tuple(drone), tuple(high)))
    assert len(seen) > 5, "it moves"


def test_the_way_between_two_pieces_begins_and_ends_with_them(lesson):
    a, b = np.random.default_rng(1).standard_normal((2, 14)).astype(np.float32)
    way = lesson["between"](a, b, 7)
    np.testing.assert_allclose(way[[0, -1]], [a, b], atol=1e-5)
    lengths = np.linalg.norm(way, axis=1)
    assert lengths.min() > 0.99 * min(lengths[0], lengths[-1])
    np.testing.assert_allclose(lesson["between"](a, a, 3), [a, a, a], atol=1e-4)


# ---------------------------------------------------------------- the end of the game


def test_balance_needs_both_probabilities_near_a_half_for_the_whole_window(lesson):
    balanced, half = lesson["balanced"], np.full(300, 0.5)
    assert balanced(half, half)
    assert not balanced(half[:150], half[:150]), "too early to say"
    assert not balanced(half + 0.1, half)
    assert not balanced(half, half - 0.1)
    lately = np.where(np.arange(300) < 250, 0.9, 0.5)
    assert not balanced(lately, 1 - lately)
    jumping = half + 0.3 * (-1) ** np.arange(300)
    assert balanced(jumping, jumping), "a single batch jumps"


def music(count, seed=0, notes=200):
    rng = np.random.default_rng(seed)
    levels = np.zeros((count, 106, 300), np.uint8)
    for one in levels:
        one[rng.integers(20, 80, notes), rng.integers(0, 300, notes)] = 200
    return levels


class Numbers:
    """A training of which only the two probabilities matter."""

    def __init__(self):
        self.rows = {"p_real": [], "p_fake": []}

    @property
    def step(self):
        return len(self.rows["p_real"])

    def column(self, name):
        return np.array(self.rows[name])

    def add(self, p_real, p_fake):
        self.rows["p_real"].append(p_real)
        self.rows["p_fake"].append(p_fake)


def test_balance_sharpens_the_discriminator_and_ends_the_game_only_after_that(lesson, monkeypatch):
    import keras

    run, sharpened_at, over = Numbers(), [], False
    for name, value in {"run": run, "rolls": music(8), "average": None, "fixed_z": None,
                        "r1_weight": keras.Variable(0.3),
                        "progress": {"sharpness": 1, "sharpened_at": 0},
                        "generate": lambda *_: np.zeros((8, 106, 300), np.uint8)}.items():
        monkeypatch.setitem(lesson, name, value)
    while run.step < 3000 and not over:
        for _ in range(50):
            run.add(0.52, 0.48)
        before = lesson["progress"]["sharpness"]
        over = lesson["game_over"]()
        if lesson["progress"]["sharpness"] > before:
            sharpened_at.append(run.step)
        if run.step == 400:  # silent samples until here: no equilibrium at all
            assert not sharpened_at
            monkeypatch.setitem(lesson, "generate", lambda *_: music(8, seed=1))
    assert sharpened_at == [450, 650, 850], "each gets two hundred steps"
    assert over and run.step == 1050
    assert float(lesson["r1_weight"]) == pytest.approx(0.3 / 8)
    for _ in range(2):  # a discriminator that is never wrong teaches nothing
        for _ in range(100):
            run.add(0.9, 0.1)
        assert not lesson["game_over"]()
    assert float(lesson["r1_weight"]) == pytest.approx(0.3 / 2), "doubled twice"


def test_faults_are_said_in_words_with_what_to_try(lesson):
    faults, data = lesson["faults"], music(8)
    assert faults(music(8, seed=1), data) == []
    silent, same = np.zeros_like(data), np.repeat(music(1), 8, axis=0)
    late = music(8, seed=2)
    late[:, :, :75] = 0
    noise = np.random.default_rng(0).choice([0, 200], data.shape).astype(np.uint8)
    twins = music(8, seed=3)
    twins[5] = twins[2]
    placed = music(8, seed=4)
    placed[:, 40:50, 100:110] = 200
    for samples, word in ((silent, "silent"), (same, "alike"), (late, "quarter"), (noise, "noise"),
                          (twins, "two of them are alike"), (placed, "same places")):
        found = faults(samples, data)
        assert any(word in fault for fault in found), (word, found)
        assert all(": " in fault for fault in found), "each says what to try"


# ---------------------------------------------------------------- the saved state


def test_a_state_comes_back_whole(lesson, monkeypatch, tmp_path):
    import keras

    weight, frame = keras.Variable(np.ones(3, np.float32)), np.ones((106, 300), np.uint8)
    for name, value in {"variables": lambda: [weight], "film": [frame],
                        "r1_weight": keras.Variable(0.3),
                        "progress": {"blocks": 4, "sharpness": 8}}.items():
        monkeypatch.setitem(lesson, name, value)
    with (tmp_path / "state.npz").open("wb") as file:
        training.write_arrays(lesson["save"](), file)
    weight.assign(np.zeros(3))
    lesson["film"].clear()
    lesson["progress"].update(blocks=0, sharpness=1)
    lesson["load"](training.read_arrays(tmp_path / "state.npz"))
    assert lesson["progress"] == {"blocks": 4, "sharpness": 8}
    np.testing.assert_array_equal(lesson["film"], [frame])
    assert np.all(weight.numpy() == 1)
    assert float(lesson["r1_weight"]) == pytest.approx(0.3 / 8), "a sharp discriminator"


# ---------------------------------------------------------------- a small training, resumed


def run(run_dir, **parameters):
    output = Path(run_dir) / "03.ipynb"
    given = {"run_dir": str(run_dir), "train_steps": 3, "batch_size": 2} | parameters
    papermill.execute_notebook(NOTEBOOK, output, given, cwd=ROOT, kernel_name="python3",
                               progress_bar=False)
    return "".join(o.get("text", "") for c in nbformat.read(output, 4).cells
                   for o in c.get("outputs", []) if o.get("name") == "stdout")


def pictures(folder, count, size=(106, 300)):
    for i, levels in enumerate(music(count)):
        pianoroll.save_png(pianoroll.PianoRoll(levels[: size[0], : size[1]], 21),
                           folder / f"{i}.png")


def rows(run_dir):
    with (run_dir / "models" / "gan_log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def film_of(run_dir):
    return training.read_arrays(run_dir / "models" / "gan_state.npz")["film"]


def log_in(run_dir):
    return training.read_arrays(run_dir / "models" / "gan_state.npz")["log"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three pictures, a batch of five: fewer pictures than a batch holds. Then two steps more."""
    run_dir = tmp_path_factory.mktemp("gan")
    for split in ("train", "valid"):
        pictures(run_dir / "images" / "gan" / split, 3)
    said = run(run_dir, batch_size=5)
    first = rows(run_dir), film_of(run_dir)
    more = run(run_dir, batch_size=5, train_steps=5, resume=True)
    return run_dir, said, first, more


def test_it_trains_on_fewer_pictures_than_a_batch_and_says_why_it_stopped(trained):
    run_dir, said, (first, _), _ = trained
    assert "stopped at step 3: train_steps are done" in said
    assert [row["step"] for row in first] == ["1", "2", "3"]
    assert list(first[0]) == ["step", "p_real", "p_fake", "discriminator_loss", "penalty",
                              "generator_loss", "pictures_per_s"]
    for name in ("figures/gan_progress.gif", "figures/gan_probabilities.png",
                 "figures/latent_walk.gif", "models/gan_generator.keras",
                 "models/gan_discriminator.keras"):
        assert (run_dir / name).stat().st_size > 300, name


def test_resume_goes_on_where_it_was(trained):
    run_dir, _, (first, film), more = trained
    assert "steps done: 3 · to do: 2" in more
    assert rows(run_dir)[:3] == first
    longer = film_of(run_dir)
    assert len(longer) > len(film) and np.array_equal(longer[: len(film)], film)
    assert [float(row["step"]) for row in rows(run_dir)] == [1, 2, 3, 4, 5]
    assert not [path for path in run_dir.rglob(".*") if path.is_file()], "a temporary file is left"


def program(folder, after=None, **parameters):
    """Notebook 03 up to the end of its training, without its toys, as a plain program.

    `after` maps a text to code that runs after the cell with this text.
    """
    code = []
    for cell in notebook_code.code_cells(NOTEBOOK):
        if "show.show_figure(" not in cell.source and "runs.items()" not in cell.source:
            code.append(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            given = {"run_dir": str(folder), "batch_size": 2} | parameters
            code += [f"{name} = {value!r}" for name, value in given.items()]
        code += [more for mark, more in (after or {}).items() if mark in cell.source]
        if "run.steps()" in cell.source:
            break
    path = folder / "program.py"
    path.write_text(HEAD + "\n\n".join(code), encoding="utf-8")
    return path


def start(folder, after=None, **parameters):
    return subprocess.Popen([sys.executable, program(folder, after, **parameters)], cwd=ROOT,
                            env=os.environ | {"PYTHONPATH": str(ROOT),
                                              "PYTHONIOENCODING": "cp1252"},  # as on Windows
                            text=True, encoding="cp1252",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_state(process, folder):
    while not (folder / "models" / "gan_state.npz").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_killed_at_any_moment_it_goes_on(tmp_path):
    for split in ("train", "valid"):
        pictures(tmp_path / "images" / "gan" / split, 3)
    process = start(tmp_path, train_steps=500, checkpoint_every=1)
    wait_for_state(process, tmp_path)
    time.sleep(0.7)  # in the middle of something
    process.kill()
    process.communicate()
    done = len(log_in(tmp_path))
    assert done >= 1
    said = start(tmp_path, train_steps=done + 2, resume=True).communicate(timeout=300)[0]
    assert f"steps done: {done} · to do: 2" in said
    assert f"stopped at step {done + 2}" in said


TAKEN = """
print("taken over:", *[all(np.array_equal(a, b) for a, b in zip(network.get_weights(),
    keras.saving.load_model(Path(start_from) / f"gan_{network.name}.keras").get_weights(),
    strict=True)) for network in (generator, discriminator)])
"""


def test_a_training_can_start_from_trained_networks(trained, tmp_path):
    shutil.copytree(trained[0] / "images", tmp_path / "images")
    models = trained[0] / "models"
    process = start(tmp_path, {"take_over(discriminator)": TAKEN}, start_from=str(models),
                    train_steps=2)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "taken over: True True" in said, said
    for given in ({"start_from": "nowhere"}, {"start_from": str(models), "latent_dim": 6}):
        said = start(tmp_path, **given).communicate(timeout=300)[0]
        assert "MusicError: " in said.splitlines()[-1]
        assert "gan_generator.keras: no generator of this notebook" in said


CTRL_C = """
def tick(usual=run.record, **numbers):
    usual(**numbers)
    if run.step == 2:
        signal.raise_signal(signal.SIGINT)

run.record = tick
"""


def test_ctrl_c_saves_and_a_damaged_state_is_refused_each_in_one_line(tmp_path):
    for split in ("train", "valid"):
        pictures(tmp_path / "images" / "gan" / split, 3)
    process = start(tmp_path, {"run.begin(": CTRL_C}, train_steps=500)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and "MusicError: stopped; set resume to True to go on" in said
    path = tmp_path / "models" / "gan_state.npz"
    assert len(log_in(tmp_path)) == 2
    path.write_bytes(path.read_bytes()[:1000])
    said = start(tmp_path, resume=True).communicate(timeout=300)[0]
    assert "gan_state.npz: damaged; set resume to False" in said


BROKEN = """
def broken(*_, **__):
    yield rolls[:2]
    raise files.MusicError("bad.png: cannot be read")

corpus.stream_rolls = broken
"""


@pytest.mark.parametrize("batch_size", [2, 5], ids=["after a batch", "before the first batch"])
def test_a_bad_picture_in_the_stream_ends_in_its_own_line(tmp_path, batch_size):
    for split in ("train", "valid"):
        pictures(tmp_path / "images" / "gan" / split, 3)
    process = start(tmp_path, {"def full": BROKEN}, train_steps=5, batch_size=batch_size)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith("MusicError: bad.png: cannot be read")
    assert "InvalidArgument" not in said


TWO_DEVICES = """
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           2 * [tf.config.LogicalDeviceConfiguration()])
"""


def test_two_devices_share_each_batch(tmp_path):
    for split in ("train", "valid"):
        pictures(tmp_path / "images" / "gan" / split, 3)
    mirrored = 'strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])'
    process = start(tmp_path, {"run_dir: str": TWO_DEVICES, "strategy = ": mirrored},
                    train_steps=3, batch_size=4)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "stopped at step 3" in said, said
    assert np.shape(log_in(tmp_path)) == (3, 7) and np.isfinite(log_in(tmp_path)).all()


def test_a_new_training_keeps_the_checkpoint_of_the_earlier_one(trained, tmp_path):
    shutil.copytree(trained[0] / "images", tmp_path / "images")
    (tmp_path / "models").mkdir()
    state = tmp_path / "models" / "gan_state.npz"
    kept = state.with_name("gan_state.previous.npz")
    shutil.copy(trained[0] / "models" / "gan_state.npz", state)
    before = state.read_bytes()
    said = start(tmp_path, train_steps=1).communicate(timeout=300)[0]
    assert "the checkpoint of an earlier training is kept as" in said
    assert kept.read_bytes() == before and len(log_in(tmp_path)) == 1


def test_what_it_prints_can_be_printed_on_windows():
    for cell in notebook_code.code_cells(NOTEBOOK):
        for call in ast.walk(ast.parse(cell.source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("print", "tqdm.write"):
                ast.unparse(call).encode("cp1252")


def test_a_fresh_process_generates_the_same_images_twice(trained):
    model = trained[0] / "models" / "gan_generator.keras"
    said = [subprocess.run([sys.executable, "-c", GENERATE, str(model)], capture_output=True,
                           text=True, check=True).stdout for _ in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith("(3, 106, 300, 1) True True True")


def test_another_run_does_not_resume_and_wrong_pictures_do_not_train(trained, tmp_path):
    with pytest.raises(Exception, match=r"gan_state.npz: trained with another batch_size, "
                       r"latent_dim, networks; give the same parameters, or set resume to False"):
        run(trained[0], resume=True, latent_dim=6)
    with pytest.raises(Exception, match=r"trained already; give a train_steps of 5 or more"):
        run(trained[0], resume=True, batch_size=5, train_steps=4)
    for split in ("train", "valid"):
        pictures(tmp_path / "images" / "gan" / split, 2, size=(100, 300))
    with pytest.raises(Exception, match=r"100×300 pixels, not 106×300"):
        run(tmp_path)
