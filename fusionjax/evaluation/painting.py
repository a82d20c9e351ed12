"""How a suite paints: batch after batch, and into a folder what is not there yet."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fusionjax.errors import UserError, at_least, told
from fusionjax.evaluation.groups import Group, places
from fusionjax.evaluation.people import find, place_of
from fusionjax.files import whole_file, write_whole
from fusionjax.generation.generate import Generated
from fusionjax.generation.request import Request
from fusionjax.options import LARGEST_STRENGTH, Description, Settings, check_number
from fusionjax.pipeline import FusionPipeline

_HOW = "how.json"  # of what was painted here
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Painting:
    """How a suite paints.

    Attributes:
        steps: of the sampler.
        guidance_scale: classifier-free guidance.
        face_strength: λ of the faces.
        scheduler: the sampler.
        batch_size: pictures painted at once.
        seed: of the people, the prompts and the noise.
    """

    steps: int = 30
    guidance_scale: float = 7.5
    face_strength: float = 1.0
    scheduler: str = "dpmpp_2m"
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(0, seed=self.seed)
        check_number("steps", self.steps, 1, 999)
        check_number("face_strength", self.face_strength, 0, LARGEST_STRENGTH)
        Settings(scheduler=self.scheduler)  # checks it; and of these the value
        Description(guidance_scale=self.guidance_scale)

    def how(self) -> str:
        """A few words on it."""
        return (
            f"{self.steps} steps of {self.scheduler}, guidance {self.guidance_scale:g}, "
            f"face strength {self.face_strength:g}, seed {self.seed}"
        )


def at_stage(progress: Progress | None, stage: str) -> Callable[[int, int], None]:
    """Tells of one stage: how much of it is done, and of how much."""
    return lambda done, of: progress(stage, done, of) if progress else None


def generate(
    pipe: FusionPipeline,
    requests: Sequence[Request],
    suite: Painting,
    *,
    batch_size: int,
    **options: Any,
) -> Iterator[Generated]:
    """Checks all requests, then paints them as large as photos are.

    Args:
        pipe: paints.
        requests: what.
        suite: and how.
        batch_size: pictures at once.
        **options: further ones of `Settings`.
    """
    settings = Settings(
        height=pipe.photo_side,
        width=pipe.photo_side,
        num_inference_steps=suite.steps,
        scheduler=suite.scheduler,
        **options,
    )
    for request in requests:
        pipe.check(request, settings)
    return pipe.generate_each(requests, settings, batch_size=batch_size)


def paint(
    suite: Painting,
    folder: Path,
    pipe: FusionPipeline,
    groups: Sequence[Group],
    prompts: Sequence[str],
    share: tuple[int, int] | None,
    progress: Callable[[int, int], None],
) -> None:
    """Paints each person or group by each prompt into a folder, but for what is there.

    The people of a group have columns side by side, in their order.

    Args:
        suite: how.
        folder: where `people.find` finds the pictures.
        pipe: base and adapter.
        groups: who is in a picture.
        prompts: what they do.
        share: (i, n) paints the i-th of n shares of the groups; None paints all.
        progress: called with the pictures done and their number.

    Raises:
        UserError: if what is there was painted otherwise.
    """
    _check_same(folder, suite, pipe, groups, prompts)
    index, count = share or (1, 1)
    mine = groups[index - 1 :: count]
    total, done = len(mine) * len(prompts), 0
    for group in mine:
        missing = [n for n in range(len(prompts)) if find(folder, group, n) is None]
        done += len(prompts) - len(missing)
        progress(done, total)
        if not missing:
            continue
        shown = group.shown if pipe.fusion_params is not None else ()
        people = tuple(pipe.encode_identity(str(photo)) for photo in shown)
        side = pipe.photo_side
        masks = places(len(people), side, side) if len(people) > 1 else None
        first_seed = zlib.crc32(group.name.encode()) + suite.seed  # whoever is beside them
        requests = [
            Request(
                prompt=prompts[n],
                identities=people,
                masks=masks,
                face_strength=suite.face_strength,
                seed=(first_seed + n) % 2**31,
                guidance_scale=suite.guidance_scale,
            )
            for n in missing
        ]
        batch_size = min(suite.batch_size, len(prompts))
        made = generate(pipe, requests, suite, batch_size=batch_size)
        for n, each in zip(missing, made, strict=True):
            done += 1
            progress(done, total)
            if each.pixels is not None:  # else it is missing, and counted as such
                with whole_file(place_of(folder, group, n)) as beside:
                    Image.fromarray(each.pixels).save(beside, "PNG")


def _check_same(
    folder: Path,
    suite: Painting,
    pipe: FusionPipeline,
    groups: Sequence[Group],
    prompts: Sequence[str],
) -> None:
    options = ("steps", "guidance_scale", "face_strength", "scheduler", "seed")
    how: dict[str, Any] = {
        "base": pipe.base.fingerprint,
        "fusion": pipe.fingerprints.get("fusion"),
        "prompts": list(prompts),
        "photos": {
            group.name: hashlib.blake2b(
                b"".join(photo.read_bytes() for photo in group.shown), digest_size=8
            ).hexdigest()
            for group in groups
        },
        **{name: getattr(suite, name) for name in options},
    }
    place = folder / _HOW
    if place.is_file():
        before = json.loads(place.read_text(encoding="utf-8"))
        for name, value in how.items():
            same = before.get(name) == value
            if name == "prompts":  # more of them add to those of fewer
                both = zip(before.get(name, []), prompts, strict=False)
                same = all(a == b for a, b in both)
            if name == "photos":  # and so do people
                old = before.get(name, {})
                changed = [who for who in value if old.get(who, value[who]) != value[who]]
                if changed:
                    raise UserError(
                        f"{str(folder)!r} holds pictures of another photo of {told(changed[0])}; "
                        "remove that person's folder there, or name another --output"
                    )
                how[name] = old | value
                same = True
            if not same:
                raise UserError(
                    f"{str(folder)!r} holds pictures of another {name}; name another --output"
                )
        if len(before["prompts"]) > len(prompts):
            how["prompts"] = before["prompts"]
    write_whole(place, json.dumps(how, indent=1))
