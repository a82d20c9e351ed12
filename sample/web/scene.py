"""A finished picture as a scene: what `python -m sample --scene` repeats, with all of its files."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from fusionjax.files import whole_file
from sample.inputs import checksums, file_of, renamed
from sample.job import Job

SCENE = "scene.yaml"


def write_scene(path: Path, job: Job) -> None:
    """Writes `scene.yaml` and the files that it names, as one archive.

    Args:
        path: of the archive, `*.zip`.
        job: as it was generated: every value settled.
    """
    import yaml

    sums = checksums(job)
    names = _names({file_of(name): digest for name, digest in sums.items()})

    def name(source: str) -> str:
        file = file_of(source)
        return names[file] + source[len(file) :]

    values = renamed(job, name)
    values = {key: value for key, value in values.items() if value not in (None, [], {})}
    values["people"] = [
        {key: value for key, value in person.items() if value not in (None, [], "")}
        for person in values.get("people", [])
    ]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    with whole_file(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        archive.writestr(SCENE, text)
        for file, own in names.items():
            archive.write(file, own)


def _names(files: Mapping[str, str]) -> dict[str, str]:
    """A name in the archive for each file, of which one of each content is enough.

    Args:
        files: their digests.
    """
    names: dict[str, str] = {}
    of_digest: dict[str, str] = {}
    for file, digest in files.items():
        if digest not in of_digest:
            own, number = Path(file).name, 1
            while own in (*of_digest.values(), SCENE):
                number += 1
                own = f"{number}_{Path(file).name}"
            of_digest[digest] = own
            names[file] = own
        else:
            names[file] = of_digest[digest]
    return names
