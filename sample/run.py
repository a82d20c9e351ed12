"""Paints a job or a file of requests, and writes what belongs to it."""

import dataclasses
import functools
import json
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import fusionjax
from fusionjax.errors import NotFiniteWarning, UserError
from sample import files
from sample.job import BATCH_PER_DEVICE, Job, Person, even_batch
from sample.options import Options
from sample.progress import Bar, Stopwatch, duration

if TYPE_CHECKING:
    from fusionjax.identity import Identity
    from fusionjax.pipeline import Picture, Settings

_ASSETS = Path(fusionjax.__file__).parent / "assets"
# What the embedded mini model paints when nothing is asked for.
MINI_FACE = "cleo"  # one of the four embedded people
MINI_PROMPT = "a person laughing, wearing an astronaut suit, in a garden with flowers"
MINI_GUIDANCE = 3.0
_PEOPLE_BYTES = 2**31  # of encoded people are kept for the next request


def run(options: Options) -> int:
    """Does what a command line says.

    Args:
        options: the command line.

    Returns:
        The exit status: 0, or 1 if pictures or rows of a requests file could not be painted.

    Raises:
        UserError: if something is wrong.
    """
    within = None
    if options.scene is not None:
        within = files.read_scene(options.scene)
    elif options.source is not None:
        within = files.read_picture(options.source)
    job = options.job(within)
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
        return _run_requests(options, job)
    if within is None:
        job = _with_embedded_face(job, options.given)
    job = _completed(job)
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


def _is_embedded(job: Job) -> bool:
    """Whether the base is the embedded mini model; the adapter may be one trained on it."""
    if job.base is None and job.fusion is None:
        return True
    from fusionjax.checkpoint import adapter_base, base_source

    base = job.base or adapter_base(job.fusion or "")
    return base is not None and Path(base_source(base)).resolve() == (_ASSETS / "mini").resolve()


def _with_embedded_face(job: Job, given: dict[str, Any]) -> Job:
    """The embedded model paints an embedded person, unless somebody or nobody is named."""
    if _is_embedded(job) and not job.people and "people" not in given:
        face = _ASSETS / "faces" / f"{MINI_FACE}.png"
        job = dataclasses.replace(job, people=(Person(faces=(str(face),)),))
    return job


def _completed(job: Job) -> Job:
    """The job with what the embedded model paints by default; nothing is added to another's."""
    if _is_embedded(job):
        if job.prompt is None:
            job = dataclasses.replace(job, prompt=MINI_PROMPT)
        if job.guidance_scale is None:
            job = dataclasses.replace(job, guidance_scale=MINI_GUIDANCE)
    if job.prompt is None:
        raise UserError("what shall be painted? Give a prompt (--prompt)")
    return job


def _run_job(options: Options, job: Job) -> int:
    watch = Stopwatch()
    bar = Bar(None if options.quiet else sys.stderr)
    studio = Studio(job, options, bar)
    models = studio.pipe.fingerprints
    if options.source is not None and not {"base", "fusion", "lora"} & options.given.keys():
        files.check_models(options.source, models)
    job, settings = studio.settled(job)
    if options.depth_from is not None:
        job = studio.with_depth(job, options)
    pictures = studio.pictures(job, settings)
    people = studio.people(job)
    if options.save_identity is not None:
        people[0].save(options.save_identity)
        print(options.save_identity)

    options.output.mkdir(parents=True, exist_ok=True)
    first = files.next_number(options.output)
    sums = files.checksums(job)
    painted, shares = [], []
    batch = even_batch(len(pictures), options.batch_size or BATCH_PER_DEVICE * studio.devices)
    for index, image, share in studio.painted(
        pictures, settings, batch, attention_share=options.attention_share
    ):
        if image is None:
            continue
        own = dataclasses.replace(job, seed=pictures[index].seed, num_images=1)
        path = options.output / f"{first + index:04d}_seed{own.seed}.png"
        files.write_picture(path, image, own, sums, models)
        print(path)
        painted.append(image)
        if share is not None:
            shares.append(share)
            _write_share(path, image, share, job, people)

    if missing := len(pictures) - len(painted):
        print(f"{missing} of {len(pictures)} pictures could not be painted", file=sys.stderr)
    if not painted:
        return 1

    from sample.sheet import contact_sheet

    sheet = options.output / f"{first:04d}_sheet.png"
    contact_sheet([_thumbnails(person) for person in people], painted).save(sheet)
    print(sheet)
    if shares:
        _print_shares(shares, job, people)
    bar.say(f"{len(painted)} picture{'s' * (len(painted) > 1)} in {watch}")
    return 1 if missing else 0


