"""39,700 broken inputs, whatever the border: nothing comes out but success or our error.

Each case is a valid document or file in which something was replaced, left out, added, cut off or
flipped. It may take 20 seconds, and all of a kind a gigabyte; it says what is wrong on one line of
at most 500 characters, writes nothing but where it was told to, and starts no other program. A case
is made from its number, so they are the same at every run: `run(Random(number))`.
"""

import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax.serialization import msgpack_serialize
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from fusionjax.__main__ import main as fusionjax_main
from fusionjax.command import run_command
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError
from fusionjax.identity import Identity
from fusionjax.interop import configs, lora
from fusionjax.interop.adapter_file import load_adapter_file, save_adapter
from fusionjax.interop.flax_file import FlaxFile
from fusionjax.interop.sources import open_base
from fusionjax.interop.tokenizer import load_tokenizer
from fusionjax.models import controlnet
from fusionjax.models.checkpoint import Checkpoints, DamagedCheckpoint
from fusionjax.options import FusionOptions
from fusionjax.photos import prepare_photo, read_photo
from fusionjax.safetensors_file import SafetensorsFile
from sample.__main__ import main as sample_main
from sample.formats import read_picture, read_requests, read_scene
from sample.job import Job
from sample.options import parse
from tests import tiny
from tests.checkpoint_writer import state_of
from train.main import read_config

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MOST_BYTES = 10**9
MOST_SECONDS = 20
LONGEST = 500


# --- what a case may do ---------------------------------------------------------------------------

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
watched: dict[str, list[str]] = {}  # while a case runs: where it may write, what it did wrong


def watch(event, arguments):
    """An audit hook: it hears of every file that Python opens, and cannot be taken out again."""
    if not watched:
        return
    if event in FORBIDDEN:
        watched["wrong"].append(f"{event} {arguments[:2]}")
    elif event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITES):
        path = arguments[0]
        if isinstance(path, int) or event == "os.link":
            return
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # named from its open folder
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(tuple(watched["allowed"])):
            watched["wrong"].append(f"{event} {path!r}")


sys.addaudithook(watch)


@contextlib.contextmanager
def guarded(*allowed):
    """Runs a case, out of which nothing but our error may come."""
    watched["allowed"] = [*map(str, allowed), "/dev/null", "/dev/tty", "/tmp/tmp"]
    watched["wrong"] = []
    try:
        yield
    except UserError as error:
        message = str(error)
        assert message.strip()
        assert len(message) <= LONGEST
        assert message.isprintable()
    finally:
        wrong = watched["wrong"]
        watched.clear()
    assert not wrong, wrong[:3]


def fuzz(count, run):
    """Runs so many cases, and tells of the first five that fail."""
    failures = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        began = time.monotonic()
        try:
            run(random.Random(number))
        except Exception as error:
            frames = [f"{Path(f.filename).name}:{f.lineno}" for f in
                      traceback.extract_tb(error.__traceback__)[-6:]]  # fmt: skip
            failures.append(f"case {number}: {' '.join(frames)}: {error!r:.300}")
        if (seconds := time.monotonic() - began) > MOST_SECONDS:
            failures.append(f"case {number} took {seconds:.0f} s")
        if len(failures) == 5:
            break
    assert not failures, "\n".join(failures)
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert more < MOST_BYTES, f"{more / 1e9:.2f} GB"


# --- strange values -------------------------------------------------------------------------------


def nested(depth, value):
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**63, 2**64, 10**12, 10**400, -(10**400), 0.5,
           -0.0, 1e-30, 1.5, 1e30, 1e39, float("nan"), float("inf"), -float("inf")]  # fmt: skip
TEXTS = ["", " ", "\0", "\ud800", "\x1b[31m", "a\nb", "../../x", "/dev/zero", "/proc/kmsg", "~",
         "-", "--", "a/b", "x" * 5000, "1" * 400, "1e400", "nan", "0x_", "null", "owner/model",
         "http://localhost/x", ":", "a:b", "a:nan", "{}", "%s%n", "\u0663", "1_0", "true",
         "2001-99-99"]  # fmt: skip
STRUCTURES = [[], {}, [[]], [{}], nested(9, 1), nested(200, []), [1] * 1000, {"a": {"b": {}}}]


