"""The suite `faces` for several people in a picture: chosen from a folder, or MultiID-Bench's."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fusionjax.errors import UserError, at_least
from fusionjax.evaluation import faces, faces_suite, group_measures, multiid
from fusionjax.evaluation.clip_score import clip_score
from fusionjax.evaluation.faces_report import OURS, painted_how, sheet
from fusionjax.evaluation.faces_suite import FacesSuite, Progress
from fusionjax.evaluation.group_measures import Ask, GroupScores, Wanted
from fusionjax.evaluation.group_report import GroupResults, write
from fusionjax.evaluation.groups import Group, check_method, choose_groups, in_words, side_by_side
from fusionjax.evaluation.people import Subject, extra_files, find, read_people, read_prompts
from fusionjax.files import write_whole
from fusionjax.pipeline import FusionPipeline

TRUTH = "other true photos, side by side (floor)"
COPY = "the photos themselves, side by side (a copy)"
SWAPPED = "true photos, everybody in another's place"
STRANGERS = "different people, side by side (ceiling)"
LISTED = "groups.txt"


@dataclasses.dataclass(frozen=True)
class GroupSuite(FacesSuite):
    """What is painted, and how.

    Attributes:
        group_size: people in a picture.
        most_groups: how many groups; None is as many as there are people.
    """

    group_size: int = 2
    most_groups: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, group_size=self.group_size)
        if self.deepface:
            raise UserError("--deepface judges pictures of one person; leave --group-size out")
        if self.most_groups is not None:
            at_least(1, most_groups=self.most_groups)
        if self.layout == "multiid":
            multiid.check_size(self.group_size)
        for name in self.methods:
            if name in (TRUTH, COPY, SWAPPED, STRANGERS):
                raise UserError(f"method {name!r} cannot be named so; choose another name")


def run(
    suite: GroupSuite,
    output: Path,
    open_pipeline: Callable[[], FusionPipeline] | None,
    progress: Progress | None = None,
) -> GroupResults | None:
    """Paints what is not painted yet, measures everything, and writes the tables.

    Args:
        suite: what, and how.
        output: as of `faces_suite.run`; `groups.txt` lists there who is painted together.
        open_pipeline: base and adapter; None measures the methods alone.
        progress: called with a stage, how much of it is done, and of how much.

    Returns:
        The results; None after a share.

    Raises:
        UserError: before anything is painted, if something is missing or does not fit together.
    """
    subjects = read_people(suite.people, suite.most_people)
    groups = choose_groups(subjects, suite.group_size, suite.most_groups, suite.seed)
    prompts = read_prompts(suite.prompts, suite.most_prompts, in_words(suite.group_size))
    write_whole(output / LISTED, "".join(f"{group.name}\n" for group in groups))
    methods = {name: Path(folder) for name, folder in suite.methods.items()}
    for name, folder in methods.items():
        check_method(name, folder, groups, len(prompts))
    clip = None if suite.clip is None else clip_score(suite.clip)
    faces_suite.check_layout(suite, open_pipeline is not None)
    if open_pipeline is None and (suite.share is not None or not methods):
        raise UserError(
            "nothing is to be measured; name an adapter, or methods with --method. The groups are "
            f"listed in {LISTED} in --output"
        )

    def at(stage: str) -> faces.Progress:
        return lambda done, of: progress(stage, done, of) if progress else None

    if open_pipeline is not None:
        ours = output / "pictures"
        faces_suite.paint(suite, ours, open_pipeline(), groups, prompts, at("pictures"))
        methods = {OURS: ours, **methods}
    if suite.share is not None:
        return None
    if open_pipeline is not None and suite.layout == "multiid":
        multiid.write(output / "multiid", groups, prompts, ours)
    known = {subject.name: _wanted(subject) for subject in subjects}

    def scored(name: str, folder: Path) -> GroupScores:
        def asked(g: int, q: int) -> Ask:
            people = [known[person.name] for person in groups[g].people]
            return Ask(people, prompts[q], find(folder, groups[g], q))

        return group_measures.score(
            asked, (len(groups), len(prompts)), placed=name == OURS, clip=clip,
            extra=extra_files(folder, groups, len(prompts)), progress=at(f"measuring {name}"),
        )  # fmt: skip

    scores = {name: scored(name, folder) for name, folder in methods.items()}
    scores |= _bounds(subjects, groups, known, len(prompts))
    about = (
        f"{len(groups)} groups of {suite.group_size} of {len(subjects)} people × {len(prompts)} "
        f"prompts.{painted_how(suite) if OURS in methods else ''}"
    )
    results = GroupResults(
        about, dataclasses.asdict(suite), [group.name for group in groups], prompts, scores,
        list(methods),
    )  # fmt: skip
    write(results, sheet(groups, prompts, methods), output)
    return results


def _wanted(subject: Subject) -> Wanted:
    known = faces.know(subject)
    return Wanted(known.reference, known.others)


def _bounds(
    subjects: Sequence[Subject],
    groups: Sequence[Group],
    known: dict[str, Wanted],
    prompts: int,
) -> dict[str, GroupScores]:
    """What true photos put together would get: as they should be, as copies, swapped, of others."""

    def true_photos(g: int, q: int) -> tuple[list[Path], list[Wanted]]:
        shown, people = [], []
        for person in groups[g].people:
            which = faces.shown_photo(person, q)
            who = known[person.name]
            shown.append(person.photos[1 + which])
            others = np.delete(who.others, which, axis=0)  # it is not compared with itself
            people.append(Wanted(who.reference, others))
        return shown, people

    def truth(g: int, q: int) -> Ask:
        shown, people = true_photos(g, q)
        return Ask(people, "", side_by_side(shown))

    def swapped(g: int, q: int) -> Ask:
        shown, people = true_photos(g, q)
        return Ask(people, "", side_by_side([*shown[1:], shown[0]]))

    def copy(g: int, q: int) -> Ask:
        people = [known[person.name] for person in groups[g].people]
        return Ask(people, "", side_by_side(groups[g].shown))

    def strangers(g: int, q: int) -> Ask:
        size = len(groups[g].people)
        people = [known[person.name] for person in groups[g].people]
        others = [subject for subject in subjects if subject not in groups[g].people]
        shown = [others[(q + place) % len(others)].photos[0] for place in range(size)]
        return Ask(people, "", side_by_side(shown))

    few = min(prompts, max(len(subject.photos) for subject in subjects) - 1)
    bounds: dict[str, Callable[[int, int], Ask]] = {TRUTH: truth, COPY: copy, SWAPPED: swapped}
    if any(len(group.people) < len(subjects) for group in groups):
        bounds[STRANGERS] = strangers
    return {
        name: group_measures.score(asked, (len(groups), few), placed=True)
        for name, asked in bounds.items()
    }
