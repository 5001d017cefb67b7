"""Notebook 03: the two networks, the rules that end the game, and a small training, resumed."""

import os
import shutil
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import notebook_code
import numpy as np
import pytest
from notebook_code import finish

from real_midi import ROOT
from utils import metrics, pianoroll, training

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


def test_augment_transposes_within_the_keyboard_and_shifts_by_beats(lesson):
    """The lowest note never comes back as the highest, and beats stay beats at the boundary."""
    image = np.zeros((1, 106, 300, 1), np.float32)
    image[0, 0], image[0, -1, ::4] = 0.25, 0.75  # a low drone, a high note on every beat
    moved = np.stack([lesson["augment"](image)[0, ..., 0] for _ in range(40)])
    _, low, _ = np.nonzero(moved == 0.25)
    _, high, beats = np.nonzero(moved == 0.75)
    assert low.max() <= 6 and high.min() >= 99 and not (beats % 4).any()
    assert len({*low, *high}) > 5, "it moves"


def test_balance_sharpens_the_discriminator_and_ends_the_game_only_after_that(lesson, monkeypatch):
    import keras

    p_real, sharpened_at, over = [], [], False  # of the training, only its probabilities matter
    run = SimpleNamespace(step=0, column=lambda name: (
        np.array(p_real) if name == "p_real" else 1 - np.array(p_real)))
    progress, r1_weight = {"sharpness": 1, "sharpened_at": 0}, keras.Variable(0.3)
    for name, value in {"run": run, "rolls": music(8), "average": None, "fixed_z": None,
                        "r1_weight": r1_weight, "progress": progress,
                        "generate": lambda *_: music(8, seed=1) * (run.step > 400)}.items():
        monkeypatch.setitem(lesson, name, value)  # silent samples at first: no equilibrium at all
    while run.step < 3000 and not over:
        p_real += [0.52] * 50
        run.step, before = len(p_real), progress["sharpness"]
        over = lesson["game_over"]()
        sharpened_at += [run.step] * (progress["sharpness"] > before)
    assert sharpened_at == [450, 650, 850], "each gets two hundred steps"
    assert over and run.step == 1050 and float(r1_weight) == pytest.approx(0.3 / 8)
    for _ in range(2):  # a discriminator that is never wrong teaches nothing
        p_real += [0.9] * 100
        run.step = len(p_real)
        assert not lesson["game_over"]()
    assert float(r1_weight) == pytest.approx(0.3 / 2), "doubled twice"


def test_statistics_are_compared_with_the_quantiles_of_the_data(lesson, monkeypatch):
    import tensorflow as tf

    rolls = np.concatenate([music(1, seed, notes=50 + 5 * seed) for seed in range(64)])

    def planes(some):
        return lesson["read_planes"](lesson["to_network"](some))

    table = lesson["statistics_of"](planes(rolls)).numpy()
    for name, value in {"data_statistics": np.sort(table, axis=0),
                        "data_std": table.std(axis=0) + 1e-3}.items():
        monkeypatch.setitem(lesson, name, value)
    loss = lesson["quantile_loss"]
    assert table.shape == (64, 31) and np.isfinite(table).all()
    assert loss(planes(rolls[::-1])) < 1e-3, "the data themselves, in any order"
    some, alike, dense = rolls[::8], np.repeat(rolls[31:32], 8, axis=0), music(8, 1, notes=900)
    assert loss(planes(some)) < 0.5 * loss(planes(alike)) < loss(planes(dense))
    silent = tf.Variable(tf.zeros([8, 106, 300, 3]))
    with tf.GradientTape() as tape:
        apart = loss(silent)
    slope = tape.gradient(apart, silent).numpy()
    assert np.isfinite(slope).all() and (slope[..., 1] != 0).any(), "silence can be left"


