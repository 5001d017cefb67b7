"""Samples and training images a second: notebook 03's networks and the original project's.

    python tests/benchmarks/bench_gan.py

The original's generator is rebuilt from what is known of its cost: 367 GMAC a sample, 352 of them
in two wide convolutions at full size. How it divides its channels is not known; ours is one way to
reach that cost. Its discriminator is taken as five strided convolutions. Both are measured in one
run, on this machine, in 32 bits, each with the batch that suits it.
"""

import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import notebook_code

WIDE = 384


def original_generator():
    """14 -> 106x300x1 with one dense, three convolutional and three upsampling layers."""
    z = keras.Input([14])
    x = layers.LeakyReLU()(layers.Dense(53 * 75 * 97)(z))
    x = layers.UpSampling2D((1, 2))(layers.Reshape([53, 75, 97])(x))
    x = layers.LeakyReLU()(layers.Conv2D(2 * WIDE, 5, padding="same")(x))  # at 53 x 150
    x = layers.UpSampling2D((2, 1))(x)
    x = layers.UpSampling2D((1, 2))(x)
    x = layers.LeakyReLU()(layers.Conv2D(WIDE, 5, padding="same")(x))  # at 106 x 300
    x = layers.Conv2D(WIDE, 5, padding="same")(x)
    return keras.Model(z, ops.tanh(ops.mean(x, axis=-1, keepdims=True)))


def original_discriminator():
    image = x = keras.Input([106, 300, 1])
    for filters in (64, 128, 256, 512, 512):
        x = layers.LeakyReLU()(layers.Conv2D(filters, 5, 2, padding="same")(x))
    return keras.Model(image, layers.Dense(1)(layers.Flatten()(x)))


def notebook_game():
    """Notebook 03's two networks and a round of its game, as its cells define them."""
    path = ROOT / "notebooks" / "03_train_gan_tf.ipynb"
    names = notebook_code.definitions(path, {
        "latent_dim": 14, "seed": 0, "penalty_weight": 1.0, "start_from": "",
        "precision": "float32", "strategy": tf.distribute.get_strategy(),
        "rolls": np.full([1, 106, 300], 180, np.uint8)})
    cells = notebook_code.code_cells(path)
    exec(next(c.source for c in cells if "adam_g.build(generator" in c.source), names)
    return names


def macs(model):
    """Multiply-accumulates of one image in the dense and convolutional layers."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        elif isinstance(layer, layers.Dense):
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
    return total


def per_second(step, images, seconds=15):
    """Images a second over some calls; the first, which compiles, counts only if it is long."""
    start_s = time.perf_counter()
    step()
    if (took_s := time.perf_counter() - start_s) > 4 * seconds:
        return images / took_s
    start_s, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start_s < seconds:
        step()
        calls += 1
    return images * calls / (time.perf_counter() - start_s)


def plain_step(generator, discriminator, batch):
    """A gradient step of each network, without penalty or augmentation."""
    real = tf.random.uniform([batch, 106, 300, 1])
    optimizers = [keras.optimizers.Adam(2e-4) for _ in range(2)]
    for optimizer, network in zip(optimizers, (generator, discriminator), strict=True):
        optimizer.build(network.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            fake = generator(tf.random.normal([batch, 14]), training=True)
            refused = discriminator(fake, training=True)
            real_loss = tf.nn.softplus(-discriminator(real, training=True))
            losses = (tf.reduce_mean(tf.nn.softplus(-refused)),
                      tf.reduce_mean(real_loss + tf.nn.softplus(refused)))
        for optimizer, network, loss in zip(optimizers, (generator, discriminator), losses,
                                            strict=True):
            weights = network.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)

    return step


def main():
    tf.config.optimizer.set_experimental_options({"remapping": False})
    game = notebook_game()
    ours, theirs, learn = game["generator"], original_generator(), game["learn"]
    rolls = tf.cast(tf.random.uniform([16, 106, 300], 0, 255, tf.int32), tf.uint8)
    generate, generate_theirs = tf.function(ours), tf.function(theirs)
    z = tf.random.normal([16, 14])
    print(f"{'':36s}{'ours':>10s}{'original':>10s}{'ratio':>10s}")
    for name, own, other in (
            ("multiply-accumulates a sample, 1e9", lambda: macs(ours) / 1e9,
             lambda: macs(theirs) / 1e9),
            ("samples a second", lambda: per_second(lambda: generate(z), 16),
             lambda: per_second(lambda: generate_theirs(z[:1]), 1)),
            ("training images a second", lambda: per_second(lambda: learn(rolls), 16),
             lambda: per_second(plain_step(theirs, original_discriminator(), 1), 1))):
        print(f"{name:36s}{(a := own()):10.3g}", end="", flush=True)
        print(f"{(b := other()):10.3g}{a / b:10.3g}", flush=True)


if __name__ == "__main__":
    main()
