"""The suite `faces`: real people and prompts, painted here or by others, and the tables of it."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fusionjax.errors import UserError, at_least, told
from fusionjax.evaluation import faces, faces_report, multiid
from fusionjax.evaluation.clip_score import clip_score
from fusionjax.evaluation.faces_report import OURS
from fusionjax.evaluation.groups import Group, places
from fusionjax.evaluation.judges import Judges
from fusionjax.evaluation.people import (
    Shown,
    Subject,
    check_method,
    find,
    place_of,
    read_people,
    read_prompts,
)
from fusionjax.evaluation.recognisers import open_judges
from fusionjax.files import whole_file, write_whole
from fusionjax.generation.request import Request
from fusionjax.options import Settings, check_number, not_one_of
from fusionjax.pipeline import FusionPipeline

TRUTH = "another true photo (floor)"
COPY = "the photo itself (a copy)"
STRANGER = "a different person (ceiling)"
LAYOUTS = ("folders", "multiid")
_HOW = "how.json"  # of what was painted here
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class FacesSuite:
    """What is painted, and how.

    Attributes:
        people: folder of the people's photos.
        prompts: file of prompts; None is the package's list.
        most_people: how many are taken.
        most_prompts: likewise.
        methods: folders of pictures to measure, by name.
        clip: folder of a CLIP, for the score of the prompt.
        deepface: whether the paper's recognisers judge too, see `deepface_table`.
        share: (i, n) paints the i-th of n shares of the people and measures nothing.
        steps: of the sampler.
        guidance_scale: classifier-free guidance.
        face_strength: λ of the faces.
        scheduler: the sampler.
        batch_size: pictures painted at once.
        seed: of the noise.
        layout: `multiid` puts what is painted into MultiID-Bench's layout too, see `multiid`.
    """

    people: str
    prompts: str | None = None
    most_people: int | None = None
    most_prompts: int | None = None
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clip: str | None = None
    deepface: bool = False
    share: tuple[int, int] | None = None
    steps: int = 30
    guidance_scale: float = 7.5
    face_strength: float = 1.0
    scheduler: str = "dpmpp_2m"
    batch_size: int = 4
    seed: int = 0
    layout: str = "folders"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(not_one_of("layout", self.layout, LAYOUTS))
        at_least(1, batch_size=self.batch_size)
        for name in ("most_people", "most_prompts"):
            if (value := getattr(self, name)) is not None:
                at_least(2 if name == "most_people" else 1, **{name: value})
        check_number("steps", self.steps, 1, 999)
        for name in self.methods:
            if name in (OURS, TRUTH, COPY, STRANGER) or not name or "|" in name:
                raise UserError(f"method {name!r} cannot be named so; choose another name")


def run(
    suite: FacesSuite,
    output: Path,
    open_pipeline: Callable[[], FusionPipeline] | None,
    progress: Progress | None = None,
) -> faces_report.FacesResults | None:
    """Paints what is not painted yet, measures everything, and writes the tables.

    Args:
        suite: what, and how.
        output: its `pictures` holds what is painted here: a second call paints only the rest.
        open_pipeline: base and adapter; None measures the methods alone.
        progress: called with a stage, how much of it is done, and of how much.

    Returns:
        The results; None after a share.

    Raises:
        UserError: before anything is painted, if something is missing or does not fit together.
    """
    subjects = read_people(suite.people, suite.most_people)
    prompts = read_prompts(suite.prompts, suite.most_prompts)
    methods = {name: Path(folder) for name, folder in suite.methods.items()}
    for name, folder in methods.items():
        check_method(name, folder, subjects, len(prompts))
    clip = None if suite.clip is None else clip_score(suite.clip)
    check_layout(suite, open_pipeline is not None)
    if open_pipeline is None and (suite.share is not None or not methods):
        raise UserError("nothing is to be measured; name an adapter, or methods with --method")
    judges = Judges() if suite.share is not None else open_judges(suite.deepface)

    def at(stage: str) -> faces.Progress:
        return lambda done, of: progress(stage, done, of) if progress else None

    if open_pipeline is not None:
        ours = output / "pictures"
        paint(suite, ours, open_pipeline(), subjects, prompts, at("pictures"))
        methods = {OURS: ours, **methods}
    if suite.share is not None:
        return None
    if OURS in methods and suite.layout == "multiid":
        alone = [Group((subject,)) for subject in subjects]
        multiid.write(output / "multiid", alone, prompts, ours)
    known = [faces.know(subject, judges) for subject in subjects]
    scores = {}
    for name, folder in methods.items():
        scores[name] = faces.score_folder(
            folder, subjects, known, prompts,
            clip=clip, judges=judges, progress=at(f"measuring {name}"),
        )  # fmt: skip
    # What a perfect picture, a copy and a stranger's would get: no prompt is in them.
    following = dict(zip(subjects, [*subjects[1:], subjects[0]], strict=True))
    bounds: dict[str, Callable[[Subject, int], Path]] = {
        TRUTH: lambda subject, number: subject.photos[1 + faces.shown_photo(subject, number)],
        COPY: lambda subject, number: subject.photos[0],
        STRANGER: lambda subject, number: following[subject].photos[0],
    }
    few = prompts[: max(len(subject.photos) for subject in subjects) - 1]
    for name, pictures in bounds.items():
        left_out = faces.shown_photo if name == TRUTH else None
        scores[name] = faces.score(pictures, subjects, known, few, left_out=left_out, judges=judges)
    results = faces_report.FacesResults(
        suite, [s.name for s in subjects], prompts, scores, judges, [each.seen for each in known]
    )
    sheet = faces_report.sheet(subjects, prompts, methods)
    faces_report.write(results, sheet, output)
    return results


def check_layout(suite: FacesSuite, painting: bool) -> None:
    """Raises UserError if a layout is asked for pictures that nobody paints."""
    if suite.layout == "multiid" and not painting:
        raise UserError(
            "layout is multiid, and nothing is painted here; name --base or --fusion, or leave "
            "layout out"
        )


def paint(
    suite: FacesSuite,
    folder: Path,
    pipe: FusionPipeline,
    subjects: Sequence[Shown],
    prompts: Sequence[str],
    progress: faces.Progress,
) -> None:
    """Paints each person or group by each prompt into a folder, but for what is there.

    The people of a group have columns side by side, in their order.

    Raises:
        UserError: if what is there was painted otherwise.
    """
    _check_same(folder, suite, pipe, subjects, prompts)
    index, count = suite.share or (1, 1)
    mine = subjects[index - 1 :: count]
    settings = Settings(
        height=pipe.photo_side,
        width=pipe.photo_side,
        num_inference_steps=suite.steps,
        scheduler=suite.scheduler,
    )
    total, done = len(mine) * len(prompts), 0
    for subject in mine:
        missing = [n for n in range(len(prompts)) if find(folder, subject, n) is None]
        done += len(prompts) - len(missing)
        progress(done, total)
        if not missing:
            continue
        shown = subject.shown if pipe.fusion_params is not None else ()
        people = tuple(pipe.encode_identity(str(photo)) for photo in shown)
        masks = places(len(people), *settings.size) if len(people) > 1 else None
        first_seed = zlib.crc32(subject.name.encode()) + suite.seed  # whoever is beside them
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
        for request in requests:
            pipe.check(request, settings)
        batch_size = min(suite.batch_size, len(prompts))
        for n, made in zip(
            missing, pipe.generate_each(requests, settings, batch_size=batch_size), strict=True
        ):
            done += 1
            progress(done, total)
            if made.pixels is not None:  # else it is missing, and counted as such
                with whole_file(place_of(folder, subject, n)) as beside:
                    Image.fromarray(made.pixels).save(beside, "PNG")


def _check_same(
    folder: Path,
    suite: FacesSuite,
    pipe: FusionPipeline,
    subjects: Sequence[Shown],
    prompts: Sequence[str],
) -> None:
    options = ("steps", "guidance_scale", "face_strength", "scheduler", "seed")
    how: dict[str, Any] = {
        "base": pipe.base.fingerprint,
        "fusion": pipe.fingerprints.get("fusion"),
        "prompts": list(prompts),
        "photos": {
            subject.name: hashlib.blake2b(
                b"".join(photo.read_bytes() for photo in subject.shown), digest_size=8
            ).hexdigest()
            for subject in subjects
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
