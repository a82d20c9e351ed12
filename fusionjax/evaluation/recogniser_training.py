"""How the recogniser and the attribute reader are trained, on drawn pictures of training people.

The face network learns a margin loss over all training people (ArcFace, arXiv 1801.07698); the
reader learns every attribute. Crops are shifted, scaled, blurred and overlapped by a neighbour, as
in pictures of several people. The threshold of "the same person" is chosen on validation people;
the figures are of test people. About ten minutes on two cores.

Axes: b batch, h w pixels, d features.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from fusionjax.errors import UserError
from fusionjax.evaluation.pictures import Pictures, load_pictures
from fusionjax.evaluation.recogniser import (
    ATTRIBUTES,
    CROP_PIXELS,
    FILE_NAME,
    READER_PIXELS,
    TYPICAL_BOX,
    FaceNet,
    ReaderNet,
    Recogniser,
    crop_face,
    embed,
    read_logits,
)
from fusionjax.evaluation.verification import accuracy, best_threshold, make_pairs, reading_accuracy
from fusionjax.mini.people import TRAITS
from fusionjax.pixels import to_unit


def augmented_crop(
    image: UInt8[np.ndarray, "h w 3"],
    other: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "64 64 3"]:
    """A crop of the head as it may be met: shifted, scaled, overlapped by a neighbour, blurred.

    Args:
        image: The picture.
        other: Another picture, the neighbour.
        rng: The source of randomness.

    Returns:
        The crop.
    """
    ymin, xmin, ymax, xmax = TYPICAL_BOX
    shift_y, shift_x = rng.uniform(-0.05, 0.05, 2)
    grow = rng.uniform(-0.04, 0.05)
    box = (
        ymin - grow + shift_y,
        xmin - grow + shift_x,
        ymax + grow + shift_y,
        xmax + grow + shift_x,
    )
    crop = crop_face(image, box)
    if rng.random() < 0.3:
        strip = int(rng.integers(3, CROP_PIXELS // 5))
        neighbour = crop_face(other, (ymin, 0, ymax, 1))
        if rng.random() < 0.5:
            crop[:, :strip] = neighbour[:, -strip:]
        else:
            crop[:, -strip:] = neighbour[:, :strip]
    if rng.random() < 0.4:
        small = int(rng.integers(36, CROP_PIXELS))
        crop = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
        crop = cv2.resize(crop, (CROP_PIXELS, CROP_PIXELS), interpolation=cv2.INTER_LINEAR)
    return roughened(crop, rng)


def roughened(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Slight blur, change of light, and noise, such as a generated picture has."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    values = image.astype(np.float32) * rng.uniform(0.95, 1.05, 3) + rng.uniform(-8, 8)
    values += rng.normal(0, rng.uniform(0, 6), values.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def margin_loss(
    embeddings: Float[Array, "b d"],
    centres: Float[Array, "people d"],
    people: Int[Array, " b"],
    margin: float = 0.3,
    scale: float = 24.0,
) -> Float[Array, " b"]:
    """ArcFace's loss: the own person's angle counts as larger by the margin.

    Args:
        embeddings: Unit vectors.
        centres: A vector for each person, of any length.
        people: Each picture's person.
        margin: In radians.
        scale: Of the cosines, before the softmax.

    Returns:
        The cross-entropy of each picture.
    """
    centres = centres / jnp.linalg.norm(centres, axis=-1, keepdims=True)
    cosines = embeddings @ centres.T
    own = jnp.take_along_axis(cosines, people[:, None], axis=1).clip(-0.999, 0.999)
    with_margin = jnp.cos(jnp.arccos(own) + margin)
    is_own = jax.nn.one_hot(people, len(centres))
    logits = scale * (cosines + is_own * (with_margin - own))
    return optax.softmax_cross_entropy_with_integer_labels(logits, people)


def known_loss(logits: Float[Array, "b choices"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """Mean cross-entropy over the pictures whose label is known (not -1)."""
    known = labels >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels.clip(0))
    return jnp.sum(each * known) / jnp.sum(known).clip(1)


def fit(
    loss: Callable[..., Float[Array, ""]],
    params: Any,
    batches: Iterator[Any],
    steps: int,
    learning_rate: float,
    report: Callable[[int, float], None],
) -> Any:
    """Trains with AdamW and a cosine schedule; the result is the average of the last weights."""
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, min(100, steps // 10), steps)
    optimizer = optax.adamw(schedule, weight_decay=0.02)

    @jax.jit
    def step(params: Any, state: Any, average: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.01)
        return params, state, average, value

    state, average = optimizer.init(params), params
    for number in range(steps):
        params, state, average, value = step(params, state, average, next(batches))
        if number % 100 == 99:
            report(number + 1, float(value))
    return average


def train_face(
    pictures: Pictures,
    steps: int,
    batch: int,
    seed: int,
    report: Callable[[int, float], None],
) -> Any:
    """Trains `FaceNet`; line art, which shows no colours, is left out.

    A person's centre is the sum of a vector for each of their traits, so that people who were never
    seen have one too.
    """
    rng = np.random.default_rng([seed, 0])
    usable = np.flatnonzero(pictures.labels["style"] != ATTRIBUTES["style"].index("line art"))

    def batches() -> Iterator[Any]:
        while True:
            chosen = rng.choice(usable, batch, replace=False)
            others = rng.choice(usable, batch)
            crops = [
                augmented_crop(pictures.images[index], pictures.images[other], rng)
                for index, other in zip(chosen, others, strict=True)
            ]
            yield to_unit(np.stack(crops)), pictures.people[chosen]

    # The traits of each person, by which their centre is put together.
    first = np.unique(pictures.people, return_index=True)[1]
    own = {trait: pictures.labels[trait][first] for trait in TRAITS}
    keys = jax.random.split(jax.random.key(seed), 1 + len(TRAITS))
    net = FaceNet()
    params = {
        "face": jax.jit(net.init)(keys[0], jnp.zeros((1, CROP_PIXELS, CROP_PIXELS, 3)))["params"],
        "traits": {
            trait: jax.random.normal(key, (len(choices), net.dim)) / net.dim**0.5
            for key, (trait, choices) in zip(keys[1:], TRAITS.items(), strict=True)
        },
    }

    def loss(params: Any, batch: Any) -> Float[Array, ""]:
        crops, people = batch
        centres = sum(params["traits"][trait][choices] for trait, choices in own.items())
        return jnp.mean(margin_loss(embed(params["face"], crops), centres, people))

    return fit(loss, params, batches(), steps, 2e-3, report)["face"]


def train_reader(
    pictures: Pictures,
    steps: int,
    batch: int,
    seed: int,
    report: Callable[[int, float], None],
    start: Any = None,
) -> Any:
    """Trains `ReaderNet` on whole pictures."""
    rng = np.random.default_rng([seed, 1])

    def batches() -> Iterator[Any]:
        while True:
            chosen = rng.choice(len(pictures.images), batch, replace=False)
            images = []
            for index in chosen:
                ymin, xmin, ymax, xmax = rng.uniform(-0.03, 0.03, 4).tolist()
                box = (ymin, xmin, ymax + 1, xmax + 1)
                whole = crop_face(pictures.images[index], box, READER_PIXELS)
                images.append(roughened(whole, rng))
            labels = {name: values[chosen] for name, values in pictures.labels.items()}
            yield to_unit(np.stack(images)), labels

    net = ReaderNet()
    image = jnp.zeros((1, READER_PIXELS, READER_PIXELS, 3))
    params = jax.jit(net.init)(jax.random.key(seed + 1), image)["params"]

    def loss(params: Any, batch: Any) -> Float[Array, ""]:
        images, labels = batch
        logits = read_logits(params, images)
        return jnp.mean(jnp.stack([known_loss(logits[name], labels[name]) for name in labels]))

    if start is not None:
        params = start
    rate = 2e-3 if start is None else 1e-3
    return fit(loss, params, batches(), steps, rate, report)


def train_recogniser(
    folder: str | Path,
    output: str | Path,
    *,
    steps: int = 2000,
    batch: int = 48,
    seed: int = 0,
    networks: Sequence[str] = ("face", "reader"),
    go_on: bool = False,
    report: Callable[[str, int, float], None] = lambda name, step, loss: None,
) -> dict[str, Any]:
    """Trains both networks, measures them, and writes `recogniser.safetensors` and `report.json`.

    Args:
        folder: A `mini_faces` dataset.
        output: The folder to write to.
        steps: Steps of each network.
        batch: Pictures a step.
        seed: Of the weights, the order and the changes to the pictures.
        networks: Which are trained; the other is taken from the output folder.
        go_on: Start from the reader in the output folder, at half the learning rate. Not for the
            face network: the centres that it learnt towards are not kept.
        report: Called with the network's name, the step and the loss.

    Returns:
        The report: verification accuracy, the threshold, and how well each attribute is read.

    Raises:
        UserError: If there is no such dataset, or the face network is to go on.
    """
    if go_on and "face" in networks:
        raise UserError(
            "the face network cannot go on from a file: the centres that it learnt towards are not "
            "in it; add --networks reader, or leave --go-on out"
        )
    train = load_pictures(folder, "train")
    path = Path(output) / FILE_NAME
    face: Any = {}
    reader: Any = {}
    if set(networks) != {"face", "reader"}:
        before = Recogniser.from_pretrained(path)
        face, reader = before.face_params, before.reader_params
    if "face" in networks:
        face = train_face(train, steps, batch, seed, lambda step, loss: report("face", step, loss))
    if "reader" in networks:
        start = reader if go_on else None
        reader = train_reader(
            train, steps, batch, seed, lambda step, loss: report("reader", step, loss), start
        )
    recogniser = Recogniser(face, reader, 0.5, {})
    threshold = best_threshold(make_pairs(recogniser, load_pictures(folder, "validation"), "plain"))
    test = load_pictures(folder, "test")
    plain, styled = make_pairs(recogniser, test, "plain"), make_pairs(recogniser, test, None)
    measured = {
        "training_people": len(train.identities),
        "test_people": len(test.identities),
        "threshold": threshold,
        "verification_accuracy": accuracy(plain, threshold),
        "verification_accuracy_with_styles": accuracy(styled, threshold),
        "told_apart_with_one_trait_different": (
            float((plain.alike >= threshold).mean()) if len(plain.alike) else None
        ),
        "distance_same_person": float(plain.same.mean()),
        "distance_different_people": float(plain.different.mean()),
        "attributes_read": reading_accuracy(recogniser, test),
    }
    Recogniser(face, reader, threshold, measured).save(path)
    (Path(output) / "report.json").write_text(json.dumps(measured, indent=2) + "\n")
    return measured
