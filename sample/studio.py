"""A pipeline with the people who have come so far."""

import dataclasses
import functools
import itertools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionjax.embedded import MINI_FACE, MINI_GUIDANCE, MINI_PROMPT, is_mini
from fusionjax.errors import UserError
from fusionjax.files import file_and_word
from fusionjax.options import Description, Settings
from fusionjax.schema import read_json
from sample.job import BATCH_PER_DEVICE, Job, Person
from sample.names import next_number
from sample.options import Options
from sample.progress import Bar, Stopwatch

if TYPE_CHECKING:
    from fusionjax.generation.generate import Generated
    from fusionjax.generation.request import Request
    from fusionjax.identity import Identity

_PEOPLE_BYTES = 2**31  # of encoded people are kept for the next request


def is_embedded(job: Job) -> bool:
    """Whether the base is the embedded mini model; the adapter may be one trained on it."""
    if job.base is None and job.fusion is None:
        return True
    from fusionjax.models.adapter import adapter_base

    return is_mini(job.base or adapter_base(job.fusion or ""))


def with_embedded_face(job: Job, given: dict[str, Any]) -> Job:
    """The embedded model shows an embedded person, unless somebody or nobody is named."""
    if is_embedded(job) and not job.people and "people" not in given:
        job = dataclasses.replace(job, people=(Person(faces=(str(MINI_FACE),)),))
    return job


def completed(job: Job) -> Job:
    """The job with what the embedded model shows by default; nothing is added to another's."""
    if is_embedded(job):
        if job.prompt is None:
            job = dataclasses.replace(job, prompt=MINI_PROMPT)
        if job.guidance_scale is None:
            job = dataclasses.replace(job, guidance_scale=MINI_GUIDANCE)
    if job.prompt is None:
        raise UserError("what shall be seen? Give a prompt (--prompt)")
    return job


