"""Generates a job, or a file of requests, and writes what belongs to it."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError
from fusionjax.files import whole_file
from sample import formats as files
from sample.job import BATCH_PER_DEVICE, Job, even_batch
from sample.options import Options
from sample.progress import Bar, Stopwatch
from sample.requests import run_requests
from sample.sheet import print_shares, thumbnails, write_share
from sample.studio import Studio, completed, with_embedded_face
from sample.trust import check_base_of, check_models


def run(options: Options) -> int:
    """Does what a command line says.

    Args:
        options: the command line.

    Returns:
        The exit status: 0, or 1 if images, or rows of a requests file, failed.

    Raises:
        UserError: if something is wrong.
    """
    within = None
    if options.scene is not None:
        within = files.read_scene(options.scene)
    elif options.source is not None:
        within = files.read_picture(options.source, trust=options.trust)
    job = options.job(within)
    if within is not None and not options.trust:
        check_models(options.scene or options.source or Path(), within, options.given)
    if job.fusion is not None and job.base is None and not options.trust:
        check_base_of(job.fusion)
    if options.dry_run:
        from sample.dry_run import dry_run

        nobody = options.given.get("people") == []
        print(dry_run(job, options.batch_size, options.target, nobody=nobody))
        return 0
    if options.depth_from is not None and not job.controlnet:
        raise UserError("--depth-from is given without --controlnet")
    if options.depth_from is not None and not options.depth_model:
        raise UserError("--depth-from needs --depth-model, a depth model's folder or hub id")
    if options.requests is not None:
        return run_requests(options, job)
    if within is None:
        job = with_embedded_face(job, options.given)
    job = completed(job)
    if options.save_identity is not None and len(job.people) != 1:
        raise UserError(f"--save-identity needs one person, and there are {len(job.people)}")
    if options.attention_share and not job.people:
        raise UserError("--attention-share needs a person, and there is none")
    if options.attention_share and job.controlnet:
        raise UserError("--attention-share does not see a ControlNet; leave one of them out")
    if options.save_identity is not None and options.save_identity.suffix != ".safetensors":
        raise UserError(
            f"--save-identity is {options.save_identity}; its name must end in .safetensors, "
            "so that --face knows it"
        )
    if job.controlnet and not (job.control_image or options.depth_from):
        raise UserError("a ControlNet is given without --control-image (or --depth-from)")
    return _run_job(options, job)


def _run_job(options: Options, job: Job) -> int:
    watch = Stopwatch()
    bar = Bar(None if options.quiet else sys.stderr)
    studio = Studio(job, options, bar)
    from PIL import Image  # here: `--help` and wrong words need no models

    models = studio.pipe.fingerprints
    if options.source is not None and not {"base", "fusion", "lora"} & options.given.keys():
        files.check_models(options.source, models)
    job, settings = studio.resolved(job)
    if options.depth_from is not None:
        job = studio.with_depth(job, options)
    requests = studio.requests(job, settings)
    people = studio.people(job)
    if options.save_identity is not None:
        people[0].save(options.save_identity)
        print(options.save_identity)

    options.output.mkdir(parents=True, exist_ok=True)
    first = files.next_number(options.output)
    sums = files.checksums(job)
    images, shares = [], []
    batch = even_batch(len(requests), options.batch_size or BATCH_PER_DEVICE * studio.devices)
    done = studio.generate(requests, settings, batch, attention_share=options.attention_share)
    for index, each in enumerate(done):
        if each.pixels is None:
            continue
        own = dataclasses.replace(job, seed=requests[index].seed, num_images_per_prompt=1)
        path = _write(options.output, first + index, each.pixels, own, sums, models)
        print(path)
        images.append(Image.fromarray(each.pixels))
        if each.attention_share is not None:
            shares.append(each.attention_share)
            write_share(path, images[-1], each.attention_share, job, people)

    if missing := len(requests) - len(images):
        print(f"{missing} of {len(requests)} images are not finite", file=sys.stderr)
    if not images:
        return 1

    from sample.sheet import contact_sheet

    picture = contact_sheet([thumbnails(person) for person in people], images)
    print(_numbered(options.output, first, "sheet", lambda path: _save(picture, path)))
    if shares:
        print_shares(shares, job, people)
    bar.say(f"{len(images)} image{'s' * (len(images) > 1)} in {watch}")
    return 1 if missing else 0


def _write(folder: Path, number: int, pixels: Any, job: Job, *about: Any) -> Path:
    """Writes a picture under the first number from `number` on that is free."""

    def write(path: Path) -> None:
        files.write_picture(path, pixels, job, *about, replace=False)

    return _numbered(folder, number, f"seed{job.seed}", write)


def _save(picture: Any, path: Path) -> None:
    with whole_file(path, replace=False) as beside:
        picture.save(beside, "PNG")


def _numbered(folder: Path, number: int, what: str, write: Callable[[Path], None]) -> Path:
    """Another program may be writing pictures to the same folder: no name is taken twice."""
    for free in itertools.count(number):
        path = folder / f"{free:04d}_{what}.png"
        with contextlib.suppress(FileExistsError):
            write(path)
            break
    return path
