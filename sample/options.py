"""The command line of `python -m sample`."""

import argparse
import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any, NoReturn

from fusionjax.errors import UserError
from fusionjax.options import DTYPES, SCHEDULERS
from sample.job import Job

# What a command line says goes before what a scene or a picture says, row by row in a requests
# file the other way round. Only what was typed is in the namespace, so defaults live in `Job`.
_UNSET = argparse.SUPPRESS
_FLAGS = {
    "faces": "--face",
    "weights": "--face-weights",
    "fresh": "--fresh-face",
    "looks": "--looks",
    "no_face": "--no-face",
    "source": "--from",
}

_DESCRIPTION = """\
Paint pictures of people. Without arguments: a person of the embedded mini world, painted by the
embedded mini model, without any download.
"""
_EXAMPLES = """\
a scene.yaml (paths are relative to it; options are keys, with _ for -, as in guidance_scale):
  prompt: three people at the beach
  width: 768
  people:
    - {faces: [ann1.jpg, ann2.jpg], box: [0, 0, 0.3, 1]}       # left, top, right, bottom
    - {faces: [ben.jpg, cleo.jpg], weights: [0.5, 0.5], mask: middle.png}   # a mixture
    - {fresh: 7, looks: an old man, box: [0.7, 0, 1, 1], strength: 0.9}     # somebody new

a row of requests.jsonl is the same in one line, with an id if you like:
  {"id": "ann-reads", "prompt": "a person reading", "faces": ["ann1.jpg"], "seed": 3}

examples:
  python -m sample --prompt "a person laughing in a library" --num-images 4
  python -m sample --base sd15/ --fusion runs/sd15 --face a.jpg b.jpg --prompt "an astronaut"
  python -m sample --fresh-face 7 --prompt "a person reading in a library"
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
        dry_run: compile and tell what is needed; paint nothing.
        target: hardware to compile for.
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
    dry_run: bool = False
    target: str | None = None

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
        UserError: for what is not on the list, and for combinations that make no sense.
        SystemExit: for `--help`.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if rest:
        raise UserError(_unknown(rest[0], list(parser._option_string_actions)))
    values: dict[str, Any] = vars(known)
    ours = {field.name for field in dataclasses.fields(Options)} - {"given"}
    options = {name: values.pop(name) for name in list(values) if name in ours}
    people: dict[str, Any] = {
        name: values.pop(name) for name in ("faces", "weights", "fresh", "looks") if name in values
    }
    for name, needed in (("weights", "faces"), ("looks", "fresh")):
        if name in people and needed not in people:
            raise UserError(f"{_FLAGS[name]} is given without {_FLAGS[needed]}")
    nobody = values.pop("no_face", False)
    if len(named := [n for n in ("faces", "fresh") if n in people] + ["no_face"] * nobody) > 1:
        raise UserError(f"{_FLAGS[named[0]]} and {_FLAGS[named[1]]} are both given")
    if nobody:
        people = {"people": []}  # nobody is not the same as nobody named
    sources = [name for name in ("scene", "requests", "source") if name in options]
    if len(sources) > 1:
        flags = [_FLAGS.get(name, f"--{name}") for name in sources]
        raise UserError(f"{' and '.join(flags)} are both given; use one of them")
    if "layer_strength" in values:
        values["layer_strength"] = dict(_factor(text) for text in values["layer_strength"])
    if "requests" in options:
        for name in ("attention_share", "save_identity", "depth_from"):
            if options.get(name):
                raise UserError(f"--{name.replace('_', '-')} does not go with --requests")
    if "target" in options and "dry_run" not in options:
        raise UserError("--target goes with --dry-run, which paints nothing")
    if "dry_run" in options and "requests" in options:
        raise UserError("--dry-run does not go with --requests")
    if options.get("batch_size", 1) < 1:
        raise UserError(f"--batch-size is {options['batch_size']}; it must be ≥ 1")
    for name in ("scene", "requests", "source"):
        if name in options and not options[name].is_file():
            raise UserError(f"{options[name]} does not exist")
    if "depth_from" in options and not options["depth_from"].is_file():
        raise UserError(f"{options['depth_from']} does not exist")
    _check_can_write(options.get("output", Options.output))
    if "save_identity" in options:
        _check_can_write(options["save_identity"].parent)
    return Options(given={**values, **people}, **options)


def _unknown(word: str, flags: list[str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no option; put texts of several words in quotes"
    flag = word.partition("=")[0]
    close = difflib.get_close_matches(flag.lstrip("-"), [known.lstrip("-") for known in flags], 1)
    hint = f"did you mean --{close[0]}?" if close else "`python -m sample --help` lists all options"
    return f"{flag} is not known; {hint}"


def _check_can_write(folder: Path) -> None:
    """Raises UserError if a folder can neither be written to nor made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder} cannot be a folder: {there} is a file; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: {there} does not allow it; name another")