def test_a_mapping_begins_as_the_identity_and_never_changes_where(lesson):
    mapping, z = lesson["build_mapping"](), np.random.default_rng(0).normal(size=(5, 14))
    np.testing.assert_allclose(mapping.predict(z, verbose=0), z, atol=1e-6)
    mapping.set_weights([weight + 0.1 for weight in mapping.get_weights()])
    moved = mapping.predict(z, verbose=0)
    np.testing.assert_allclose(moved[:, :4], z[:, :4], atol=1e-6)
    assert (np.abs(moved[:, 4:] - z[:, 4:]) > 1e-3).all()


def test_a_mapping_brings_what_is_predicted_near_to_the_data(lesson, monkeypatch):
    """Features that are too high and vary too little, as far as the numbers can tell them."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    data, far = rng.standard_normal((2000, 17)), 1 + 0.5 * rng.standard_normal((2000, 17))
    covariance = np.cov(metrics.standardise(data, data).T).astype("float32")
    monkeypatch.setitem(lesson, "covariance", covariance)
    monkeypatch.setitem(lesson, "half_power", metrics.square_root(covariance))
    table = metrics.standardise(data, far).astype("float32")
    assert float(lesson["frechet"](table)) == pytest.approx(metrics.frechet(data, far), rel=0.05)

    mix = rng.standard_normal((10, 17)).astype("float32") / 10**0.5

    def predictor(given):
        return 1 + 0.5 * given[:, 3:] @ mix

    mapping = lesson["fit_mapping"](predictor, tf.zeros([1, 17]), steps=200)
    z = rng.standard_normal((2000, 14)).astype("float32")
    before, after = (float(lesson["frechet"](predictor(x[:, 1:]))) for x in (z, mapping(z)))
    assert after < 0.7 * before, (before, after)


def test_a_predictor_learns_and_its_errors_are_those_on_pieces_that_it_has_not_seen(
        lesson, monkeypatch):
    rng = np.random.default_rng(0)
    given, mix = rng.standard_normal((900, 13)), rng.standard_normal((13, 17)) / 13**0.5
    found = (given @ mix).astype("float32")
    monkeypatch.setitem(lesson, "mapping_pieces", 800)
    predictor, errors = lesson["fit_predictor"](given, found)
    assert errors.shape == (101, 17) and np.std(errors) < 0.4
    np.testing.assert_allclose(
        errors, found[-101:] - predictor.predict(given[-101:], verbose=0), atol=1e-5)
    found[-101:] += 100  # what it has not seen cannot change what it predicts
    assert np.mean(lesson["fit_predictor"](given, found)[1]) == pytest.approx(100, abs=1)


def test_faults_are_said_in_words_with_what_to_try(lesson):
    assert lesson["faults"](music(8, seed=1), music(8)) == []
    late, twins, placed = music(8, seed=2), music(8, seed=3), music(8, seed=4)
    late[:, :, :75] = 0
    twins[5] = twins[2]
    placed[:, 40:50, 100:110] = 200
    for samples, word in (
            (0 * late, "silent"), (np.repeat(music(1), 8, axis=0), "alike"), (late, "quarter"),
            (np.random.default_rng(0).choice(np.uint8([0, 200]), late.shape), "noise"),
            (twins, "two of them are alike"), (placed, "same places")):
        found = lesson["faults"](samples, music(8))
        assert any(word in fault for fault in found), (word, found)
        assert all(": " in fault for fault in found), "each says what to try"


def with_images(folder):
    """The folder of a run, with three images and nothing trained."""
    for split in ("train", "valid"):
        for i, roll in enumerate(music(3)):
            pianoroll.save_png(pianoroll.PianoRoll(roll, 21),
                               folder / "images" / "gan" / split / f"{i}.png")
    return folder


def run(folder, after=None, until="run.steps()", **parameters):
    """Run the notebook up to the end of its training, without its toys: exit status and output."""
    return finish(notebook_code.start(
        NOTEBOOK, folder, until, {"run_dir": str(folder), "batch_size": 2} | parameters,
        after=after, skipped=lambda cell: "show.show_figure(" in cell.source or (
            "runs.items()" in cell.source)))


def state_of(run_dir):
    return training.read_arrays(run_dir / "models" / "gan_state.npz")


def log_of(run_dir):
    return (run_dir / "models" / "gan_log.csv").read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the whole notebook, whose batch of five holds more than its three images."""
    run_dir = with_images(tmp_path_factory.mktemp("gan"))
    status, said = run(run_dir, until="reloaded =", train_steps=3, batch_size=5, mapping_pieces=0)
    assert status == 0 and "stopped at step 3: train_steps are done" in said, said
    return run_dir


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
    status, said = run(with_images(tmp_path), {"run.begin(": CTRL_C}, train_steps=500)
    assert status == 1 and "MusicError: stopped; set resume to True to go on" in said
    assert state_of(tmp_path)["step"] == 2
    before = log_of(tmp_path)
    assert before[0] == ("step,p_real,p_fake,discriminator_loss,penalty,generator_loss,"
                         "quantile_loss,pictures_per_s")
    status, said = run(tmp_path, {"run.begin(": RESTORED}, train_steps=3, resume=True)
    assert status == 0 and "steps done: 2 · to do: 1" in said and "restored: True True" in said
    assert log_of(tmp_path)[:3] == before and len(log_of(tmp_path)) == 4


