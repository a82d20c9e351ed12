"""A folder of people for the suite `faces`: real photos, and pictures of several side by side."""

from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps
from skimage import data

PHOTOS = Path(__file__).parent / "photos"


def write_people(folder):
    """Four people, of each a photo and two that are unlike it."""
    found = {path.stem: Image.open(path) for path in sorted(PHOTOS.glob("*.jpg"))}
    found["eileen_collins"] = Image.fromarray(data.astronaut()).crop((60, 0, 400, 340))
    for name, photo in found.items():
        (folder / name).mkdir()
        photo.save(folder / name / "1.png")
        turned = ImageOps.mirror(photo).rotate(12, fillcolor="grey")
        turned.resize((200, 200 * photo.height // photo.width)).save(folder / name / "2.png")
        ImageEnhance.Brightness(photo.rotate(-9)).enhance(0.6).save(folder / name / "3.jpg")
    return folder


def beside(photos, path, side=240):
    """Writes a picture of several people: whole photos at the same height, from left to right."""
    together = Image.new("RGB", (side * len(photos), side), "grey")
    for place, photo in enumerate(photos):
        with Image.open(photo) as image:
            together.paste(ImageOps.pad(image.convert("RGB"), (side, side)), (side * place, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    together.save(path)
    return path
