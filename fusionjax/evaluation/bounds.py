"""The rows of a table that need no method: what true photos, copies and strangers get."""

from collections.abc import Mapping, Sequence

from PIL import Image

from fusionjax.evaluation.groups import Group, side_by_side
from fusionjax.evaluation.judges import Person, Seen
from fusionjax.evaluation.people import Subject, shown_photo
from fusionjax.evaluation.scores import Ask, Asked

TRUTH = "another true photo (floor)"
COPY = "the photo itself (a copy)"
STRANGER = "a different person (ceiling)"
TRUTHS = "other true photos, side by side (floor)"
COPIES = "the photos themselves, side by side (a copy)"
SWAPPED = "true photos, everybody in another's place"
STRANGERS = "different people, side by side (ceiling)"
NAMES = (TRUTH, COPY, STRANGER, TRUTHS, COPIES, SWAPPED, STRANGERS)


def shape(subjects: Sequence[Subject], groups: Sequence[Group], prompts: int) -> tuple[int, int]:
    """How many pictures a bound has: of each person's other photos each once, for no prompt."""
    return len(groups), min(prompts, max(len(subject.photos) for subject in subjects) - 1)


def bounds(
    subjects: Sequence[Subject], groups: Sequence[Group], known: Mapping[str, Person]
) -> dict[str, Asked]:
    """What a perfect picture, a copy, one with everybody misplaced and a stranger's would get.

    Of people alone their photos are judged, which was done already; of several they are put
    together side by side.

    Args:
        subjects: the people.
        groups: who is in a picture.
        known: what judges see in each person's photos.
    """
    alone = len(groups[0].people) == 1

    def picture(photos: Sequence[tuple[Subject, int]]) -> Seen | Image.Image:
        if alone:
            (who, which), *_ = photos
            return known[who.name][which]
        return side_by_side([who.photos[which] for who, which in photos])

    def others_of(g: int, q: int) -> list[tuple[Subject, int]]:
        return [(who, 1 + shown_photo(who, q)) for who in groups[g].people]

    def without(g: int, q: int) -> list[Person]:
        """What else is known of the people: a photo is not compared with itself."""
        return [
            (*known[who.name][:which], *known[who.name][which + 1 :])
            for who, which in others_of(g, q)
        ]

    def truth(g: int, q: int) -> Ask:
        return Ask(without(g, q), "", picture(others_of(g, q)))

    def swapped(g: int, q: int) -> Ask:
        first, *rest = others_of(g, q)
        return Ask(without(g, q), "", picture([*rest, first]))

    def copy(g: int, q: int) -> Ask:
        people = groups[g].people
        return Ask([known[who.name] for who in people], "", picture([(who, 0) for who in people]))

    def strangers(g: int, q: int) -> Ask:
        people = groups[g].people
        after = [*subjects[g + 1 :], *subjects[: g + 1]] if alone else subjects
        others = [subject for subject in after if subject not in people]
        turn = 0 if alone else q
        shown = [(others[(turn + place) % len(others)], 0) for place in range(len(people))]
        return Ask([known[who.name] for who in people], "", picture(shown))

    if alone:
        return {TRUTH: truth, COPY: copy, STRANGER: strangers}
    found: dict[str, Asked] = {TRUTHS: truth, COPIES: copy, SWAPPED: swapped}
    if any(len(group.people) < len(subjects) for group in groups):
        found[STRANGERS] = strangers
    return found