TAKEN = """
saved = [keras.saving.load_model(Path(start_from) / f"gan_{network.name}.keras")
         for network in (generator, discriminator)]
pairs = (generator, saved[0].get_layer("generator")), (discriminator, saved[1])
print("taken over:", *[all(np.array_equal(ours, theirs) for ours, theirs in zip(
    network.get_weights(), trained.get_weights(), strict=True)) for network, trained in pairs])
"""
TWO_DEVICES = """
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           2 * [tf.config.LogicalDeviceConfiguration()])
"""


def test_a_training_starts_from_trained_networks_and_two_devices_share_each_batch(
        trained, tmp_path):
    mirrored = 'strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])'
    status, said = run(
        with_images(tmp_path), {"run_dir: str": TWO_DEVICES, "strategy = ": mirrored,
                                "take_over(discriminator)": TAKEN},
        start_from=str(trained / "models"), train_steps=2)
    assert status == 0 and "taken over: True True" in said and "stopped at step 2" in said, said
    assert np.isfinite(state_of(tmp_path)["log"]).all()
    said = run(tmp_path, start_from=str(trained / "models"), latent_dim=6)[1].splitlines()[-1]
    assert "MusicError: " in said and "gan_generator.keras: no generator of this notebook" in said


def test_a_generator_without_a_mapping_is_taken_over_too(lesson, monkeypatch, tmp_path):
    """As notebook 03 saved it before it had a mapping."""
    former, generator = lesson["build_generator"](), lesson["build_generator"]()
    former.save(tmp_path / "gan_generator.keras")
    monkeypatch.setitem(lesson, "start_from", str(tmp_path))
    monkeypatch.setitem(lesson, "Path", Path)  # which the set-up imports
    pairs = list(zip(former.get_weights(), generator.get_weights(), strict=True))
    assert not all(np.array_equal(theirs, ours) for theirs, ours in pairs)
    lesson["take_over"](generator)
    for theirs, ours in zip(former.get_weights(), generator.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, ours)


BROKEN = """
def broken(*_, **__):
    yield rolls[:2]
    raise files.MusicError("bad.png: cannot be read")

corpus.stream_rolls = broken
"""


@pytest.mark.parametrize(("given", "after", "line"), [
    ({"resume": True, "latent_dim": 6}, {}, "gan_state.npz: trained with another batch_size, "
     "latent_dim, networks; give the same parameters, or set resume to False"),
    ({"batch_size": 5}, {"def full": BROKEN}, "MusicError: bad.png: cannot be read")])
def test_what_does_not_fit_is_refused_in_one_line(trained, tmp_path, given, after, line):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    status, said = run(tmp_path, after, **given)
    assert status == 1 and said.splitlines()[-1].endswith(line), said
