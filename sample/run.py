"""Generates a job, or a file of requests, and writes what belongs to it."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionjax.errors import UserError
from sample import formats as files
from sample.device import chosen
from sample.images import save
from sample.inputs import Remembered, checksums
from sample.job import RANDOM, Job, even_batch
from sample.links import fetched, is_link
from sample.names import Output, next_number, values_of
from sample.options import Options
from sample.progress import Bar, Stopwatch
from sample.requests import run_requests
from sample.sheet import print_shares, share_map, thumbnails
from sample.studio import Studio, completed, with_embedded_face
from sample.trust import check_base_of, check_models

if TYPE_CHECKING:
    from PIL import Image


def run(options: Options) -> int:
    """Does what a command line says.

    Args:
        options: the command line.

    Returns:
        The exit status: 0, or 1 if images, or rows of a requests file, failed.

    Raises:
        UserError: if something is wrong.
    """
    devices = chosen(options.device) if options.device else None
    links = [face for face in options.given.get("faces", ()) if is_link(face)]
    if links:
        folder = options.written.folder
        files_of = {link: fetched(link, folder) for link in links}
        faces = [files_of.get(face, face) for face in options.given["faces"]]
        options = dataclasses.replace(options, given={**options.given, "faces": faces})
    within = None
    if options.scene is not None:
        within = files.read_scene(options.scene)
    elif options.source is not None:
        within = files.read_picture(
            options.source,
            trust=options.trust,
            given=options.given,
            remembered=Remembered(options.cache),
        )
    job = options.job(within)
    if within is not None and not options.trust:
        check_models(options.scene or options.source or Path(), within, options.given)
    if not options.trust:
        check_base_of(job)
    if options.dry_run:
        from sample.dry_run import dry_run

        nobody = options.given.get("people") == []
        print(dry_run(job, options.batch_size, options.target, nobody=nobody, devices=devices))
        return 0
    if options.requests is not None:
        return run_requests(options, job, devices)
    check_control(options, job)
    if "strength" in options.given and job.image is None:
        raise UserError("--strength is given without --image, and would do nothing")
    if within is None:
        job = with_embedded_face(job, options.given)
    job = completed(job)
    if options.save_identity is not None and len(job.people) != 1:
        raise UserError(f"--save-identity needs one person, and there are {len(job.people)}")
    if options.show_crops and not any(person.faces for person in job.people):
        raise UserError("--show-crops needs a photo (--face), and there is none")
    if options.attention_share and not job.people:
        raise UserError("--attention-share needs a person, and there is none")
    if options.attention_share and job.controlnet:
        raise UserError("--attention-share does not see a ControlNet; leave one of them out")
    if options.save_identity is not None and options.save_identity.suffix != ".safetensors":
        raise UserError(
            f"--save-identity is {options.save_identity}; its name must end in .safetensors, "
            "so that --face knows it"
        )
    return _run_job(options, job, devices)


def check_control(options: Options, job: Job) -> None:
    """Raises UserError for a ControlNet, or a depth, without what it needs."""
    if options.depth_from is not None and not job.controlnet:
        raise UserError("--depth-from is given without --controlnet")
    if options.depth_from is not None and not options.depth_model:
        raise UserError("--depth-from needs --depth-model, a depth model's folder or hub id")
    if job.controlnet and not (job.control_image or options.depth_from):
        raise UserError("a ControlNet is given without --control-image (or --depth-from)")


def _run_job(options: Options, job: Job, devices: Any) -> int:
    watch = Stopwatch()
    bar = Bar(None if options.quiet else sys.stderr)
    studio = Studio(job, options, bar, devices)
    from PIL import Image  # here: `--help` and wrong words need no models

    models = studio.pipe.fingerprints
    if options.source is not None and not {"base", "fusion", "lora"} & options.given.keys():
        files.check_models(options.source, models)
    job, settings = studio.resolved(job)
    if options.show_crops:
        return _show_crops(options, studio, job)
    if options.skip_bad_photos:
        job = studio.usable(job)
    if options.depth_from is not None:
        job = studio.with_depth(job, options)
    requests = studio.requests(job, settings)
    people = studio.people(job)
    if options.save_identity is not None:
        people[0].save(options.save_identity)
        print(options.save_identity)

    out = options.written
    out.folder.mkdir(parents=True, exist_ok=True)
    first = next_number(out.folder)
    sums = checksums(job)
    if not options.no_metadata:
        Remembered(options.cache).add(sums)
    images, shares = [], []
    sheet: Output | None = None
    batch = even_batch(len(requests), studio.batch_size)
    done = studio.generate(requests, settings, batch, attention_share=options.attention_share)
    for index, each in enumerate(done):
        if each.pixels is None:
            continue
        own = dataclasses.replace(job, seed=requests[index].seed, num_images_per_prompt=1)
        path = _write(options, index, first, each.pixels, own, sums, models)
        print(path)
        sheet = sheet or out.of_sheet(path)
        images.append(Image.fromarray(each.pixels))
        if each.attention_share is not None:
            shares.append(each.attention_share)
            share = share_map(images[-1], each.attention_share, job, people)
            out.beside(path, "attention").write({"index": 0}, _saving(share, options))

    if missing := len(requests) - len(images):
        print(f"{missing} of {len(requests)} images are not finite", file=sys.stderr)
    if sheet is None:
        return 1

    from sample.sheet import contact_sheet

    picture = contact_sheet([thumbnails(person) for person in people], images)
    print(sheet.write({"index": first}, _saving(picture, options)))
    if shares:
        print_shares(shares, job, people)
    seeds = f"{job.seed}" + (f" to {requests[-1].seed}" if len(requests) > 1 else "")
    bar.say(f"{len(images)} image{'s' * (len(images) > 1)} in {watch}, seed {seeds}")
    if options.given.get("seed") == RANDOM and options.quiet:  # what was chosen is always told
        print(f"seed {seeds}", file=sys.stderr)
    return 1 if missing else 0


def _show_crops(options: Options, studio: Studio, job: Job) -> int:
    """Writes the sheet of what is cut from each photo; the status is 1 if one cannot be used."""
    from sample.crops import crops_of, crops_sheet

    crops = [crops_of(person, studio.pipe.photo_side, job.crop) for person in job.people]
    for crop in (crop for person in crops for crop in person if crop.reason):
        print(f"cannot be used: {crop.reason}", file=sys.stderr)
    first = next_number(options.written.folder)
    names = dataclasses.replace(options.written, pattern="{index}_crops")
    print(names.write({"index": first}, _saving(crops_sheet(crops), options)))
    return 1 if any(crop.reason for person in crops for crop in person) else 0


def _write(options: Options, number: int, first: int, pixels: Any, job: Job, *about: Any) -> Path:
    """Writes the image of that number, from 0, under a name that is free."""

    def write(path: Path) -> None:
        files.write_picture(
            path, pixels, job, *about, replace=False, metadata=not options.no_metadata,
            quality=options.quality,
        )  # fmt: skip

    return options.written.write(values_of(job, number, first + number), write)


def _saving(picture: "Image.Image", options: Options) -> Callable[[Path], None]:
    return functools.partial(save, picture, quality=options.quality, replace=False)
