"""How well a recogniser tells people apart."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusionjax.evaluation.pictures import Pictures
from fusionjax.evaluation.recogniser import ATTRIBUTES, TYPICAL_BOX, Recogniser
from fusionjax.mini.people import TRAITS


@dataclass(frozen=True)
class Pairs:
    """Cosine distances between pictures of one person, and of two."""

    same: Float[np.ndarray, " pairs"]
    different: Float[np.ndarray, " pairs"]
    alike: Float[np.ndarray, " alike"]  # two people who differ in one trait


def make_pairs(
    recogniser: Recogniser, pictures: Pictures, style: str | None, seed: int = 0
) -> Pairs:
    """Pairs up the pictures of a split: every two of one person, and as many of two people.

    Args:
        recogniser: Measures the distances.
        pictures: The split.
        style: Only pictures of this style; None means all but line art.
        seed: Of the random pairs.

    Returns:
        The distances.
    """
    styles = pictures.labels["style"]
    if style is None:
        usable = np.flatnonzero(styles != ATTRIBUTES["style"].index("line art"))
    else:
        usable = np.flatnonzero(styles == ATTRIBUTES["style"].index(style))
    images, people = pictures.images[usable], pictures.people[usable]
    vectors = recogniser.embed(list(images), [TYPICAL_BOX] * len(images))
    traits = np.stack([pictures.labels[trait][usable] for trait in TRAITS], axis=-1)
    first, second = np.triu_indices(len(usable), k=1)
    distances = 1 - np.sum(vectors[first] * vectors[second], axis=-1)
    same = people[first] == people[second]
    differing = np.sum(traits[first] != traits[second], axis=-1)
    rng = np.random.default_rng(seed)
    different = rng.choice(np.flatnonzero(~same), int(same.sum()), replace=False)
    return Pairs(distances[same], distances[different], distances[~same & (differing == 1)])


def best_threshold(pairs: Pairs) -> float:
    """The distance that separates the pairs with the fewest mistakes."""
    candidates = np.sort(np.concatenate([pairs.same, pairs.different]))
    accuracies = [accuracy(pairs, float(threshold)) for threshold in candidates]
    best = np.flatnonzero(np.asarray(accuracies) == np.max(accuracies))
    return float(candidates[best[len(best) // 2]])


def accuracy(pairs: Pairs, threshold: float) -> float:
    """Verification accuracy: the mean share of right answers for one person and for two."""
    right = (pairs.same < threshold).mean(), (pairs.different >= threshold).mean()
    return float(np.mean(right))


def reading_accuracy(recogniser: Recogniser, pictures: Pictures) -> dict[str, float]:
    """The share of pictures whose attribute is read rightly, for each attribute."""
    read = recogniser.read(list(pictures.images))
    shares = {}
    for name, choices in ATTRIBUTES.items():
        labels = pictures.labels[name]
        right = [choices.index(row[name]) == label for row, label in zip(read, labels, strict=True)]
        shares[name] = float(np.mean(np.array(right)[labels >= 0]))
    return shares
