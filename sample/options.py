"""The command line of `python -m sample`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from fusionjax.choices import CROPS, DTYPES, SCHEDULERS
from fusionjax.errors import UserError
from sample.job import Job

# What a command line says goes before what a scene or a picture says, row by row in a requests
# file the other way round. Only what was typed is in the namespace, so defaults live in `Job`.
_UNSET = argparse.SUPPRESS

_DESCRIPTION = """\
Paint pictures of people. Without arguments: a person of the embedded mini world, painted by the
embedded mini model, without any download.
"""
_EXAMPLES = """\
examples:
  python -m sample --prompt "a person laughing in a library" --num-images 4
  python -m sample --base sd15/ --fusion runs/sd15 --face a.jpg b.jpg --prompt "an astronaut"
  python -m sample --scene scene.yaml --output out/
  python -m sample --requests requests.jsonl --output out/
  python -m sample --from out/0001_seed0.png --seed 1
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """A command line, read.

    Attributes:
        given: the job's values that were typed, by field name.
        scene: a scene file.
        requests: a file of requests.
        source: a picture to repeat.
        output: the folder for pictures.
        batch_size: pictures to paint at once; None chooses.
        save_identity: where to write the person.
        attention_share: measure and draw how attention is shared.
        depth_from: a photo whose depth is the ControlNet's input, and
        depth_model: the model that sees depth.
        cache: the folder of compiled programs; "" switches it off.
        quiet: no progress.
    """

    given: dict[str, Any]
    scene: Path | None = None
    requests: Path | None = None
    source: Path | None = None
    output: Path = Path("pictures")
    batch_size: int | None = None
    save_identity: Path | None = None
    attention_share: bool = False
    depth_from: Path | None = None
    depth_model: str | None = None
    cache: str | None = None
    quiet: bool = False

    def job(self, within: Job | None = None) -> Job:
        """The job that was typed, on top of another one.

        Raises:
            UserError: as `Job.from_mapping`.
        """
        return Job.from_mapping(self.given, within=within)


def parse(arguments: list[str] | None = None) -> Options:
    """Reads a command line.

    Args:
        arguments: the words after the program's name; None takes this process's.

    Returns:
        The options.

    Raises:
        UserError: for combinations that make no sense.
        SystemExit: for `--help`, and (with status 2) for what is not on the list.
    """
    values: dict[str, Any] = vars(_parser().parse_args(arguments))
    ours = {field.name for field in dataclasses.fields(Options)} - {"given"}
    options = {name: values.pop(name) for name in list(values) if name in ours}
    people: dict[str, Any] = {
        name: values.pop(name) for name in ("faces", "weights") if name in values
    }
    if "weights" in people and "faces" not in people:
        raise UserError("--face-weights is given without --face")
    if values.pop("no_face", False):
        if people:
            raise UserError("--face and --no-face are both given")
        people = {"people": []}  # nobody is not the same as nobody named
    sources = [name for name in ("scene", "requests", "source") if name in options]
    if len(sources) > 1:
        flags = [f"--{name}".replace("--source", "--from") for name in sources]
        raise UserError(f"{' and '.join(flags)} are both given; use one of them")
    if "layer_strength" in values:
        values["layer_strength"] = dict(_factor(text) for text in values["layer_strength"])
    if "requests" in options:
        for name in ("attention_share", "save_identity", "depth_from"):
            if options.get(name):
                raise UserError(f"--{name.replace('_', '-')} does not go with --requests")
    if options.get("batch_size", 1) < 1:
        raise UserError(f"--batch-size is {options['batch_size']}; it must be ≥ 1")
    for name in ("scene", "requests", "source"):
        if name in options and not options[name].is_file():
            raise UserError(f"{options[name]} does not exist")
    if options.get("output", Path()).is_file():
        raise UserError(f"--output {options['output']} is a file; name a folder")
    return Options(given={**values, **people}, **options)


