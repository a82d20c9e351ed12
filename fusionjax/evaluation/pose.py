"""Which way a head is turned, from the detector's five landmarks.

A face of five points is turned, scaled and moved until its picture comes nearest to the landmarks,
as scaled orthographic projection sees it (DeMenthon and Davis, "Model-based object pose in 25 lines
of code", 1995, its first step): least squares for the two rows that make x and y, then the nearest
rows that are those of a rotation. Nothing of it depends on how a picture was cut.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.face_detection import Face, detect

_AROUND = 2.5  # widths of the face's box that are looked at
_SIDE = 320  # pixels of that
_LOOKS, _UPRIGHT = 6, 0.5  # at most, and from how many degrees on it is upright

# In millimetres: x to the picture's right, y down, z into it; the person's right eye, left eye, tip
# of the nose, right and left corner of the mouth. As seen from the front they lie where OpenCV's
# alignment for SFace brings them to, with eyes 63 mm apart (Dodgson, "Variation and extrema of
# human interpupillary distance", 2004). How far nose and mouth come forward is a round number.
FACE = np.array(
    [[-31.5, 0, 0], [31.5, 0, 0], [0, 36, -30], [-26, 72.7, -5], [26, 72.7, -5]], np.float64
)


def angles(landmarks: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, "3"]:
    """Yaw, pitch and roll in degrees.

    Rotations about z, then y, then x make the head's: turning a picture changes roll alone.

    Args:
        landmarks: x and y in pixels, in the order of `FACE`.

    Returns:
        Yaw is positive if the face turns to the picture's right, pitch if it looks up, roll if the
        head is turned clockwise.
    """
    model, seen = FACE - FACE.mean(0), landmarks - landmarks.mean(0)
    rows = np.linalg.lstsq(model, seen, rcond=None)[0].T
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    x, y = left @ right
    z = np.cross(x, y)
    found = np.arcsin(np.clip(z[0], -1, 1)), -np.arctan2(z[1], z[2]), np.arctan2(y[0], x[0])
    return np.rad2deg(np.array(found, np.float64))


def pose(image: Image.Image, face: Face) -> Float[np.ndarray, "3"]:
    """A found face's yaw, pitch and roll, see `angles`.

    YuNet draws a tilted face's landmarks too upright: of 15 degrees it shows 9. So the face is
    turned upright by what was found and looked at again, until nothing is left to turn.

    Args:
        image: in which `detect` found it.
        face: the face.
    """
    found = _angles(face)
    roll = found[2]
    left, top, width, height = face.box
    x, y, half = left + width / 2, top + height / 2, _AROUND * width / 2
    around = round(x - half), round(y - half), round(x + half), round(y + half)
    cut = image.convert("RGB").crop(around)
    cut = cut.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    for _ in range(_LOOKS):
        if not (again := detect(cut.rotate(roll, Image.Resampling.BILINEAR))):
            break
        found = _angles(again[0])
        roll += found[2]
        if abs(found[2]) < _UPRIGHT:
            break
    return np.array([*found[:2], roll])


def _angles(face: Face) -> Float[np.ndarray, "3"]:
    return angles(face.found[4:14].reshape(5, 2).astype(np.float64))


def turned(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """How far two heads' angles are apart, in degrees from 0 to 180."""
    return np.abs((a - b + 180) % 360 - 180)
