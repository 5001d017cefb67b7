"""Notebook 03: the two networks, the rules that end the game, and a small training, resumed."""

import ast
import csv
import os
import shutil
from statistics import NormalDist

import nbformat
import notebook_code
import numpy as np
import papermill
import pytest
from notebook_code import finish

from real_midi import ROOT
from utils import pianoroll, training

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
NOTEBOOK = ROOT / "notebooks" / "03_train_gan_tf.ipynb"


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, without running its training."""
    return notebook_code.definitions(NOTEBOOK, {
        "latent_dim": 14, "seed": 0, "penalty_weight": 0.3,
        "rolls": np.linspace(180, 220, 1000).astype(np.uint8)})


def music(count, seed=0, notes=200):
    rng = np.random.default_rng(seed)
    rolls = np.zeros((count, 106, 300), np.uint8)
    for roll in rolls:
        roll[rng.integers(20, 80, notes), rng.integers(0, 300, notes)] = 200
    return rolls


# ---------------------------------------------------------------- the networks


def test_the_networks_have_the_layers_and_the_shapes_that_the_lesson_names(lesson):
    generator, discriminator = lesson["build_generator"](), lesson["build_discriminator"]()
    for network, counts in ((generator, (1, 3, 3)), (discriminator, (1, 5, 0))):
        names = [type(layer).__name__ for layer in network.layers]
        assert tuple(names.count(kind) for kind in ("Dense", "Conv2D", "UpSampling2D")) == counts
        assert not any("Lambda" in name for name in names)
    assert generator.input_shape == (None, 14)
    assert generator.output_shape == discriminator.input_shape == (None, 106, 300, 1)
    assert discriminator.output_shape == (None, 1)


def test_the_first_number_shifts_the_whole_circle_by_beats_and_changes_nothing(lesson):
    generator, rng = lesson["build_generator"](), np.random.default_rng(0)
    generator.set_weights([w + rng.normal(0, 0.02, w.shape) for w in generator.get_weights()])
    output_of = lesson["layer_outputs"](generator, generator.input, "planes")  # before decisions
    beats = (0, 1, 30, 87)
    z = rng.standard_normal((1, 14)).astype("float32").repeat(4, axis=0)
    z[:, 0] = [NormalDist().inv_cdf((count + 0.5) / 88) for count in beats]
    output = output_of.predict(z, verbose=0)
    assert output.shape == (4, 106, 352, 3) and output[0].std() > 0.01
    for one, count in zip(output, beats, strict=True):
        np.testing.assert_allclose(one, np.roll(output[0], 4 * count, axis=1), atol=1e-5)


def test_what_the_generator_gives_is_what_snap_leaves(lesson):
    generator = lesson["build_generator"]()
    last = generator.get_layer("output")
    last.kernel.assign(100 * last.kernel)  # large enough for notes
    gray = 255 * generator.predict(np.random.default_rng(0).standard_normal((2, 14)), verbose=0)
    rolls = np.round(gray[..., 0]).astype(np.uint8)
    assert len(np.unique(rolls)) > 10, "silence, sustain and many onsets"
    np.testing.assert_array_equal(rolls, pianoroll.snap(rolls))
    np.testing.assert_allclose(gray[..., 0], rolls, atol=0.51)


def test_both_networks_mean_the_same_by_three_planes(lesson):
    """What the discriminator reads from an image is what the generator's output came to."""
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
    expected = active.copy()
    expected[0, 0, [0, 1, 3, 4]] = 0
    np.testing.assert_array_equal(lesson["with_onsets"](active, onset), expected)


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


def test_augment_transposes_within_the_keyboard_and_shifts_by_beats(lesson):
    """The lowest note never comes back as the highest, and beats stay beats at the boundary."""
    import tensorflow as tf

    image = np.zeros((1, 106, 300, 1), np.float32)
    image[0, 0], image[0, -1, ::4] = 0.25, 0.8  # a low drone, a high note on every beat
    seen = set()
    for _ in range(40):
        moved = lesson["augment"](tf.constant(image)).numpy()[0, ..., 0]
        drone = np.unique(np.nonzero(moved == np.float32(0.25))[0])
        high, beats = np.nonzero(moved == np.float32(0.8))
        assert all(drone <= 6) and all(high >= 99) and set(beats % 4) <= {0}
        seen.add((*drone, *high))
    assert len(seen) > 5, "it moves"


# ---------------------------------------------------------------- the end of the game