class Studio:
    """A pipeline with the people who have come so far.

    Args:
        job: names the models.
        options: the command line.
        bar: hears of progress.
    """

    def __init__(self, job: Job, options: Options, bar: Bar) -> None:
        from fusionjax.backend.compilation import use_compilation_cache
        from fusionjax.pipeline import FusionPipeline

        if options.cache != "":
            use_compilation_cache(options.cache)
        _show_warnings_as_lines()
        watch = Stopwatch()
        self.pipe: FusionPipeline = FusionPipeline.from_pretrained(
            job.base,
            job.fusion,
            dtype=job.dtype,
            vae=job.vae,
            lora=job.lora,
            controlnet=job.controlnet,
        )
        bar.say(f"loaded {self.pipe.base.source} in {watch}")
        self.bar = bar
        self.pipe.runner.before_compiling = bar.compiling
        self._portrait_guidance = MINI_GUIDANCE if _is_embedded(job) else None
        self._people: OrderedDict[Any, Identity] = OrderedDict()

    @property
    def devices(self) -> int:
        """How many devices paint."""
        return len(self.pipe.runner.devices)

    def settled(self, job: Job) -> tuple[Job, "Settings"]:
        """The job with the values that the base model decides, and the pipeline's settings."""
        import jax.numpy as jnp

        from fusionjax.pipeline import Picture, Settings

        job = dataclasses.replace(
            job,
            height=job.height or self.pipe.photo_side,
            width=job.width or self.pipe.photo_side,
            dtype=jnp.dtype(self.pipe.base.unet.dtype).name,
            guidance_scale=job.guidance_scale or Picture.guidance_scale,
        )
        assert job.height is not None
        assert job.width is not None
        settings = Settings(
            height=job.height,
            width=job.width,
            steps=job.steps,
            scheduler=job.scheduler,
            image_strength=job.image_strength,
            faces_in_negative=job.faces_in_negative,
        )
        return job, settings

    def pictures(self, job: Job, settings: "Settings") -> list["Picture"]:
        """The pictures of a settled job, checked.

        Raises:
            UserError: if something is wrong, before anything is compiled for painting.
        """
        from fusionjax.pipeline import Picture, box_mask, fit_image, fit_mask

        size = (settings.width, settings.height)

        def grey(path: str | None) -> Any:
            return fit_mask(path, size) if path else None

        masks: list[Any] = []
        for person in job.people:
            if person.box:
                masks.append(box_mask(person.box, settings.height, settings.width))
            elif person.mask:
                masks.append(grey(person.mask))
                if not masks[-1].any():
                    raise UserError(
                        f"{person.mask} is black everywhere: its person would have no place"
                    )
        if job.people and self.pipe.fusion_params is None:
            raise UserError(
                "people are given, but no adapter is loaded; name one (--fusion), or leave the "
                "faces out"
            )
        # Everything that needs no photo is checked before the first photo is looked at.
        nobody = Picture(
            prompt=job.prompt or "",
            negative_prompt=job.negative_prompt,
            face_steps=(job.face_steps[0], job.face_steps[1]),
            layer_strength=job.layer_strength,
            seed=job.seed,
            guidance_scale=job.guidance_scale or Picture.guidance_scale,
            face_guidance_scale=job.face_guidance_scale,
            image=fit_image(job.image, size) * 2 - 1 if job.image else None,
            paint_where=grey(job.paint_where),
            control_image=fit_image(job.control_image, size) if job.control_image else None,
            control_strength=job.control_strength,
        )
        self.pipe.check(nobody, settings)
        import numpy as np

        first = dataclasses.replace(
            nobody,
            identities=tuple(self.people(job)),
            face_strength=[person.strength * job.face_strength for person in job.people],
            masks=np.stack(masks) if masks else None,
        )
        # Long prompts were warned of already.
        self.pipe.check(dataclasses.replace(first, prompt="", negative_prompt=""), settings)
        return [dataclasses.replace(first, seed=job.seed + i) for i in range(job.num_images)]

    def people(self, job: Job) -> list["Identity"]:
        """The people of a job, each encoded once.

        Raises:
            UserError: if a photo or an identity file cannot be used; all are read before anything
                is compiled for the first.
        """
        photos: dict[str, Any] = {}
        for face in (face for person in job.people for face in person.faces):
            if (face, job.crop) not in self._people and face not in photos:
                photos[face] = self._opened(face, job.crop)
        return [self._identity(person, job.crop, photos) for person in job.people]

    def _opened(self, face: str, crop: str) -> Any:
        """An identity file, or a photo as it is cut out."""
        from fusionjax.identity import Identity
        from fusionjax.photos import prepare_photo

        if not face.endswith(".safetensors"):
            return prepare_photo(face, self.pipe.photo_side, crop)
        identity = Identity.load(face)
        fusion = self.pipe.fusion
        identity.check_fits(self.pipe.base.fingerprint, fusion.options.reference, face)
        return identity

    def _identity(self, person: Person, crop: str, photos: dict[str, Any]) -> "Identity":
        from fusionjax.identity import Identity

        if person.fresh is not None:
            return self._kept((person.fresh, person.looks), lambda: self._fresh(person))

        def part(face: str) -> Identity:
            opened = photos[face] if face in photos else self._opened(face, crop)
            return opened if isinstance(opened, Identity) else self.pipe.encode_identity(opened)

        parts = [self._kept((face, crop), functools.partial(part, face)) for face in person.faces]
        if len(parts) == 1 and not person.weights:
            return parts[0]
        weights = person.weights or None
        return self._kept((person.faces, weights, crop), lambda: Identity.mix(parts, weights))

    def _fresh(self, person: Person) -> "Identity":
        options: dict[str, Any] = {"progress": self.bar}
        if person.looks:
            options["looks"] = person.looks
        if self._portrait_guidance is not None:
            options["guidance_scale"] = self._portrait_guidance
        assert person.fresh is not None
        return self.pipe.fresh_identity(person.fresh, **options)

    def _kept(self, key: Any, make: Callable[[], "Identity"]) -> "Identity":
        """The person under a key, made if need be; the ones longest unused are forgotten."""
        if key not in self._people:
            self._people[key] = make()
        self._people.move_to_end(key)
        while sum(map(_bytes, self._people.values())) > _PEOPLE_BYTES and len(self._people) > 1:
            self._people.popitem(last=False)
        return self._people[key]

    def painted(
        self,
        pictures: Sequence["Picture"],
        settings: "Settings",
        batch: int,
        *,
        attention_share: bool = False,
    ) -> Iterator[tuple[int, Any, Any]]:
        """Paints batch by batch, all of one shape: the last batch is filled up.

        Yields:
            Each picture's index, image (None where it is not finite), and attention share (None
            where not asked for).
        """
        from fusionjax.backend.compilation import full_memory_told
        from fusionjax.pipeline import of_many

        too_much = (
            f"the memory does not hold {batch} picture{'s' * (batch > 1)} of "
            f"{settings.width}×{settings.height} at once; use a smaller --batch-size, "
            "a smaller size, or a 16-bit --dtype"
        )
        batches = -(-len(pictures) // batch)
        for start in range(0, len(pictures), batch):
            chunk = list(pictures[start : start + batch])
            filled = chunk + chunk[-1:] * (batch - len(chunk))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # prompts were warned of when they were checked
                warnings.simplefilter("always", NotFiniteWarning)
                with full_memory_told(too_much):
                    out = self.pipe.paint(
                        filled,
                        settings,
                        attention_share=attention_share,
                        progress=of_many(self.bar, start // batch, batches),
                    )
            for i in range(len(chunk)):
                share = None if out.attention_share is None else out.attention_share[i]
                yield start + i, out.images[i], share

    def with_depth(self, job: Job, options: Options) -> Job:
        """The job with a depth map of a photo as its control image, written beside the pictures."""
        from fusionjax.interop.torch_depth import depth_map

        assert options.depth_from is not None
        assert options.depth_model is not None
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"{files.next_number(options.output):04d}_depth.png"
        depth_map(options.depth_from, options.depth_model).save(path)
        return dataclasses.replace(job, control_image=str(path.absolute()))


# --- a file of requests ---------------------------------------------------------------------------


class _Waiting(NamedTuple):
    """A picture of a request that waits for others of its shape."""

    request: files.Request
    number: int
    picture: "Picture"
    job: Job


def _run_requests(options: Options, within: Job) -> int:
    assert options.requests is not None
    if _is_embedded(within) and within.guidance_scale is None:
        within = dataclasses.replace(within, guidance_scale=MINI_GUIDANCE)
    requests = list(files.read_requests(options.requests, within))
    if not requests:
        raise UserError(f"{options.requests} holds no requests")
    options.output.mkdir(parents=True, exist_ok=True)
    log = _Results(options.output / "results.jsonl")
    todo = [request for request in requests if not log.is_done(request)]
    bar = Bar(None if options.quiet else sys.stderr)
    bar.say(f"{len(requests) - len(todo)} of {len(requests)} rows are done already")
    bad = 0
    # A model that cannot be loaded is nobody's row; where no row can be painted none is needed.
    studio = Studio(within, options, bar) if any(r.job for r in todo) else None
    batch = options.batch_size or BATCH_PER_DEVICE * (studio.devices if studio else 1)
    waiting: dict[Any, list[_Waiting]] = {}
    began = time.perf_counter()

    def fail(request: files.Request, reason: str) -> None:
        nonlocal bad
        bad += 1
        print(f"row {request.number}: {reason}", file=sys.stderr)
        log.write(request, error=reason)

    def paint(settings: "Settings", group: list[_Waiting], batch: int) -> None:
        assert studio is not None
        try:
            for request in _paint_group(studio, settings, group, batch, options, log):
                fail(request, "its picture is not finite; use --dtype float32 or less guidance")
        except UserError as error:  # the other groups may still be painted
            for request in {item.request.number: item.request for item in group}.values():
                if log.expects(request):
                    fail(request, str(error))
        left = len(todo) - log.written
        seconds = (time.perf_counter() - began) / max(log.written, 1) * left
        bar.say(f"{log.written}/{len(todo)} rows" + (f", {duration(seconds)} left" if left else ""))

    for request in todo:
        try:
            if request.job is None or studio is None:
                raise UserError(request.error or "")
            if request.job.prompt is None:
                raise UserError("what shall be painted? The row has no prompt")
            job, settings = studio.settled(request.job)
            pictures = studio.pictures(job, settings)
        except UserError as error:
            fail(request, str(error))
            continue
        log.expect(request, len(pictures))
        group = waiting.setdefault((settings, _shape_of(pictures[0])), [])
        for index, picture in enumerate(pictures):
            own = dataclasses.replace(job, seed=picture.seed, num_images=1)
            group.append(_Waiting(request, index, picture, own))
            if len(group) == batch:
                paint(settings, group, batch)
                group.clear()
    for (settings, _), group in waiting.items():
        if group:
            # Few shapes of the rest, so that little is compiled for it.
            paint(settings, group, min(batch, 1 << (len(group) - 1).bit_length()))
    if bad:
        print(f"{bad} of {len(requests)} rows could not be painted", file=sys.stderr)
    return 1 if bad else 0


def _shape_of(picture: "Picture") -> tuple[Any, ...]:
    """What decides, besides the settings, which pictures can be painted together."""
    references = sum(len(person) for person in picture.identities)
    return (
        1 << max(references - 1, 0).bit_length() if references else 0,
        picture.masks is not None,
        picture.image is not None,
        picture.control_image is not None,
        1 if picture.guidance_scale == 1 else 2 if picture.face_guidance_scale is None else 3,
    )


def _paint_group(
    studio: Studio,
    settings: "Settings",
    group: list[_Waiting],
    batch: int,
    options: Options,
    log: "_Results",
) -> Iterator[files.Request]:
    """Paints and writes pictures; yields the requests whose pictures are not finite, once each."""
    for i, image, _ in studio.painted([item.picture for item in group], settings, batch):
        item = group[i]
        if image is None:
            if log.expects(item.request):
                yield item.request
            continue
        path = options.output / f"{item.request.name}_{item.number:03d}.png"
        sums = files.checksums(item.job)
        files.write_picture(path, image, item.job, sums, studio.pipe.fingerprints)
        log.painted(item.request, item.number, path.name, item.job.seed)


class _Results:
    """`results.jsonl`: a line for each row that is done, written after its pictures."""

    def __init__(self, path: Path) -> None:
        self.written = 0  # lines of this run
        self._path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self._pending: dict[int, list[tuple[int, str, int]]] = {}
        self._expected: dict[int, int] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                about = json.loads(line)
                self._lines[about["id"]] = about
            except (ValueError, KeyError, TypeError):
                continue  # cut off when the program was stopped: the row is painted again
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def is_done(self, request: files.Request) -> bool:
        about = self._lines.get(request.name, {})
        return (
            about.get("request") == request.digest
            and "pictures" in about
            and all((self._path.parent / name).is_file() for name in about["pictures"])
        )

    def expect(self, request: files.Request, pictures: int) -> None:
        self._expected[request.number] = pictures

    def expects(self, request: files.Request) -> bool:
        """Whether the row's line is still to be written."""
        return request.number in self._expected

    def painted(self, request: files.Request, index: int, name: str, seed: int) -> None:
        pending = self._pending.setdefault(request.number, [])
        pending.append((index, name, seed))
        if len(pending) == self._expected.get(request.number):
            pending.sort()
            self.write(
                request,
                pictures=[name for _, name, _ in pending],
                seeds=[seed for *_, seed in pending],
            )

    def write(self, request: files.Request, **result: Any) -> None:
        about = {"row": request.number, "id": request.name, "request": request.digest, **result}
        self.written += 1
        self._expected.pop(request.number, None)
        if self._lines.get(request.name) == about:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about, ensure_ascii=False) + "\n")


