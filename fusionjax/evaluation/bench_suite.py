"""The suite `faces` on folders of MultiID-Bench's layout, which hold people and prompts themselves.

A group is the cases that show the same photos in the same order; several pictures of a case are
pictures of its group. Of the people nothing is known but a photo of each and, perhaps, the true
picture of them together, in which each gets a face as in a painted one.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.bounds import COPIES
from fusionjax.evaluation.clip_score import clip_score
from fusionjax.evaluation.faces import assign
from fusionjax.evaluation.faces_report import Results, sheet
from fusionjax.evaluation.faces_suite import check_names, measure_of, write
from fusionjax.evaluation.groups import side_by_side
from fusionjax.evaluation.judges import SFACE, Judges, Person, Seen
from fusionjax.evaluation.multiid import BenchCase, outputs, read_cases
from fusionjax.evaluation.painting import Progress, at_stage
from fusionjax.evaluation.people import ENDINGS, is_bench
from fusionjax.evaluation.recognisers import open_judges
from fusionjax.evaluation.scores import Ask, Asked, Scores, score
from fusionjax.files import has_ending
from fusionjax.photos import read_photo

ORIGINAL = "the true picture, ori (floor)"
STRANGERS = "other cases' people, side by side (ceiling)"
_ROOM = 0.25  # of the longer side, around a face that is cut out so closely that none is found


@dataclasses.dataclass(frozen=True)
class BenchSuite:
    """What is measured.

    Attributes:
        methods: folders of MultiID-Bench's layout, by name; the first one's cases are looked for
            in all.
        clip: folder of a CLIP, for the score of the prompt.
        deepface: whether the paper's recognisers judge too, see `deepface_table`.
    """

    methods: Mapping[str, str]
    clip: str | None = None
    deepface: bool = False

    def __post_init__(self) -> None:
        check_names(self.methods, ORIGINAL, STRANGERS)
        for name, folder in self.methods.items():
            if not Path(folder).is_dir():
                raise UserError(f"method {name}: {shortened(folder, 200)!r} is no folder")
            if not is_bench(Path(folder)):
                raise UserError(
                    f"method {name}: {shortened(folder, 150)} has no case of MultiID-Bench's "
                    "layout (a folder with meta.json); for pictures of your own people name "
                    "--people FOLDER, with a folder of photos for each"
                )


@dataclasses.dataclass(frozen=True)
class _Known:
    """A case whose people are known."""

    case: BenchCase
    people: list[Person]

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def shown(self) -> tuple[Path, ...]:
        return self.case.references


def run(suite: BenchSuite, output: Path, progress: Progress | None = None) -> Results:
    """Measures the methods' pictures, and writes the tables.

    Args:
        suite: of which methods.
        output: where `table.md`, `results.json` and `sheet.png` go.
        progress: called with a stage, how much of it is done, and of how much.

    Raises:
        UserError: if a folder is none of this layout, two methods' cases show other people, or no
            case can be measured.
    """
    folders = {name: Path(folder) for name, folder in suite.methods.items()}
    first, *_ = folders
    cases = read_cases(folders[first])
    _check_same(cases, folders)
    clip = None if suite.clip is None else clip_score(suite.clip)
    judges = open_judges(suite.deepface, closely=False)
    known, unusable = _know(cases, judges, progress)
    groups: dict[str, list[tuple[_Known, int]]] = {}
    for each in known:
        count = max(len(outputs(folder, each.name)) for folder in folders.values())
        for number in range(max(count, 1)):
            groups.setdefault(each.case.shows(), []).append((each, number))
    columns = list(groups.values())
    shape = len(columns), max(len(column) for column in columns)

    def scored(name: str, folder: Path) -> Scores:
        def asked(g: int, q: int) -> Ask | None:
            if q >= len(columns[g]):
                return None
            each, number = columns[g][q]
            return Ask(each.people, each.case.prompt, _at(outputs(folder, each.name), number))

        return score(
            asked, shape, *measure_of(judges, placed=False), extra=_extra(folder, known), clip=clip,
            progress=at_stage(progress, f"measuring {name}"),
        )  # fmt: skip

    scores = {name: scored(name, folder) for name, folder in folders.items()}
    firsts = [column[0][0] for column in columns]
    for name, asked in _bounds(firsts).items():
        scores[name] = score(asked, (len(firsts), 1), *measure_of(judges, placed=False))
    people = sum(len(each.people) for each in known)
    about = f"{len(known)} cases of MultiID-Bench's layout, with {people} people."
    if unusable:
        about += (
            f" {len(unusable)} cases of {len(cases)} are left out, for it is not known who is "
            f"wanted there: {'; '.join(unusable)}."
        )
    photos = {
        f"{each.name}/{path.name}": who
        for each in known
        for path, who in zip(each.shown, each.people, strict=True)
    }
    results = Results(
        about, dataclasses.asdict(suite), [first.name for first in firsts],
        [each.case.prompt for each in known], scores, list(folders), judges, photos,
    )  # fmt: skip
    image = sheet(known, [""], folders, look_up=lambda f, who, n: _at(outputs(f, who.name), n))
    write(results, image, output)
    return results


def _check_same(cases: Sequence[BenchCase], folders: Mapping[str, Path]) -> None:
    """Raises UserError if another method's cases are of other people than the first one's."""
    first, *others = folders
    shows = {case.name: case.shows() for case in cases}
    for name in others:
        theirs = read_cases(folders[name])
        if not any(case.name in shows for case in theirs):
            raise UserError(
                f"methods {first} and {name} have no case in common; measure each by itself"
            )
        for case in theirs:
            if shows.get(case.name, case.shows()) != case.shows():
                raise UserError(
                    f"the case {shortened(case.name, 60)} of method {name} has other ref_ pictures "
                    f"than that of method {first}; measure each by itself"
                )


def _know(
    cases: Sequence[BenchCase], judges: Judges, progress: Progress | None
) -> tuple[list[_Known], list[str]]:
    """The cases that can be measured, and why others cannot."""
    known, unusable, told = [], [], at_stage(progress, "people")
    for done, case in enumerate(cases, 1):
        told(done, len(cases))
        people = []
        for path in case.references:
            try:
                seen = _who(path, judges)
            except UserError:
                unusable.append(f"{case.name} ({path.name} cannot be read)")
                break
            if SFACE.name not in seen.vectors:
                unusable.append(f"{case.name} (no face in {path.name})")
                break
            people.append(seen)
        else:
            known.append(_Known(case, _with_original(people, case.original, judges)))
    if not known:
        raise UserError(f"no case can be measured: {'; '.join(unusable)}")
    return known, unusable


def _who(photo: Path, judges: Judges) -> Seen:
    """The largest face of a photo; one that fills it is found with black around it."""
    image = read_photo(photo)
    seen = judges.see(image)
    if SFACE.name not in seen.vectors:
        room = round(_ROOM * max(image.size))
        wide = Image.new("RGB", (image.width + 2 * room, image.height + 2 * room))
        wide.paste(image, (room, room))
        seen = judges.see(wide)
    return seen


def _with_original(
    references: Sequence[Seen], original: Path | None, judges: Judges
) -> list[Person]:
    """People with their faces in the true picture, as far as it shows them to each judge."""
    found: list[dict[str, np.ndarray]] = [{} for _ in references]
    if original is not None:
        with contextlib.suppress(UserError):  # counted, for the original is measured too
            seen = judges.see(read_photo(original), everybody=True)
            for each in judges.recognisers:
                if any(each.name not in one.vectors for one in (seen, *references)):
                    continue
                ours = seen.vectors[each.name]
                shown = [reference.vectors[each.name] for reference in references]
                apart = [each.distances(ours, vectors).min(axis=1) for vectors in shown]
                for own, face in zip(found, assign(-np.stack(apart, axis=1)), strict=True):
                    if face >= 0:
                        own[each.name] = ours[face : face + 1]
    return [
        (reference, Seen(own)) if own else (reference,)
        for reference, own in zip(references, found, strict=True)
    ]


def _bounds(groups: Sequence[_Known]) -> dict[str, Asked]:
    """What true pictures, copies and strangers get, once for each group."""

    def original(g: int, q: int) -> Ask:
        return Ask([who[:1] for who in groups[g].people], "", groups[g].case.original)

    def copy(g: int, q: int) -> Ask:
        return Ask(groups[g].people, "", side_by_side(groups[g].shown))

    def strangers(g: int, q: int) -> Ask:
        # Others may be the same people by other photos, so the recogniser must say they are not.
        own = np.concatenate([who[0].vectors[SFACE.name] for who in groups[g].people])
        after = [groups[(g + step) % len(groups)] for step in range(1, len(groups))]
        found = [
            path
            for other in after
            for who, path in zip(other.people, other.shown, strict=True)
            if SFACE.distance(own, who[0].vectors[SFACE.name]) > SFACE.bound
        ][: len(own)]
        return Ask(groups[g].people, "", side_by_side(found) if found else None)

    bounds: dict[str, Asked] = {COPIES: copy}
    if any(group.case.original is not None for group in groups):
        bounds = {ORIGINAL: original, **bounds}
    if len(groups) > 1:
        bounds[STRANGERS] = strangers
    return bounds


def _at(pictures: Sequence[Path], number: int) -> Path | None:
    return pictures[number] if number < len(pictures) else None


def _extra(folder: Path, known: Sequence[_Known]) -> int:
    """Pictures that are neither a case's nor painted for one that is measured."""
    looked_for = {path for each in known for path in outputs(folder, each.name)}
    return sum(
        1
        for path in folder.rglob("*")
        if has_ending(path, ENDINGS)
        and path not in looked_for
        and not path.stem.startswith(("ref_", "ori"))
    )