class Numbers:
    """A training of which only the two probabilities matter."""

    def __init__(self):
        self.rows, self.step = [], 0

    def column(self, name):
        return np.array([row[name] for row in self.rows])

    def add(self, p_real, count):
        self.rows += count * [{"p_real": p_real, "p_fake": 1 - p_real}]
        self.step = len(self.rows)


def test_balance_sharpens_the_discriminator_and_ends_the_game_only_after_that(lesson, monkeypatch):
    import keras

    run, sharpened_at, over = Numbers(), [], False
    progress = {"sharpness": 1, "sharpened_at": 0}
    for name, value in {"run": run, "rolls": music(8), "average": None, "fixed_z": None,
                        "r1_weight": keras.Variable(0.3), "progress": progress,
                        "generate": lambda *_: music(8, seed=1) * (run.step > 400)}.items():
        monkeypatch.setitem(lesson, name, value)  # silent samples at first: no equilibrium at all
    while run.step < 3000 and not over:
        run.add(0.52, 50)
        before, over = progress["sharpness"], lesson["game_over"]()
        if progress["sharpness"] > before:
            sharpened_at.append(run.step)
    assert sharpened_at == [450, 650, 850], "each gets two hundred steps"
    assert over and run.step == 1050
    assert float(lesson["r1_weight"]) == pytest.approx(0.3 / 8)
    for _ in range(2):  # a discriminator that is never wrong teaches nothing
        run.add(0.9, 100)
        assert not lesson["game_over"]()
    assert float(lesson["r1_weight"]) == pytest.approx(0.3 / 2), "doubled twice"


def faulty_samples():
    """Samples with a fault each, by the word that names it."""
    late, twins, placed = music(8, seed=2), music(8, seed=3), music(8, seed=4)
    late[:, :, :75] = 0
    twins[5] = twins[2]
    placed[:, 40:50, 100:110] = 200
    return {"silent": 0 * music(8), "alike": np.repeat(music(1), 8, axis=0), "quarter": late,
            "noise": np.random.default_rng(0).choice(np.uint8([0, 200]), (8, 106, 300)),
            "two of them are alike": twins, "same places": placed}


def test_faults_are_said_in_words_with_what_to_try(lesson):
    assert lesson["faults"](music(8, seed=1), music(8)) == []
    for word, samples in faulty_samples().items():
        found = lesson["faults"](samples, music(8))
        assert any(word in fault for fault in found), (word, found)
        assert all(": " in fault for fault in found), "each says what to try"


# ---------------------------------------------------------------- a small training, resumed


def with_images(folder, count=3, rows=106):
    """The folder of a run, with images and nothing trained."""
    for split in ("train", "valid"):
        for i, roll in enumerate(music(count)):
            pianoroll.save_png(pianoroll.PianoRoll(roll[:rows], 21),
                               folder / "images" / "gan" / split / f"{i}.png")
    return folder


def run(run_dir, **parameters):
    """What the whole notebook prints."""
    output = run_dir / "03.ipynb"
    given = {"run_dir": str(run_dir), "train_steps": 3, "batch_size": 2} | parameters
    papermill.execute_notebook(NOTEBOOK, output, given, cwd=ROOT, kernel_name="python3",
                               progress_bar=False)
    return "".join(o.get("text", "") for c in nbformat.read(output, 4).cells
                   for o in c.get("outputs", []) if o.get("name") == "stdout")


def start(folder, after=None, **parameters):
    """The notebook up to the end of its training, without its toys."""
    return notebook_code.start(
        NOTEBOOK, folder, "run.steps()", {"run_dir": str(folder), "batch_size": 2} | parameters,
        after=after, skipped=lambda cell: "show.show_figure(" in cell.source or (
            "runs.items()" in cell.source))


def state_of(run_dir):
    return training.read_arrays(run_dir / "models" / "gan_state.npz")


