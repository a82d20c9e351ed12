"""What the tests of the page share: a world of files, a started server, a scene repeated."""

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests import tiny

ROOT = Path(__file__).parents[1]


def write_world(folder):
    """A base model and an adapter as files, a folder of saved people, and photos beside them."""
    tiny.write_tiny(folder)
    (folder / "people").mkdir()
    for name, seed in (("ann", 1), ("ben", 2)):
        Image.fromarray(tiny.photo(seed)).save(folder / "people" / f"{name}.png")
    for name, seed in (("me", 3), ("you", 5)):
        Image.fromarray(tiny.photo(seed)).save(folder / f"{name}.png")
    Image.fromarray(tiny.photo(4, 200)).save(folder / "wall.png")  # nobody's face
    return folder


def words(world):
    """How `fusionjax web` is started for it."""
    return ["--fusion", world / "fusion.safetensors", "--cache", world / "cache",
            "--people", world / "people"]  # fmt: skip


def server(words, folder):
    """Starts the command, and waits for its address; its process is ended by the caller."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fusionjax", "web", "--port", str(port), *map(str, words)],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    line = process.stdout.readline()
    assert line == f"the page is at http://127.0.0.1:{port}/\n", (folder / "log").read_text()
    return process, f"http://127.0.0.1:{port}"


def unpacked(archive, folder):
    """The scene file of a downloaded scene."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "scene.yaml"


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)
