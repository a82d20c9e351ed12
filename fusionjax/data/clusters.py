"""Which faces are one person's, where nobody says so."""

import numpy as np
from jaxtyping import Float, Int, Shaped

_BLOCK = 2048  # faces compared with all others at once
_MOST = 8_000  # faces that are compared each with each, in 0.3 GB
_CLOSER = 0.05  # by so much more alike must faces be that are too many


def clusters(likenesses: Shaped[np.ndarray, "n d"], similarity: float) -> Int[np.ndarray, " n"]:
    """Groups faces by average linkage: a group's faces are so similar to each other on average.

    Single pairs above the bound do not suffice: among very many faces there are always some of
    strangers, and they would chain people together.

    Args:
        likenesses: unit vectors.
        similarity: the bound on the mean cosine, from -1 to 1.

    Returns:
        Each face's group, numbered by where the group comes first.
    """
    vectors = np.asarray(likenesses, np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = np.zeros(len(vectors), np.int64)
    _divide(vectors, np.arange(len(vectors)), similarity, labels, similarity)
    _, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[inverse.reshape(-1)]  # type: ignore[no-any-return]


def _divide(
    vectors: Float[np.ndarray, "n d"],
    members: Int[np.ndarray, " m"],
    similarity: float,
    labels: Int[np.ndarray, " n"],
    bound: float,
) -> None:
    """Writes the labels of some faces: first who is linked at all, then within each such group."""
    from scipy.cluster.hierarchy import fcluster, linkage

    for group in _linked(vectors, members, bound):
        if len(group) > _MOST and bound < 1:
            _divide(vectors, group, similarity, labels, bound + _CLOSER)
            continue
        own = np.zeros(1, np.int64)
        if len(group) > 1:
            tree = linkage(vectors[group], "average", "cosine")
            own = fcluster(tree, 1 - similarity, "distance")
        labels[group] = group[0] * (len(vectors) + 1) + own


def _linked(
    vectors: Float[np.ndarray, "n d"], members: Int[np.ndarray, " m"], bound: float
) -> list[Int[np.ndarray, " k"]]:
    """The groups within which a chain of pairs above the bound leads from each to each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = [], []
    own = vectors[members]
    for start in range(0, len(own), _BLOCK):
        first, second = np.nonzero(own[start : start + _BLOCK] @ own.T >= bound)
        rows.append(first + start)
        columns.append(second)
    first, second = np.concatenate(rows), np.concatenate(columns)
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(own), len(own)))
    _, labels = connected_components(links, directed=False)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))[:-1]
    return np.split(members[order], ends)