def strange(rng):
    """A value that hardly anybody expects."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return odd_text(rng)
    if kind == 5:
        return [strange(rng) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {odd_text(rng): strange(rng) for _ in range(rng.randrange(3))}
    return copy.deepcopy(rng.choice(STRUCTURES))


def odd_text(rng):
    if rng.randrange(3):
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) for _ in range(5))


def places(document, path=()):
    """The path of every value in a document, its own first."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*path, key))


def mutated(rng, document):
    """A JSON document in which one to three things are replaced, left out or added."""
    result = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(result)))
        if not path:
            if not rng.randrange(20):
                return strange(rng)
            if isinstance(result, dict):
                result[odd_text(rng)] = strange(rng)
            continue
        parent = result
        for key in path[:-1]:
            parent = parent[key]
        if not rng.randrange(4):
            del parent[path[-1]]
        else:
            parent[path[-1]] = strange(rng)
    return result


def damaged(rng, content, head=4096):
    """Bytes that are cut off, flipped, filled or lengthened; half of it near their beginning."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not result:
            break
        place = rng.randrange(rng.choice([len(result), min(len(result), head)]))
        what = rng.randrange(6)
        if what == 0:
            result[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            result[place] = rng.choice([0, 1, 127, 128, 255])
        elif what == 2:
            del result[place:]
        elif what == 3:
            result[place:place] = rng.randbytes(rng.randint(1, 40))
        elif what == 4:
            del result[place : place + rng.randint(1, 40)]
        else:  # a size or a count
            value = rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1])
            result[place : place + 4] = value.to_bytes(4, rng.choice(["little", "big"]))
    return bytes(result)


def as_json(document):
    """JSON, with what Python can write beyond it: NaN, surrogates, numbers of 400 digits."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def damaged_json(rng, document):
    """Half of it still JSON."""
    if rng.randrange(2):
        return as_json(mutated(rng, document))
    return damaged(rng, as_json(document))


# --- files of tensors -----------------------------------------------------------------------------


