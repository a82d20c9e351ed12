"""MultiID-Bench's folders, of the paper WithAnyone (arXiv 2510.14975), read and written.

ROOT/id7/out.jpg            what a method painted; out_1.jpg, out_2.jpg, … if it painted several
ROOT/id7/ori.jpg            the true picture of these people, if there is one
ROOT/id7/ref_1.jpg, …       a photo of each person
ROOT/id7/meta.json          {"prompt": "…"}

Source: github.com/Doby-Xu/WithAnyone at 996d152, MultiID-Bench/README.md (the layout), eval.py
(reads the folders in ROOT, four references at most; its defaults are output_0.jpg and the key
caption_en) and infer_withanyone.py (writes out.jpg, counts references from ref_0.jpg, and keeps
`name` beside the prompt). All of that is read here; what is written is what the README says.
The dataset WithAnyone/MultiID-Bench itself is a parquet file, which their hf2bench.py unpacks.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.groups import Group, side_by_side
from fusionjax.evaluation.people import ENDINGS, case_of, find, shown_photo
from fusionjax.files import has_ending, whole_folder
from fusionjax.photos import read_photo
from fusionjax.schema import read_json

MOST_REFERENCES = 4
_PROMPTS = ("prompt", "caption_en")
_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class BenchCase:
    """A picture that is wanted.

    Attributes:
        name: of its folder.
        references: a photo of each person.
        original: the true picture of them; None if there is none.
        prompt: what they should do; empty if it is not told.
    """

    name: str
    references: tuple[Path, ...]
    original: Path | None
    prompt: str

    def shows(self) -> str:
        """Tells apart who is shown: the same for the same photos in the same order."""
        told_apart = hashlib.blake2b(digest_size=8)
        for path in self.references:
            told_apart.update(hashlib.blake2b(path.read_bytes()).digest())
        return told_apart.hexdigest()


def read_cases(root: Path) -> list[BenchCase]:
    """Reads what is wanted, in the order of the names; folders without `meta.json` are no cases.

    Raises:
        UserError: if a case has no reference, more than one original, or its `meta.json` cannot be
            read.
    """
    cases = []
    for meta in sorted(root.glob("*/meta.json")):
        folder = meta.parent
        references, originals = _pictures(folder, r"ref_\d+"), _pictures(folder, "ori")
        where = shortened(str(folder), 200)
        if not references:
            raise UserError(f"{where} has meta.json and no ref_1.jpg; add the people's photos")
        if len(originals) > 1:
            raise UserError(f"{where} has {' and '.join(p.name for p in originals)}; keep one")
        values: dict[str, Any] = read_json(meta)
        prompt = next((values[key] for key in _PROMPTS if values.get(key)), "")
        if not isinstance(prompt, str):
            raise UserError(f"{shortened(str(meta), 200)}: prompt is no text")
        original = originals[0] if originals else None
        cases.append(BenchCase(folder.name, tuple(references), original, prompt))
    return cases


def outputs(root: Path, name: str) -> list[Path]:
    """What a method painted for a case: out.jpg, or several in the order of their numbers."""
    return _pictures(root / name, r"out(put)?(_?\d+)?")


def _pictures(folder: Path, stem: str) -> list[Path]:
    """A case's pictures by their names, in the order of the numbers in them."""
    found = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if has_ending(path, ENDINGS) and re.fullmatch(stem, path.stem)
    ]
    return sorted(found, key=lambda path: (int("".join(re.findall(r"\d", path.stem)) or -1), path))


def write(root: Path, groups: Sequence[Group], prompts: Sequence[str], pictures: Path) -> None:
    """Puts what was painted where MultiID-Bench's script finds it, a case a picture.

    The case ada+ben_0001 is that of ada and ben by the first prompt. What is not painted has no
    out.jpg, and their script counts it as failed. For want of a true picture of the people
    together, ori.jpg is other true photos of theirs, side by side.

    Args:
        root: the folder of all cases; those of the same name are written anew.
        groups: the people in each picture.
        prompts: by which they were painted.
        pictures: where `people.find` finds what was painted.

    Raises:
        UserError: if a picture cannot be read, or nothing can be written.
    """
    for group in groups:
        references = {f"ref_{n}": read_photo(path) for n, path in enumerate(group.shown, 1)}
        for number, prompt in enumerate(prompts):
            others = [who.photos[1 + shown_photo(who, number)] for who in group.people]
            images = {**references, "ori": side_by_side(others)}
            if (picture := find(pictures, group, number)) is not None:
                images["out"] = read_photo(picture)
            meta = {"prompt": prompt, "name": [who.name for who in group.people]}
            place = root / case_of(group, number)
            if place.is_dir():
                shutil.rmtree(place)
            with whole_folder(place) as folder:
                for stem, image in images.items():
                    image.save(folder / f"{stem}.jpg", quality=_QUALITY, subsampling=0)
                text = json.dumps(meta, indent=4, ensure_ascii=False)
                (folder / "meta.json").write_text(text, encoding="utf-8")


def check_size(people: int) -> None:
    """Raises UserError if a picture has more people than MultiID-Bench's script reads."""
    if people > MOST_REFERENCES:
        raise UserError(
            f"group_size is {people}, and layout is multiid: MultiID-Bench's script reads "
            f"{MOST_REFERENCES} references at most; make the groups smaller, or leave layout out"
        )