# --- what is told ---------------------------------------------------------------------------------


def _thumbnails(person: "Identity") -> list[Any]:
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in person.thumbnails]


def _bytes(person: "Identity") -> int:
    return person.latents.nbytes + sum(states.nbytes for states in person.states.values())


def _photo_names(job: Job, people: Sequence["Identity"]) -> list[str]:
    """A name for each photo of each person, in the pipeline's order."""
    names = []
    for number, (person, identity) in enumerate(zip(job.people, people, strict=True), 1):
        own = [Path(face).name for face in person.faces]
        if person.fresh is not None:
            own = [f"fresh {person.fresh}"]
        if len(own) != len(identity):  # an identity file holds several photos
            own = [f"person {number} photo {i}" for i in range(1, len(identity) + 1)]
        names += own
    return names


def _write_share(
    path: Path, image: Any, share: Any, job: Job, people: Sequence["Identity"]
) -> None:
    from sample.sheet import heat_map

    names = _photo_names(job, people)
    heat_map(image, share[..., 1 : 1 + len(names)], names).save(
        path.with_name(f"{path.stem}_attention.png")
    )


def _print_shares(shares: Sequence[Any], job: Job, people: Sequence["Identity"]) -> None:
    """The text's share, each person's, and where a person has several photos each photo's."""
    import numpy as np

    text, *of_photos = np.mean([share.mean((0, 1)) for share in shares], 0)
    photos = list(zip(_photo_names(job, people), of_photos, strict=False))
    parts = [f"text {text:.1%}"]
    for number, person in enumerate(people, 1):
        own, photos = photos[: len(person)], photos[len(person) :]
        told = ", ".join(f"{name} {share:.1%}" for name, share in own)
        total = sum(share for _, share in own)
        parts.append(told if len(own) == 1 else f"person {number} {total:.1%} ({told})")
    print(f"attention: {', '.join(parts)}")


def _show_warnings_as_lines() -> None:
    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