def _factor(text: str) -> tuple[str, float]:
    layer, _, factor = text.rpartition("=")
    try:
        return layer, float(factor)
    except ValueError:
        raise UserError(f"--layer-strength {text!r}; write LAYER=FACTOR") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sample",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=_UNSET,
        allow_abbrev=False,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}

    def add(group: Any, flag: str, text: str, **options: Any) -> None:
        name = options.get("dest", flag.lstrip("-").replace("-", "_"))
        default = defaults.get(name)
        if default not in (None, "", (), False, dataclasses.MISSING):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        group.add_argument(flag, help=text, **options)

    models = parser.add_argument_group("models")
    add(models, "--base", "diffusers folder, checkpoint file, or hub id", metavar="SOURCE")
    add(models, "--fusion", "a run's folder or an exported .safetensors", metavar="SOURCE")
    add(models, "--vae", "another VAE for the base", metavar="SOURCE")
    add(models, "--lora", "LoRA files to merge: FILE or FILE:STRENGTH", metavar="FILE", nargs="+")
    add(models, "--dtype", "type of weights and computation", choices=DTYPES)

    what = parser.add_argument_group("what is seen")
    add(what, "--prompt", "what is seen")
    add(what, "--negative-prompt", "what is not")
    add(what, "--face", "photos of one person, or identity files", dest="faces", nargs="+",
        metavar="FILE")  # fmt: skip
    add(what, "--face-weights", "a weight for each, to mix people", dest="weights", nargs="+",
        type=float, metavar="λ")  # fmt: skip
    add(what, "--no-face", "nobody: the base model alone", action="store_true")
    add(what, "--crop", "how photos are cut", choices=CROPS)
    add(what, "--height", "in pixels (default: the base's own)", type=int)
    add(what, "--width", "in pixels", type=int)

    how = parser.add_argument_group("how it is painted")
    add(how, "--num-images", "pictures to paint", type=int, metavar="N")
    add(how, "--seed", "of the first picture; the next have the next numbers", type=int)
    add(how, "--steps", "noise levels to visit", type=int, metavar="N")
    add(how, "--scheduler", "the sampler", choices=SCHEDULERS)
    add(how, "--guidance-scale", "how strictly to follow text and faces", type=float,
        metavar="G")  # fmt: skip
    add(how, "--face-guidance-scale", "guide by the faces separately", type=float, metavar="G")
    add(how, "--face-strength", "how strong the faces are: 0 is the base model", type=float,
        metavar="λ")  # fmt: skip
    add(how, "--face-steps", "share of the steps in which faces act", type=float, nargs=2,
        metavar=("FROM", "UNTIL"))  # fmt: skip
    add(how, "--layer-strength", "factors on the strength by layer", nargs="+",
        metavar="LAYER=FACTOR")  # fmt: skip
    add(how, "--faces-in-negative", "show the faces to the negative branch too",
        action="store_true")  # fmt: skip

    start = parser.add_argument_group("starting from a picture")
    add(start, "--image", "the picture to start from", metavar="FILE")
    add(start, "--image-strength", "how far to leave it, in (0, 1]", type=float, metavar="S")
    add(start, "--paint-where", "paint only where this picture is white", metavar="FILE")
    add(start, "--controlnet", "diffusers folder, file, or hub id", metavar="SOURCE")
    add(start, "--control-image", "the ControlNet's input, such as a depth map", metavar="FILE")
    add(start, "--control-strength", "a factor on its answer", type=float, metavar="S")
    add(start, "--depth-from", "a photo whose depth is the input", type=Path, metavar="FILE")
    add(start, "--depth-model", "the model that sees depth: a folder or hub id", metavar="SOURCE")

    many = parser.add_argument_group("other sources of what to paint")
    add(many, "--scene", "a scene file: several people with their places", type=Path,
        metavar="YAML")  # fmt: skip
    add(many, "--requests", "a file of requests, one a line; resumes where it stopped", type=Path,
        metavar="JSONL")  # fmt: skip
    add(many, "--from", "a picture painted by this program, to be repeated", dest="source",
        type=Path, metavar="PNG")  # fmt: skip

    out = parser.add_argument_group("output")
    add(out, "--output", "folder for the pictures (default: pictures/)", type=Path,
        metavar="DIR")  # fmt: skip
    add(out, "--save-identity", "write the person to a file, for later --face", type=Path,
        metavar="FILE")  # fmt: skip
    add(out, "--attention-share", "measure how much each photo is attended to",
        action="store_true")  # fmt: skip
    add(out, "--batch-size", "pictures to paint at once", type=int, metavar="N")
    add(out, "--cache", 'folder of compiled programs; "" for none', metavar="DIR")
    add(out, "--quiet", "no progress", action="store_true")
    return parser