def log_of(run_dir):
    with (run_dir / "models" / "gan_log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three images, a batch of five: fewer images than a batch holds. Then two steps more."""
    run_dir = with_images(tmp_path_factory.mktemp("gan"))
    said = run(run_dir, batch_size=5)
    first = log_of(run_dir), state_of(run_dir)["film"]
    return run_dir, said, first, run(run_dir, batch_size=5, train_steps=5, resume=True)


def test_it_trains_on_fewer_images_than_a_batch_and_says_why_it_stopped(trained):
    run_dir, said, (first, _), _ = trained
    assert "stopped at step 3: train_steps are done" in said
    assert list(first[0]) == ["step", "p_real", "p_fake", "discriminator_loss", "penalty",
                              "generator_loss", "pictures_per_s"]
    for name in ("figures/gan_progress.gif", "figures/gan_probabilities.png",
                 "figures/latent_walk.gif", "models/gan_generator.keras",
                 "models/gan_discriminator.keras"):
        assert (run_dir / name).stat().st_size > 300, name


def test_resume_goes_on_where_it_was(trained):
    run_dir, _, (first, film), more = trained
    assert "steps done: 3 · to do: 2" in more
    assert log_of(run_dir)[:3] == first
    longer = state_of(run_dir)["film"]
    assert len(longer) > len(film) and np.array_equal(longer[: len(film)], film)
    assert [float(row["step"]) for row in log_of(run_dir)] == [1, 2, 3, 4, 5]
    assert not [path for path in run_dir.rglob(".*") if path.is_file()], "a temporary file is left"


TAKEN = """
print("taken over:", *[all(np.array_equal(a, b) for a, b in zip(network.get_weights(),
    keras.saving.load_model(Path(start_from) / f"gan_{network.name}.keras").get_weights(),
    strict=True)) for network in (generator, discriminator)])
"""


def test_a_training_can_start_from_trained_networks(trained, tmp_path):
    models = str(trained[0] / "models")
    status, said = finish(start(with_images(tmp_path), {"take_over(discriminator)": TAKEN},
                                start_from=models, train_steps=1))
    assert status == 0 and "taken over: True True" in said, said
    said = finish(start(tmp_path, start_from=models, latent_dim=6))[1].splitlines()[-1]
    assert "MusicError: " in said and "gan_generator.keras: no generator of this notebook" in said


CTRL_C = """
def tick(usual=run.record, **numbers):
    usual(**numbers)
    if run.step == 2:
        signal.raise_signal(signal.SIGINT)

run.record = tick
"""


RESTORED = """
state = training.read_arrays(run.path)
print("restored:", all(np.array_equal(variable, state[f"weight_{i}"])
                       for i, variable in enumerate(variables())), len(film) == len(state["film"]))
"""


def test_ctrl_c_saves_all_that_a_resume_restores(tmp_path):
    status, said = finish(start(with_images(tmp_path), {"run.begin(": CTRL_C}, train_steps=500))
    assert status == 1 and "MusicError: stopped; set resume to True to go on" in said
    assert state_of(tmp_path)["step"] == 2
    said = finish(start(tmp_path, {"run.begin(": RESTORED}, train_steps=3, resume=True))[1]
    assert "steps done: 2 · to do: 1" in said and "restored: True True" in said
    assert "stopped at step 3" in said


BROKEN = """
def broken(*_, **__):
    yield rolls[:2]
    raise files.MusicError("bad.png: cannot be read")

corpus.stream_rolls = broken
"""


def test_a_bad_image_in_the_stream_ends_in_its_own_line(tmp_path):
    status, said = finish(start(with_images(tmp_path), {"def full": BROKEN}, batch_size=5))
    assert status == 1 and "InvalidArgument" not in said
    assert said.splitlines()[-1].endswith("MusicError: bad.png: cannot be read")


TWO_DEVICES = """
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           2 * [tf.config.LogicalDeviceConfiguration()])
"""


def test_two_devices_share_each_batch(tmp_path):
    mirrored = 'strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])'
    status, said = finish(start(
        with_images(tmp_path), {"run_dir: str": TWO_DEVICES, "strategy = ": mirrored},
        train_steps=3, batch_size=4))
    assert status == 0 and "stopped at step 3" in said, said
    assert np.isfinite(state_of(tmp_path)["log"]).all()


def test_what_it_prints_can_be_printed_on_windows():
    for cell in notebook_code.code_cells(NOTEBOOK):
        for call in ast.walk(ast.parse(cell.source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("print", "tqdm.write"):
                ast.unparse(call).encode("cp1252")


def test_another_run_does_not_resume_and_wrong_images_do_not_train(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    with pytest.raises(Exception, match=r"gan_state.npz: trained with another batch_size, "
                       r"latent_dim, networks; give the same parameters, or set resume to False"):
        run(tmp_path / "run", resume=True, latent_dim=6)
    with pytest.raises(Exception, match=r"100×300 pixels, not 106×300"):
        run(with_images(tmp_path, 2, rows=100))
