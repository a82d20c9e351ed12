"""The suite `faces`: real people and prompts, painted here or by others, and the tables of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from fusionjax.errors import UserError, at_least
from fusionjax.evaluation import bounds, multiid, tables
from fusionjax.evaluation.clip_score import clip_score
from fusionjax.evaluation.faces import know, of_one, of_several
from fusionjax.evaluation.faces_report import OURS, Results, sheet, table
from fusionjax.evaluation.groups import check_method, choose_groups, in_words
from fusionjax.evaluation.judges import Judges, Seen
from fusionjax.evaluation.painting import Painting, Progress, at_stage, paint
from fusionjax.evaluation.people import extra_files, find, read_people, read_prompts
from fusionjax.evaluation.recognisers import open_judges
from fusionjax.evaluation.scores import Ask, Measure, Scores, score
from fusionjax.files import write_whole
from fusionjax.options import not_one_of
from fusionjax.pipeline import FusionPipeline

LAYOUTS = ("folders", "multiid")
LISTED = "groups.txt"


@dataclasses.dataclass(frozen=True)
class FacesSuite(Painting):
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
        layout: `multiid` puts what is painted into MultiID-Bench's layout too, see `multiid`.
        group_size: people in a picture.
        most_groups: how many groups; None is as many as there are people.
    """

    people: str
    prompts: str | None = None
    most_people: int | None = None
    most_prompts: int | None = None
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clip: str | None = None
    deepface: bool = False
    share: tuple[int, int] | None = None
    layout: str = "folders"
    group_size: int = 1
    most_groups: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise UserError(not_one_of("layout", self.layout, LAYOUTS))
        at_least(1, group_size=self.group_size)
        for name, least in (("most_people", 2), ("most_prompts", 1), ("most_groups", 1)):
            if (value := getattr(self, name)) is not None:
                at_least(least, **{name: value})
        if self.layout == "multiid":
            multiid.check_size(self.group_size)
        check_names(self.methods)


def check_names(methods: Mapping[str, str], *others: str) -> None:
    """Raises UserError if a method is called what a row of the table is called already."""
    for name in methods:
        if name in (OURS, *bounds.NAMES, *others) or not name or "|" in name:
            raise UserError(f"method {name!r} cannot be named so; choose another name")


def measure_of(judges: Judges, *, placed: bool) -> tuple[Callable[[Image.Image], Seen], Measure]:
    """How a picture is looked at, and what is measured of it.

    Args:
        judges: who look closely at people alone, else at everybody.
        placed: see `of_several`.
    """
    if judges.closely:
        return judges.see, functools.partial(of_one, judges)
    see = functools.partial(judges.see, everybody=True)
    return see, functools.partial(of_several, judges, placed)


def run(
    suite: FacesSuite,
    output: Path,
    open_pipeline: Callable[[], FusionPipeline] | None,
    progress: Progress | None = None,
) -> Results | None:
    """Paints what is not painted yet, measures everything, and writes the tables.

    Args:
        suite: what, and how.
        output: its `pictures` holds what is painted here: a second call paints only the rest. Of
            several people in a picture, `groups.txt` lists there who is painted together.
        open_pipeline: base and adapter; None measures the methods alone.
        progress: called with a stage, how much of it is done, and of how much.

    Returns:
        The results; None after a share.

    Raises:
        UserError: before anything is painted, if something is missing or does not fit together.
    """
    alone, painting = suite.group_size == 1, open_pipeline is not None
    if suite.layout == "multiid" and not painting:
        raise UserError(
            "layout is multiid, and nothing is painted here; name --base or --fusion, or leave "
            "layout out"
        )
    prompts = read_prompts(suite.prompts, suite.most_prompts, in_words(suite.group_size))
    subjects = read_people(suite.people, suite.most_people)
    groups = choose_groups(subjects, suite.group_size, suite.most_groups, suite.seed)
    if not alone:
        write_whole(output / LISTED, "".join(f"{group.name}\n" for group in groups))
    methods = {name: Path(folder) for name, folder in suite.methods.items()}
    for name, folder in methods.items():
        check_method(name, folder, groups, len(prompts))
    if not painting and (suite.share is not None or not methods):
        raise UserError(
            "nothing is to be measured; name an adapter, or methods with --method"
            + ("" if alone else f". The groups are listed in {LISTED} in --output")
        )
    clip = None if suite.clip is None else clip_score(suite.clip)
    judges = Judges(closely=False)  # of a share nothing is measured, but all must show a face
    if suite.share is None:
        judges = open_judges(suite.deepface, closely=alone)
    known = {}
    for number, subject in enumerate(subjects, 1):
        known[subject.name] = know(subject, judges)
        at_stage(progress, "people")(number, len(subjects))

    if open_pipeline is not None:
        ours = output / "pictures"
        pipe, told = open_pipeline(), at_stage(progress, "pictures")
        paint(suite, ours, pipe, groups, prompts, suite.share, told)
        methods = {OURS: ours, **methods}
        if suite.share is not None:
            return None
        if suite.layout == "multiid":
            multiid.write(output / "multiid", groups, prompts, ours)

    def scored(name: str, folder: Path) -> Scores:
        def asked(g: int, q: int) -> Ask:
            people = [known[who.name] for who in groups[g].people]
            return Ask(people, prompts[q], find(folder, groups[g], q))

        return score(
            asked, (len(groups), len(prompts)), *measure_of(judges, placed=name == OURS),
            extra=extra_files(folder, groups, len(prompts)), clip=clip,
            progress=at_stage(progress, f"measuring {name}"),
        )  # fmt: skip

    scores = {name: scored(name, folder) for name, folder in methods.items()}
    shape = bounds.shape(subjects, groups, len(prompts))
    for name, asked in bounds.bounds(subjects, groups, known).items():
        scores[name] = score(asked, shape, *measure_of(judges, placed=True))
    who = f"{len(subjects)} people"
    about = (
        f"{who if alone else f'{len(groups)} groups of {suite.group_size} of {who}'} × "
        f"{len(prompts)} prompts.{f' Painted here: {suite.how()}.' if painting else ''}"
    )
    results = Results(
        about, dataclasses.asdict(suite), [group.name for group in groups], prompts, scores,
        list(methods), judges, known,
    )  # fmt: skip
    write(results, sheet(groups, prompts, methods), output)
    return results


def write(results: Results, image: Image.Image, folder: Path) -> None:
    """Writes `table.md`, `results.json` and `sheet.png`."""
    tables.write(folder, table(results), results.as_json(), {"sheet.png": image})