def parts_of(path):
    """A safetensors file's header and its data."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def damaged_tensors(rng, header, data):
    """A safetensors file in whose header, metadata, or bytes something is odd."""
    kind, about = rng.randrange(3), header.get("__metadata__")
    if kind == 0 and about:
        name = rng.choice(sorted(about))
        try:
            inner = mutated(rng, json.loads(about[name]))
            text = json.dumps(inner)
        except ValueError:
            text = odd_text(rng)
        header = {**header, "__metadata__": {**about, name: text}}
    elif kind < 2:
        header = mutated(rng, header)
    text = as_json(header)
    content = len(text).to_bytes(8, "little") + text + data
    return damaged(rng, content) if kind == 2 else content


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_adapters(here):
    path = here / "adapter.safetensors"
    pair = {"kf": np.ones((6, 4), np.float32), "vf": np.ones((6, 4), np.float32)}
    layers = {f"{name}.attn2": pair for name in ("down", "mid", "up")}
    save_adapter(path, layers, FusionOptions(), base="x", base_fingerprint="f")
    whole = parts_of(path)

    def run(rng):
        path.write_bytes(damaged_tensors(rng, *whole))
        with guarded():
            load_adapter_file(path)

    fuzz(4000, run)


def test_identities(here):
    path, rng = here / "person.safetensors", np.random.default_rng(0)
    states = {"a": rng.standard_normal((1, 4, 8)).astype(np.float32)}
    latents = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    pictures = rng.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    Identity(states, latents, pictures, (1.0,), "f").save(path)
    whole = parts_of(path)

    def run(rng):
        path.write_bytes(damaged_tensors(rng, *whole))
        with guarded():
            Identity.load(path).check_fits("f", "clean")

    fuzz(4000, run)


def test_loras(here):
    path, module = here / "lora.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    state = {f"{module}.lora_down.weight": np.ones((2, 64, 1, 1), np.float32),
             f"{module}.lora_up.weight": np.ones((64, 2, 1, 1), np.float32),
             f"{module}.alpha": np.ones((), np.float32)}  # fmt: skip
    save_file(state, path, {"ss_network_dim": "2", "lora_adapter_metadata": '{"unet.r": 2}'})
    whole = parts_of(path)
    shapes = {"unet": {"mid_block.attentions.0.proj_in.weight": (64, 64, 1, 1)}, "text_encoder": {}}

    def run(rng):
        path.write_bytes(damaged_tensors(rng, *whole))
        with guarded():
            lora.read_lora(path, 1.0, shapes, 1)

    fuzz(2000, run)


def test_flax_files(here):
    path = here / "flax.msgpack"
    tree = {"conv_in": {"kernel": np.ones((3, 3, 4, 8), np.float32), "bias": np.ones(8)}}
    whole = msgpack_serialize(tree)

    def run(rng):
        path.write_bytes(damaged(rng, whole))
        with guarded(), FlaxFile(path) as file:
            for name in file:
                file.read(name)

    fuzz(2000, run)


# --- bases ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(here):
    tiny.tiny_base().save_pretrained(here / "base")
    return here / "base"


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("unet", configs.unet_from_config),
        ("vae", configs.vae_from_config),
        ("text_encoder", configs.text_encoder_from_config),
        ("unet", controlnet.module_from_config),
    ],
)
def test_configurations_of_models(base, name, build):
    config = json.loads((base / name / "config.json").read_text())

    def run(rng):
        changed = mutated(rng, config)
        if isinstance(changed, dict):
            with guarded():
                build(changed, "config.json")

    fuzz(1000, run)


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (NoiseSchedule.from_config, NoiseSchedule().to_config()),
        (FusionOptions.from_json, FusionOptions().to_json()),
    ],
)
def test_small_configurations(build, config):
    def run(rng):
        changed = mutated(rng, config)
        if isinstance(changed, dict):
            with guarded():
                build(changed)

    fuzz(1500, run)


def _copy(whole, target):
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(whole, target)


def _damage_one(rng, files):
    path = rng.choice(sorted(files))
    if path.suffix == ".json":
        path.write_bytes(damaged_json(rng, json.loads(path.read_bytes())))
    elif path.suffix == ".safetensors":
        path.write_bytes(damaged_tensors(rng, *parts_of(path)))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))


def test_bases_in_a_folder(base, here):
    def run(rng):
        folder = _copy(base, here / "copy")
        _damage_one(rng, [path for path in folder.rglob("*") if path.is_file()])
        with guarded(), contextlib.ExitStack() as files:
            open_base(folder, np.float32, None, files)

    fuzz(300, run)


def test_tokenizers(base, here):
    def run(rng):
        folder = _copy(base / "tokenizer", here / "tokenizer")
        _damage_one(rng, folder.iterdir())
        with guarded():
            load_tokenizer(folder)

    fuzz(600, run)


def test_bases_in_one_file(here):
    """With a tensor or two of each part."""
    path, words = here / "one.safetensors", "cond_stage_model.transformer.text_model.embeddings"
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
              "model.diffusion_model.time_embed.0.weight": (128, 32),
              "first_stage_model.encoder.conv_in.weight": (32, 3, 3, 3),
              f"{words}.token_embedding.weight": (60, 32)}  # fmt: skip
    state = {name: np.ones(shape, np.float16) for name, shape in shapes.items()}
    save_file(state, path, {"modelspec.prediction_type": "v"})
    whole = parts_of(path)

    def run(rng):
        path.write_bytes(damaged_tensors(rng, *whole))
        with guarded(), contextlib.ExitStack() as files:
            open_base(path, np.float32, None, files)
        with guarded(), SafetensorsFile(path) as file:
            for name in file:
                file.read(name)

    fuzz(2000, run)


# --- scenes, requests, pictures' texts ------------------------------------------------------------

JOB = {
    "prompt": "a person, laughing",
    "negative_prompt": "blurred",
    "base": "mini",
    "people": [
        {"faces": ["face.png"], "strength": 1.5, "box": [0, 0, 0.5, 1], "weights": [1.0]},
        {"fresh": 3, "looks": "young", "mask": "mask.png"},
    ],
    "seed": 7,
    "guidance_scale": 3.0,
    "num_inference_steps": 20,
    "scheduler": "ddim",
    "height": 64,
    "width": 64,
    "layer_strength": {"mid_block": 0.5},
    "face_steps": [0.0, 1.0],
    "lora": ["a.safetensors:0.5"],
    "clip_skip": 1,
    "image": "image.png",
    "strength": 0.5,
}


@pytest.fixture(scope="module")
def folder(here):
    """The files that a job may name."""
    for name in ("face", "mask", "image"):
        Image.new("RGB", (64, 64), "white").save(here / f"{name}.png")
    return here


def test_jobs():
    def run(rng):
        job = mutated(rng, JOB)
        if isinstance(job, dict):
            with guarded():
                Job.from_mapping(job)

    fuzz(2000, run)


def test_scenes(folder):
    path = folder / "scene.yaml"
    text = yaml.safe_dump(JOB).encode()

    def run(rng):  # JSON is YAML
        path.write_bytes(damaged_json(rng, JOB) if rng.randrange(2) else damaged(rng, text))
        with guarded():
            read_scene(path)

    fuzz(2500, run)


def test_requests(folder):
    """A row that is wrong takes no other with it."""
    path, good = folder / "requests.jsonl", b'{"prompt": "x"}\n'

    def run(rng):
        odd = damaged_json(rng, {"id": "a", **JOB}).replace(b"\n", b" ").replace(b"\r", b" ")
        path.write_bytes(good + odd + b"\n" + good)
        with guarded():
            rows = list(read_requests(path, Job()))
            assert rows[0].job is not None
            assert rows[-1].job is not None
            for row in rows:
                assert row.job is not None or 0 < len(row.error) <= LONGEST

    fuzz(2500, run)


def test_pictures_texts(folder):
    path = folder / "picture.png"
    document = {"version": 2, "job": JOB, "files": {"image.png": "0" * 16}, "models": {"base": "f"}}

    def run(rng):
        about, content = PngInfo(), io.BytesIO()
        about.add_itxt("fusionjax", damaged_json(rng, document).decode("utf-8", "replace"))
        Image.new("RGB", (32, 32)).save(content, "PNG", pnginfo=about)
        whole = content.getvalue()
        path.write_bytes(whole if rng.randrange(4) else damaged(rng, whole))
        with guarded():
            read_picture(path, trust=bool(rng.randrange(2)))

    fuzz(2500, run)


# --- photos ---------------------------------------------------------------------------------------


def photos():
    """Small pictures of all kinds."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    picture, exif = Image.fromarray(levels), Image.Exif()
    exif[0x0112] = 6  # turned
    kinds = [("PNG", {}), ("JPEG", {"exif": exif}), ("WEBP", {}), ("TIFF", {}), ("BMP", {}),
             ("GIF", {}), ("PPM", {}), ("AVIF", {}), ("JPEG2000", {}),
             ("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {"progressive": True})]  # fmt: skip
    images = [(picture, kind, how) for kind, how in kinds]
    images += [(picture.convert(mode), "PNG", {}) for mode in ("RGBA", "P", "L", "LA", "1")]
    images += [(Image.fromarray(levels[..., 0].astype(np.uint16)), "PNG", {})]
    images += [(picture.convert("CMYK"), "TIFF", {})]
    for image, kind, how in images:
        file = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):  # a Pillow without that codec
            image.save(file, kind, **how)
            yield file.getvalue()


def test_photos(here):
    path, whole = here / "photo", list(photos())
    assert len(whole) > 12

    def run(rng):
        path.write_bytes(damaged(rng, rng.choice(whole), head=200))
        with guarded():
            read_photo(path)
        with guarded():
            prepare_photo(path, 32, "none")

    fuzz(4000, run)


# --- checkpoints ----------------------------------------------------------------------------------


def test_checkpoints(here):
    """Whatever is damaged, cut or missing: a whole step is read, or it is said why not."""
    checkpoints = Checkpoints(here / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {"next": step}, 1 / step)
    checkpoints.wait()
    checkpoints.close()

    def run(rng):
        folder = _copy(here / "checkpoints", here / "damaged")
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        what = rng.randrange(6)
        if what == 0:
            path.unlink()
        elif what == 1:
            shutil.rmtree(path.parent)
        elif what == 2:
            path.write_bytes(as_json(strange(rng)))
        else:
            path.write_bytes(damaged(rng, path.read_bytes()))
        with guarded(folder):
            checkpoints = Checkpoints(folder, read_only=True)
            try:
                found = checkpoints.newest(lambda step: checkpoints.restore(step, state_of(0)))
            finally:
                checkpoints.close()
            if found is not None:
                step, (state, _) = found
                np.testing.assert_array_equal(state.more, np.full((300, 300), -step))

    fuzz(300, run)


# --- flipped bits ---------------------------------------------------------------------------------


def _flipped(rng, content):
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["adapter", "person"])
def test_no_flipped_bit_is_read_silently(here, kind):
    """Wherever in a file of 0.2 MB."""
    path, rng = here / f"{kind}.safetensors", np.random.default_rng(0)
    if kind == "adapter":
        pair = {n: rng.standard_normal((160, 64)).astype(np.float32) for n in ("kf", "vf")}
        save_adapter(path, {f"{n}.attn2": pair for n in "ab"}, FusionOptions(), base="x")
    else:
        states = {"a": rng.standard_normal((1, 512, 64)).astype(np.float32)}
        latents = rng.standard_normal((1, 32, 32, 4)).astype(np.float32)
        pictures = rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
        Identity(states, latents, pictures, (1.0,), "f").save(path)
    whole, read = path.read_bytes(), load_adapter_file if kind == "adapter" else Identity.load
    read(path)

    def run(rng):
        path.write_bytes(_flipped(rng, whole))
        with pytest.raises(UserError, match=path.name):
            read(path)

    fuzz(4000, run)


