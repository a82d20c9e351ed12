"""Who else judges real people: dlib's network, whose weights come inside a package.

They are in the public domain (CC0), and lie in the package face_recognition_models, of which
nothing is imported.
"""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.evaluation import deepface_table
from fusionjax.evaluation.judges import Family, Judges, Recogniser, Vectors
from fusionjax.face_detection import Face

DLIB = Recogniser("dlib", 0.6, euclidean=True)
_PACKAGE = "face_recognition_models"
_NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
_LANDMARKS = "shape_predictor_5_face_landmarks.dat"


def open_judges(deepface: bool, *, closely: bool = True) -> Judges:
    """Finds out who is there.

    Args:
        deepface: whether the paper's Table 1 is wanted.
        closely: see `Judges`.

    Raises:
        UserError: if it is, and deepface or weights of it are not there.
    """
    families, absent = [], []
    if importlib.util.find_spec("dlib") is None or _models() is None:
        absent.append(
            "dlib's recogniser is not installed, and SFace judges alone: "
            "`pip install 'fusionjax[tables]'` adds it."
        )
    else:
        families.append(_dlib_family())
    if deepface:
        families.append(deepface_table.open_family())
    else:
        absent.append(
            f"{', '.join(deepface_table.BOUNDS)} (the paper's Table 1)"
            f"{' and expressions are' if closely else ' are'} not measured; `--deepface` does, "
            "through the package deepface and with weights that you have."
        )
    return Judges(tuple(families), tuple(absent), closely)


def _dlib_family() -> Family:
    about = (
        "dlib: Euclidean distance by its ResNet; verified up to 0.6, dlib's own bound (its example "
        "face_recognition.py; on LFW 99.38 % right). YuNet finds the face, dlib's five landmarks "
        "align it."
    )
    return Family((DLIB,), about, _see_by_dlib)


def _see_by_dlib(image: Image.Image, faces: Sequence[Face]) -> Mapping[str, Vectors]:
    if not faces:
        return {}
    dlib, landmarks, network = _dlib()
    pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")))
    vectors = []
    for face in faces:
        left, top, width, height = face.box
        box = dlib.rectangle(left, top, left + width, top + height)
        vectors.append(network.compute_face_descriptor(pixels, landmarks(pixels, box)))
    return {DLIB.name: np.array(vectors, np.float64)}


@functools.cache
def _dlib() -> tuple[Any, Any, Any]:
    import dlib

    models = _models()
    assert models is not None
    landmarks = dlib.shape_predictor(str(models / _LANDMARKS))
    return dlib, landmarks, dlib.face_recognition_model_v1(str(models / _NETWORK))


def _models() -> Path | None:
    """Where the weights are; importing their package would ask for another that is gone."""
    package = importlib.util.find_spec(_PACKAGE)
    for folder in (package and package.submodule_search_locations) or []:
        models = Path(folder) / "models"
        if all((models / name).is_file() for name in (_NETWORK, _LANDMARKS)):
            return models
    return None
