"""How long the suite `faces` takes to measure a folder of pictures that are painted already.

    python benchmarks/evaluate.py [--people 24] [--prompts 4] [--group-size 1]

Four people's photos (`tests/photos`, scikit-image's astronaut), each turned and darkened another
way, stand for everybody: two photos each to know, and one for every prompt to measure, as large as
Stable Diffusion 1.5 paints them. All that the table needs is timed, from reading the photos to
writing the sheet, with the recognisers that are installed; and the processor's time, which tells
what other programs on the machine have not taken. On two cores:

    96 pictures of 1, by SFace, dlib: 47 s, of which the processor 54 s; 2 cores, load 2.4
    96 pictures of 1, by SFace, dlib: 258 s, of which the processor 54 s; 2 cores, load 9.5
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from fusionjax.evaluation import faces_suite
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.groups import choose_groups, side_by_side
from fusionjax.evaluation.people import place_of, read_people

PHOTOS = Path(__file__).parents[1] / "tests" / "photos"
SIDE = 512


def photo(number: int) -> Image.Image:
    """The photo of that number, unlike all others."""
    known = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    known.append(Image.fromarray(data.astronaut()).crop((60, 0, 400, 340)))
    image = known[number % len(known)]
    image = ImageOps.mirror(image) if number // len(known) % 2 else image
    image = image.rotate(number % 11 - 5, fillcolor="grey")
    return ImageOps.pad(ImageEnhance.Brightness(image).enhance(0.8 + number % 7 / 15), (SIDE, SIDE))


def main() -> None:
    """Prints the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for who in range(options.people):
            (folder / "people" / f"{who:03d}").mkdir(parents=True)
            for number in range(2):
                image = photo(who + 4 * number)
                image.save(folder / "people" / f"{who:03d}" / f"{number}.png")
        groups = choose_groups(read_people(folder / "people"), options.group_size)
        for place, group in enumerate(groups):
            for number in range(options.prompts):
                path = place_of(folder / "method", group, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                if options.group_size == 1:
                    photo(place + 4 * (2 + number)).save(path)
                else:
                    side_by_side([who.photos[1] for who in group.people]).save(path)
        (folder / "prompts.txt").write_text("a photo of {person}\n" * options.prompts)
        suite = FacesSuite(
            str(folder / "people"), str(folder / "prompts.txt"),
            methods={"method": str(folder / "method")}, group_size=options.group_size,
        )  # fmt: skip
        began, used = time.perf_counter(), time.process_time()
        results = faces_suite.run(suite, folder, None)
        seconds, used = time.perf_counter() - began, time.process_time() - used
    assert results is not None
    judges = ", ".join(each.name for each in results.judges.recognisers)
    pictures = len(groups) * options.prompts
    print(
        f"{pictures} pictures of {options.group_size}, by {judges}: {seconds:.0f} s, of which the "
        f"processor {used:.0f} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