def test_no_flipped_bit_of_a_step_is_read_silently(here):
    """Some of a step's bytes are nobody's: then it is read as it was."""
    checkpoints = Checkpoints(here / "flipped")
    checkpoints.save(2, state_of(2), {"next": 2})
    checkpoints.close()
    files = sorted(path for path in (here / "flipped").rglob("*") if path.stat().st_size)
    files = [path for path in files if path.is_file()]
    seen = []

    def run(rng):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(_flipped(rng, whole))
        try:
            checkpoints = Checkpoints(here / "flipped", read_only=True)
            state, _ = checkpoints.restore(2, state_of(0))
            checkpoints.close()
            for name in ("ema", "more"):
                expected, found = getattr(state_of(2), name), getattr(state, name)
                jax.tree.map(np.testing.assert_array_equal, expected, found)
        except DamagedCheckpoint:
            seen.append(path)
        finally:
            path.write_bytes(whole)

    fuzz(2000, run)
    assert len(seen) > 200


# --- command lines --------------------------------------------------------------------------------


def flags(help_of):
    """The flags that a command's help names, but for those that compile."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        help_of(["--help"])
    words = {word.strip("[],|:") for word in said.getvalue().split() if word.startswith("--")}
    return sorted(words - {"--help", "--dry-run", "--target", "--"})


def odd_word(rng, names):
    kind = rng.randrange(4)
    if kind == 0:
        return odd_text(rng)
    if kind == 1:
        number = rng.choice(NUMBERS)
        return "1" * 400 if isinstance(number, int) and abs(number) > 10**300 else str(number)
    return rng.choice([*names, "face.png", "-x", "--se", "--"])


def test_command_lines(folder):
    names = flags(parse)
    assert len(names) > 40

    def run(rng):
        words = [odd_word(rng, names) for _ in range(rng.randrange(8))]
        with guarded(folder), contextlib.chdir(folder):
            _said(lambda words: run_command(lambda: parse(words).job() and None), words)

    fuzz(3000, run)


def _said(main, words):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code
    assert status in (0, 1, 2, None)
    assert "Traceback" not in said.getvalue()
    assert max(map(len, said.getvalue().splitlines()), default=0) <= LONGEST + 10


def test_whole_command_lines(folder):
    """Up to a base that is not there."""
    names, out = flags(parse), str(folder / "out")

    def run(rng):
        words = [odd_word(rng, names) for _ in range(rng.randrange(6))]
        with guarded(folder, Path.home() / ".cache"), contextlib.chdir(folder):
            _said(sample_main, [*words, "--base", "/nowhere/at/all", "--output", out])

    fuzz(300, run)


@pytest.mark.parametrize("command", ["export", "import", "evaluate", "cache"])
def test_other_command_lines(folder, command):
    names = flags(lambda words: fusionjax_main([command, *words]))

    def run(rng):
        words = [odd_word(rng, names) for _ in range(rng.randrange(1, 5))]
        with guarded(folder, Path.home() / ".cache"), contextlib.chdir(folder):
            _said(fusionjax_main, [command, "/nowhere/at/all", *words])

    fuzz(100, run)


TRAIN_FLAGS = ("--steps", "--batch-size", "--seed", "--optimizer.learning-rate", "--mesh.data",
               "--data.source", "--text-dropout", "--optimizer.schedule", "--precision",
               "--log-every", "--fusion.reference")  # fmt: skip


def test_trainings_command_lines(folder):
    def run(rng):
        words = []
        for _ in range(rng.randrange(4)):
            words += [rng.choice(TRAIN_FLAGS), odd_word(rng, TRAIN_FLAGS)]
        with guarded(folder), contextlib.chdir(folder):
            _said(lambda words: run_command(lambda: read_config(words) and None), ["mini", *words])

    fuzz(300, run)
