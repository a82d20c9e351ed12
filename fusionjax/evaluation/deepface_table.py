"""The paper's Table 1: VGG-Face, Facenet512 and ArcFace, run by deepface, and its expressions.

deepface runs on TensorFlow, PyTorch or onnxruntime, whichever is installed, in this order; each
has its own files of weights. They are looked for first, so that nothing is downloaded.
"""

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.judges import Family, Recogniser, Vectors
from fusionjax.face_detection import Face

BOUNDS = {"VGG-Face": 0.68, "Facenet512": 0.30, "ArcFace": 0.68}
"""deepface's own, of cosine distance (its `config/threshold.py`)."""
DETECTOR, ALIGN = "opencv", True
"""deepface's defaults; the paper does not tell its own."""
_WEIGHTS = {
    "VGG-Face": "vgg_face_weights",
    "Facenet512": "facenet512_weights",
    "ArcFace": "arcface_weights",
    "Emotion": "facial_expression_model_weights",
}
_ENDINGS = {"tensorflow": ".h5", "pytorch": ".pth", "onnx": ".onnx"}
_CASCADES = ("haarcascade_frontalface_default.xml", "haarcascade_eye.xml")
_SOURCE = "https://github.com/serengil/deepface_models/releases"


def open_family() -> Family:
    """Opens the three, and what reads expressions.

    Raises:
        UserError: if deepface is not installed, or lacks files.
    """
    if importlib.util.find_spec("deepface") is None:
        raise UserError("--deepface: not installed; pip install 'fusionjax[tables]'")
    deepface, engine = _deepface()
    missing = [path for path in weights(engine) if not path.is_file()]
    if missing:
        raise UserError(
            f"--deepface: {', '.join(path.name for path in missing)} (for {engine}) not found in "
            f"{shortened(str(missing[0].parent), 150)}; put them there, from {_SOURCE}, or set "
            "DEEPFACE_HOME to the folder that holds .deepface/weights"
        )
    if engine == "tensorflow":
        import tensorflow

        tensorflow.config.set_visible_devices([], "GPU")  # it would take all memory from JAX
    for name in _WEIGHTS:
        task = "facial_attribute" if name == "Emotion" else "facial_recognition"
        try:
            deepface.build_model(name, task)
        except Exception as error:  # whatever the engine says of a damaged file
            cause = error.__cause__ or error
            raise UserError(
                f"--deepface: the weights of {name} in {weights(engine)[0].parent} cannot be used "
                f"({shortened(str(cause), 150)}); copy them again"
            ) from None
    recognisers = tuple(Recogniser(name, bound) for name, bound in BOUNDS.items())
    bounds = ", ".join(f"{bound:.2f}" for bound in BOUNDS.values())
    version = importlib.metadata.version("deepface")
    about = (
        f"{', '.join(BOUNDS)}: cosine distance through deepface {version} on {engine}; verified up "
        f"to {bounds}, deepface's own bounds. Its detector {DETECTOR} finds faces, "
        f"{'aligned' if ALIGN else 'not aligned'} by their eyes; of several the nearest two count, "
        "as in `DeepFace.verify`."
    )

    def see(image: Image.Image, faces: Sequence[Face]) -> Mapping[str, Vectors]:
        crops = _faces(deepface, image)
        if not crops:
            return {}
        return {
            name: np.array([_vector(deepface, crop, name) for crop in crops], np.float64)
            for name in BOUNDS
        }

    return Family(recognisers, about, see, lambda image: _expression(deepface, image))


def weights(engine: str) -> list[Path]:
    """Where deepface looks for its files.

    Args:
        engine: what it runs on: tensorflow, pytorch or onnx.
    """
    import cv2
    from deepface.commons import folder_utils

    folder = Path(folder_utils.get_deepface_home()) / ".deepface" / "weights"
    carried = Path(cv2.__file__).parent / "data"  # OpenCV 5 carries them no more
    cascades = [name for name in _CASCADES if not (carried / name).is_file()]
    names = [f"{stem}{_ENDINGS[engine]}" for stem in _WEIGHTS.values()] + cascades
    return [folder / name for name in names]


def _deepface() -> tuple[Any, str]:
    """Its module and what it runs on; it would silence all warnings of the process."""
    with warnings.catch_warnings():
        try:
            from deepface import DeepFace
        except (ImportError, ValueError) as error:  # it lacks what it runs on
            raise UserError(
                f"--deepface: it does not start ({shortened(str(error), 250)}); "
                "pip install 'fusionjax[tables]'"
            ) from None
    return DeepFace, str(DeepFace.backend_engine)


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _faces(deepface: Any, image: Image.Image) -> list[np.ndarray]:
    """The faces' crops in its own form; none if it finds none."""
    from deepface.modules.exceptions import FaceNotDetected

    try:
        found = deepface.extract_faces(_bgr(image), detector_backend=DETECTOR, align=ALIGN)
    except FaceNotDetected:
        return []
    return [each["face"][:, :, ::-1] for each in found]


def _vector(deepface: Any, crop: np.ndarray, name: str) -> list[float]:
    made = deepface.represent(crop, model_name=name, detector_backend="skip", align=ALIGN)
    return made[0]["embedding"]  # type: ignore[no-any-return]


def _expression(deepface: Any, image: Image.Image) -> Float[np.ndarray, " e"] | None:
    """Shares of anger, disgust, fear, joy, sadness, surprise and none in the largest face."""
    from deepface.modules.exceptions import FaceNotDetected

    try:
        found = deepface.analyze(
            _bgr(image), ["emotion"], detector_backend=DETECTOR, align=ALIGN, silent=True
        )
    except FaceNotDetected:
        return None
    largest = max(found, key=lambda each: each["region"]["w"] * each["region"]["h"])
    return np.array(list(largest["emotion"].values()), np.float64) / 100
