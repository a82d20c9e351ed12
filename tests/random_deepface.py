"""Fills DEEPFACE_HOME with random weights of deepface's own networks, under its own names.

    python tests/random_deepface.py tensorflow

deepface builds each network, and where it would look for a file it is given the name it asked for;
where it would load, it saves. For onnxruntime, which cannot make networks, small ones of the same
inputs and outputs are written.
"""

import os
import sys
from pathlib import Path

ENGINE = sys.argv[1]
os.environ["DEEPFACE_BACKEND_ENGINE"] = ENGINE

from deepface import DeepFace  # noqa: E402
from deepface.commons import folder_utils, weight_utils  # noqa: E402

FOLDER = Path(folder_utils.get_deepface_home()) / ".deepface" / "weights"
NAMES = ("VGG-Face", "Facenet512", "ArcFace", "Emotion")
SHAPES = {  # of onnx files: the side of the picture, its channels, the features
    "vgg_face": (224, 3, 4096), "facenet512": (160, 3, 512), "arcface": (112, 3, 512),
    "facial_expression": (48, 1, 7),
}  # fmt: skip


def path_of(file_name, *args, **kwargs):
    print(file_name)
    path = FOLDER / file_name
    if ENGINE == "onnx":
        write_onnx(path)
    return str(path)


def save(model, weight_file):
    if ENGINE == "tensorflow":
        model.save_weights(weight_file)
    else:
        import torch

        torch.save(model.state_dict(), weight_file)
        model.eval()
    return model


def write_onnx(path):
    """The mean of each of 8 × 8 patches, times a random matrix; shares for expressions."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, channels, features = next(s for n, s in SHAPES.items() if path.name.startswith(n))
    matrix = np.random.default_rng(side).normal(size=(channels * 64, features)).astype(np.float32)
    patch = side // 8
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["t"], ["p"], kernel_shape=[patch] * 2, strides=[patch] * 2
        ),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y" if channels == 3 else "z"]),
    ]
    if channels == 1:
        nodes += [helper.make_node("Softmax", ["z"], ["y"])]
    shape = ["n", side, side, channels]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "random", [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, ["n", features])], [numpy_helper.from_array(matrix, "m")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


weight_utils.download_weights_if_necessary = path_of
if ENGINE != "onnx":
    weight_utils.load_model_weights = save
for name in NAMES:
    task = "facial_attribute" if name == "Emotion" else "facial_recognition"
    if ENGINE == "pytorch":
        from deepface.modules import modeling

        module = sys.modules[modeling.get_model_class(task, name).__module__]
        module.load_model_weights = save
    DeepFace.build_model(name, task)
