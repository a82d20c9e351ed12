"""`--dry-run`: what pictures would need, found by compiling their programs without weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fusionjax.backend.compilation import compiler_options
from fusionjax.backend.devices import check_dtype, default_dtype
from fusionjax.backend.program import EFFICIENCY, Needs, check_fits, compile_for
from fusionjax.backend.targets import Chip, Target, target
from fusionjax.diffusion.samplers import plan
from fusionjax.embedded import MINI, base_source
from fusionjax.errors import UserError
from fusionjax.files import file_and_word
from fusionjax.generation.dry_run import abstract_pipeline, picture_programs
from fusionjax.generation.prompts import Prompts, texts_of
from fusionjax.generation.starting_image import outpainted_size
from fusionjax.generation.vocabulary import Vocabulary
from fusionjax.interop.textual_inversion import read_embedding
from fusionjax.interop.tokenizer import clip_tokenizer, load_tokenizer
from fusionjax.models.abstract_base import STAND_IN, is_here
from fusionjax.models.adapter import adapter_base, load_adapter
from fusionjax.models.base import BaseModel
from fusionjax.options import Description
from sample.job import BATCH_PER_DEVICE, Job, even_batch

_REMEDY = "use a smaller --batch-size, a smaller size, or a 16-bit --dtype"


def dry_run(
    job: Job,
    batch_size: int | None,
    name: str | None,
    *,
    nobody: bool = False,
    devices: Sequence[Any] | None = None,
) -> str:
    """Compiles the programs of a job's pictures.

    Args:
        job: what is to be painted; its base, adapter, size, people, steps, sampler and type count.
        batch_size: pictures painted at once, over all devices; None is as when painting.
        name: hardware to compile for, see `fusionjax.backend.targets.target`; None is the present
            devices.
        nobody: nobody is to be in the pictures; else, where nobody is named, one photo is counted
            if there is an adapter.
        devices: of the present ones, those to compile for; None is all.

    Returns:
        A table in Markdown and what it says together.

    Raises:
        UserError: if there is no such hardware, or it cannot do it.
    """
    if job.controlnet:
        raise UserError("--dry-run does not know what a ControlNet needs; leave --controlnet out")
    if job.upscale:
        raise UserError(
            "--dry-run compiles one pass; in place of --upscale give the larger size (--height, "
            "--width), which needs the most"
        )
    job = dataclasses.replace(job, **outpainted_size(job.image, vars(job)))
    chosen = target(name) if name else None
    devices = chosen.devices if chosen else devices or jax.local_devices()
    batch = even_batch(job.num_images_per_prompt, batch_size or BATCH_PER_DEVICE * len(devices))
    images = -(-batch // len(devices))
    devices = devices[: -(-batch // images)]  # each has work
    dtype = job.dtype or default_dtype(devices)
    check_dtype(dtype, devices)
    source = job.base or (adapter_base(job.fusion) if job.fusion else None) or MINI
    options = load_adapter(job.fusion).options if job.fusion else None
    pipe = abstract_pipeline(base_source(source), dtype, devices, options)
    photos = sum(len(person.faces) or 1 for person in job.people)
    if not photos and not nobody:
        photos = int(job.fusion is not None or source == MINI)
    height, width = job.height or pipe.photo_side, job.width or pipe.photo_side
    programs = picture_programs(
        pipe,
        images=images * len(devices),
        photos=photos,
        height=height,
        width=width,
        steps=job.num_inference_steps,
        scheduler=job.scheduler,
        text_length=text_length(job, pipe.base, base_source(source)),
    )
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pipe.runner.params))
    needs = {}
    for program, traced in programs.items():
        count = 1 if program == "encode a photo" else len(devices)
        xla = compiler_options(devices[0])
        _, needs[program] = compile_for(traced, count, devices[0], program, _REMEDY, xla)
        if chosen is not None:
            at_once = 1 if program == "decode" else images
            check_fits(
                needs[program], chosen.chip, program, _REMEDY, images=at_once, resident=weights
            )
    in_16_bits = jnp.dtype(dtype).itemsize == 2
    stands = [] if is_here(base_source(source)) else [f"{source} is {STAND_IN}", ""]
    lines = [
        *stands,
        f"{images} picture{'s' * (images > 1)} of {width}×{height} with {photos} "
        f"photo{'s' * (photos != 1)} on each of {len(devices)} × {devices[0].device_kind}, "
        f"{dtype}; all weights: {weights / 1e9:.2f} GB",
        "",
        table(needs, chosen, in_16_bits=in_16_bits),
    ]
    if chosen is not None:
        rows = len(plan(pipe.base.schedule, job.scheduler, job.num_inference_steps))
        told = to_expect(
            needs, chosen.chip, rows=rows, images=images, photos=photos, in_16_bits=in_16_bits
        )
        lines += ["", told]
    return "\n".join(lines)


def text_length(job: Job, base: BaseModel, source: str) -> int | None:
    """How many tokens a job's prompts have with what they are filled up by; None is one chunk.

    Args:
        job: its prompts count.
        base: the base without its tokenizer.
        source: where the tokenizer is, else CLIP's own is read.
    """
    if job.long_prompts != "chunks":
        return None
    own = Path(source) / "tokenizer"
    tokenizer = load_tokenizer(own) if own.is_dir() else clip_tokenizer()
    vocabulary = Vocabulary(dataclasses.replace(base, tokenizer=tokenizer))
    for name in job.textual_inversion:
        vocabulary.add(read_embedding(*file_and_word(name)))
    words = {f.name: getattr(job, f.name) for f in dataclasses.fields(Description)}
    prompts = Prompts(**{**words, "prompt": job.prompt or ""})
    return texts_of(prompts, vocabulary).length


def to_expect(
    needs: dict[str, Needs],
    chip: Chip,
    *,
    rows: int,
    photos: int,
    in_16_bits: bool,
    images: int = 1,
) -> str:
    """The seconds of all pictures, and of the person if there is one, and what they rest on.

    Args:
        needs: by program.
        chip: each device.
        rows: passes of the UNet.
        photos: of the person.
        in_16_bits: whether it computes so.
        images: on each device; they are decoded one after the other.
    """
    seconds = {
        program: need.seconds(chip, in_16_bits=in_16_bits) for program, need in needs.items()
    }
    one_batch = seconds["text and faces"] + rows * seconds["a step"] + images * seconds["decode"]
    once = f", and {photos * seconds['encode a photo']:.2f} s once for the person" if photos else ""
    rate = chip.rate_16 if in_16_bits else chip.rate_32
    return (
        f"to expect: {one_batch:.2f} s for all pictures at once, {rows} steps{once}; by "
        f"{rate / 1e12:.0f} TFLOP/s and {chip.bandwidth / 1e9:.0f} GB/s of a device, of which "
        f"{EFFICIENCY:.0%} are assumed to be reached"
    )


def table(needs: dict[str, Needs], chosen: Target | None, *, in_16_bits: bool) -> str:
    """The programs in Markdown, a row each.

    Args:
        needs: by program.
        chosen: the hardware; None leaves the seconds out.
        in_16_bits: whether it computes so.
    """
    head = ["program", "peak", "TFLOP", "moved", "operations", "attention"]
    rows: list[list[Any]] = [head + ["to expect"] * (chosen is not None)]
    for program, need in needs.items():
        peak = need.peak_bytes or need.arguments_bytes + need.temporary_bytes
        flash = ", ".join(f"{n} × {name}" for name, n in need.attention.items())
        row = [
            program, f"{peak / 1e9:.2f} GB", f"{need.flops / 1e12:.2f}",
            f"{need.moved_bytes / 1e9:.2f} GB", need.operations, flash or "xla",
        ]  # fmt: skip
        if chosen is not None:
            row.append(f"{1000 * need.seconds(chosen.chip, in_16_bits=in_16_bits):.1f} ms")
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