class Studio:
    """A pipeline with the people who have come so far.

    Args:
        job: names the models.
        options: the command line.
        bar: hears of progress.
        devices: to compute on; None is all that JAX finds.

    Attributes:
        batch_size: images generated at once, at most.
    """

    def __init__(self, job: Job, options: Options, bar: Bar, devices: Any = None) -> None:
        from fusionjax.backend.compilation import use_compilation_cache
        from fusionjax.interop.textual_inversion import read_embedding
        from fusionjax.pipeline import FusionPipeline

        if options.cache != "":
            use_compilation_cache(options.cache)
        _show_warnings_as_lines()
        watch = Stopwatch()
        words = [read_embedding(*file_and_word(name)) for name in job.textual_inversion]
        self.pipe: FusionPipeline = FusionPipeline.from_pretrained(
            job.base,
            job.fusion,
            dtype=job.dtype,
            vae=job.vae,
            lora=job.lora,
            prediction_type=job.prediction_type,
            controlnet=job.controlnet,
            devices=devices,
        )
        for word in words:
            self.pipe.model.vocabulary.add(word)
        bar.say(f"loaded {self.pipe.base.source} in {watch}")
        if _has_safety_checker(self.pipe.base.source):
            bar.say("the base's safety checker is not used: no image is checked")
        self.bar = bar
        self.batch_size: int = options.batch_size or BATCH_PER_DEVICE * self.devices
        self.pipe.runner.before_compiling = bar.compiling
        self._portrait_guidance = MINI_GUIDANCE if is_embedded(job) else None
        self._people: OrderedDict[Any, Identity] = OrderedDict()
        self._photos: dict[tuple[str, str], Any] = {}  # of one job, opened and not yet encoded

    @property
    def devices(self) -> int:
        """How many devices are at work."""
        return len(self.pipe.runner.devices)

    def resolved(self, job: Job) -> tuple[Job, Settings]:
        """The job with the values that the base model decides, and the pipeline's settings."""
        import jax.numpy as jnp

        from fusionjax.generation.request import Request
        from fusionjax.generation.starting_image import outpainted_size

        job = dataclasses.replace(job, **outpainted_size(job.image, vars(job)))
        job = dataclasses.replace(
            job,
            height=job.height or self.pipe.photo_side,
            width=job.width or self.pipe.photo_side,
            dtype=jnp.dtype(self.pipe.base.unet.dtype).name,
            guidance_scale=job.guidance_scale or Request.guidance_scale,
        )
        return job, Settings(**_part(job, Settings))

    def requests(self, job: Job, settings: Settings) -> list["Request"]:
        """A request for each image of a resolved job, checked.

        Raises:
            UserError: if something is wrong, before anything is compiled for it.
        """
        from fusionjax.generation.request import Request, box_mask, fit_image, fit_mask
        from fusionjax.generation.starting_image import starting_point

        height, width = settings.size
        size = (width, height)
        masks: list[Any] = []
        for person in job.people:
            if person.box:
                masks.append(box_mask(person.box, height, width))
            elif person.mask:
                masks.append(fit_mask(person.mask, size))
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
        nobody = Request(
            **{**_part(job, Description), "prompt": job.prompt or ""}
            | starting_point(job.image, job.mask_image, size, job.outpaint, job.mask_blur),
            control_image=fit_image(job.control_image, size) if job.control_image else None,
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
        count = job.num_images_per_prompt
        return [dataclasses.replace(first, seed=job.seed + i) for i in range(count)]

    def people(self, job: Job) -> list["Identity"]:
        """The people of a job, each encoded once.

        Raises:
            UserError: if a photo or an identity file cannot be used; all are read before anything
                is compiled for the first.
        """
        photos: dict[str, Any] = {}
        for faces, face in ((own.faces, face) for own in job.people for face in own.faces):
            if (face, job.crop) in self._people or face in photos:
                continue
            try:
                photos[face] = self._opened(face, job.crop)
            except UserError as error:
                if len(faces) == 1:
                    raise
                raise UserError(f"{error}; or leave it out (--skip-bad-photos)") from None
        self._photos.clear()
        return [self._identity(person, job.crop, photos) for person in job.people]

    def usable(self, job: Job) -> Job:
        """The job without the photos that cannot be used, each of which is told.

        Raises:
            UserError: if nothing is left of a person.
        """
        people = []
        for number, person in enumerate(job.people, 1):
            good = [self._is_usable(face, job.crop) for face in person.faces]
            if good and not any(good):
                raise UserError(f"no photo of person {number} can be used; name others")
            people.append(
                dataclasses.replace(
                    person,
                    faces=tuple(itertools.compress(person.faces, good)),
                    weights=tuple(itertools.compress(person.weights, good)),
                )
            )
        return dataclasses.replace(job, people=tuple(people))

    def _is_usable(self, face: str, crop: str) -> bool:
        if (face, crop) in self._people:
            return True
        try:
            self._photos[face, crop] = self._opened(face, crop)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            return False
        return True

    def _opened(self, face: str, crop: str) -> Any:
        """An identity file, or a photo as it is cut out."""
        if (face, crop) in self._photos:
            return self._photos[face, crop]
        from fusionjax.generation.request import check_person
        from fusionjax.identity import Identity
        from fusionjax.photos import prepare_photo

        if not face.endswith(".safetensors"):
            return prepare_photo(face, self.pipe.photo_side, crop)
        identity = Identity.load(face)
        check_person(identity, self.pipe.model, face)
        return identity

    def _identity(self, person: Person, crop: str, photos: dict[str, Any]) -> "Identity":
        from fusionjax.generation.renewed import renewed
        from fusionjax.identity import Identity

        if person.fresh is not None:
            return self._kept((person.fresh, person.looks), lambda: self._fresh(person))

        def part(face: str) -> Identity:
            opened = photos[face] if face in photos else self._opened(face, crop)
            if isinstance(opened, Identity):
                return renewed(self.pipe.runner, opened)
            return self.pipe.encode_identity(opened)

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

    def generate(
        self, requests: Sequence["Request"], settings: Settings, batch: int, **more: Any
    ) -> Iterator["Generated"]:
        """Generates checked requests batch by batch, see `FusionPipeline.generate_each`."""
        if settings.second_pass is not None:
            height, width = settings.second_pass.size
            self.bar.say(f"a second pass enlarges what is painted to {width}×{height}")
        done = self.pipe.generate_each(
            requests, settings, batch_size=batch, progress=self.bar, **more
        )
        for request, image in zip(requests, done, strict=True):
            for face in image.faces:
                self.bar.say(f"seed {request.seed}: {face}")
            yield image

    def with_depth(self, job: Job, options: Options) -> Job:
        """The job with a depth map of a photo as its control image, written beside the pictures."""
        from fusionjax.interop.torch_depth import depth_map

        assert options.depth_from is not None
        assert options.depth_model is not None
        folder = options.written.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{next_number(folder):04d}_depth.png"
        depth_map(options.depth_from, options.depth_model).save(path)
        return dataclasses.replace(job, control_image=str(path.absolute()))


def _part(job: Job, kind: Any) -> dict[str, Any]:
    """The job's values of a dataclass that it has the fields of."""
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(kind)}


def _has_safety_checker(source: str) -> bool:
    """Whether a base's folder names one; it is not loaded."""
    index = Path(source) / "model_index.json"
    try:
        named = read_json(index).get("safety_checker") if index.is_file() else None
    except (UserError, OSError):  # nothing of it is needed
        return False
    return isinstance(named, list) and any(named)


def _bytes(person: "Identity") -> int:
    return person.latents.nbytes + sum(states.nbytes for states in person.states.values())


def _show_warnings_as_lines() -> None:
    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