def _factor(text: str) -> tuple[str, float]:
    layer, _, factor = text.rpartition("=")
    try:
        return layer, float(factor)
    except ValueError:
        raise UserError(f"--layer-strength {text!r}; write LAYER=FACTOR") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m sample",
        usage="python -m sample [--prompt TEXT] [--face FILE ...] [option ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=_layout,
        argument_default=_UNSET,
        allow_abbrev=False,
    )
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Job)}

    def add(group: Any, flag: str, text: str, **options: Any) -> None:
        name = options.get("dest", flag.lstrip("-").replace("-", "_"))
        default = defaults.get(name)
        if (
            isinstance(default, int | float | str | tuple)
            and default not in ("", ())
            and not (isinstance(default, bool))
        ):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        group.add_argument(flag, help=text, **options)

    what = parser.add_argument_group("what is seen")
    add(what, "--prompt", "what is seen", metavar="TEXT")
    add(what, "--negative-prompt", "what is not", metavar="TEXT")
    add(what, "--height", "in pixels (default: the base's own)", type=_whole, metavar="PIXELS")
    add(what, "--width", "likewise", type=_whole, metavar="PIXELS")

    who = parser.add_argument_group("who is seen")
    add(who, "--face", "photos of one person, or identity files", dest="faces", nargs="+",
        metavar="FILE")  # fmt: skip
    add(who, "--face-weights", "a weight for each file; files of several people are mixed",
        dest="weights", nargs="+", type=_number, metavar="λ")  # fmt: skip
    add(who, "--fresh-face", "a person who does not exist; each number is another person",
        dest="fresh", type=_whole, metavar="NUMBER")  # fmt: skip
    add(who, "--looks", "what the fresh person looks like", metavar="TEXT")
    add(who, "--no-face", "nobody: the base model alone", action="store_true")
    add(who, "--crop", "how photos are cut: around the face (auto) or not (none)",
        metavar="auto|none")  # fmt: skip
    add(who, "--face-strength", "how strong the faces are: 0 is the base model, 1 as trained",
        type=_number, metavar="λ")  # fmt: skip
    add(who, "--face-steps", "from which to which share of the steps faces act", type=_number,
        nargs=2, metavar=("FROM", "UNTIL"))  # fmt: skip
    add(who, "--layer-strength", "factors on the strength by layer", nargs="+",
        metavar="LAYER=FACTOR")  # fmt: skip
    add(who, "--face-guidance-scale",
        "guide by the faces separately, and by the text with --guidance-scale", type=_number,
        metavar="G")  # fmt: skip
    add(who, "--faces-in-negative", "show the faces to the guidance's negative branch too",
        action="store_true")  # fmt: skip

    how = parser.add_argument_group("how it is painted")
    add(how, "--num-images", "pictures to paint", type=_whole, metavar="N")
    add(how, "--seed", "of the first picture; the next have the next numbers", type=_whole,
        metavar="N")  # fmt: skip
    add(how, "--steps", "noise levels to visit", type=_whole, metavar="N")
    add(how, "--scheduler", f"the sampler, one of {', '.join(SCHEDULERS)}", metavar="NAME")
    add(how, "--guidance-scale",
        "how strictly to follow text and faces (default: 7.5; the embedded model: 3)",
        type=_number, metavar="G")  # fmt: skip
    add(how, "--batch-size", "pictures to paint at once (default: 4 on each device)", type=_whole,
        metavar="N")  # fmt: skip

    models = parser.add_argument_group("models")
    add(models, "--base", "diffusers folder, checkpoint file, or hub id (default: the one that "
        "--fusion was trained on)", metavar="SOURCE")  # fmt: skip
    add(models, "--fusion", "the adapter: a run's folder or an exported .safetensors (default: "
        "the embedded one)", metavar="SOURCE")  # fmt: skip
    add(models, "--vae", "another VAE for the base", metavar="SOURCE")
    add(models, "--lora", "LoRA files to merge: FILE or FILE:STRENGTH", metavar="FILE", nargs="+")
    add(models, "--dtype", f"type of weights and computation, one of {', '.join(DTYPES)} "
        "(default: a 16-bit type on accelerators, float32 on a CPU)", metavar="NAME")  # fmt: skip

    start = parser.add_argument_group("starting from a picture")
    add(start, "--image", "the picture to start from", metavar="FILE")
    add(start, "--image-strength", "how far to leave it, in (0, 1]", type=_number, metavar="S")
    add(start, "--paint-where", "paint only where this picture is white", metavar="FILE")
    add(start, "--controlnet", "diffusers folder, file, or hub id", metavar="SOURCE")
    add(start, "--control-image", "the ControlNet's input, such as a depth map", metavar="FILE")
    add(start, "--control-strength", "a factor on its answer", type=_number, metavar="S")
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
    add(out, "--output", f"folder for the pictures (default: {Options.output}/)", type=Path,
        metavar="DIR")  # fmt: skip
    add(out, "--save-identity", "write the person to a file, for later --face", type=Path,
        metavar="FILE")  # fmt: skip
    add(out, "--attention-share", "measure how much each photo is attended to, and draw where",
        action="store_true")  # fmt: skip
    add(out, "--cache", 'folder of compiled programs; "" for none (default: ~/.cache/fusionjax)',
        metavar="DIR")  # fmt: skip
    add(out, "--quiet", "no progress", action="store_true")

    trial = parser.add_argument_group("trying out")
    add(trial, "--dry-run", "compile, tell what memory and time is needed, and paint nothing",
        action="store_true")  # fmt: skip
    add(trial, "--target", "with --dry-run: for hardware that is not here, one of v100, a100, "
        "h100, v5e, v5p, v6e; with :COUNT for several (h100:8)", metavar="NAME")  # fmt: skip
    return parser
