"""Reading photos: every kind of file that people have, and the face in it.

`data/astronaut.jpg` is a detail of NASA's portrait of Eileen Collins (public domain).
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from fusionjax import photos
from fusionjax.errors import UserError
from fusionjax.pixels import to_bytes, to_unit

ASTRONAUT = Path(__file__).parent / "data" / "astronaut.jpg"


@pytest.fixture
def picture():
    """Four quarters of different colours, so that every rotation differs."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:30, :40], pixels[:30, 40:], pixels[30:, :40] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
    )
    return Image.fromarray(pixels)


def test_exif_rotation_is_applied(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90° clockwise to view"
    picture.save(tmp_path / "phone.png", exif=exif)
    read = photos.read_photo(tmp_path / "phone.png")
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode, tmp_path):
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 255))
    image.paste((0, 0, 200, 0), (0, 0, 20, 40))
    if mode == "P":
        image = image.quantize(4)
    elif mode == "PA":  # to which Pillow 11 converts without the transparency
        alpha = image.getchannel("A")
        image = image.convert("RGB").convert("PA")
        image.putalpha(alpha)
    elif mode == "LA":
        image = image.convert(mode)
    path = tmp_path / ("x.tiff" if mode == "PA" else "x.png")
    try:
        image.save(path)
    except OSError:
        source = image  # no file format holds this mode; Pillow images may
    else:
        source = path
    pixels = np.asarray(photos.read_photo(source)).astype(int)
    assert (pixels[:, 2:18] > 250).all()
    assert (pixels[:, 22:38].min(-1) < 100).all()


def test_cmyk_is_converted(picture, tmp_path):
    picture.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    read = np.asarray(photos.read_photo(tmp_path / "print.jpg")).astype(int)
    assert np.abs(read[5:25, 5:35] - (200, 30, 30)).max() < 12


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff"])
def test_sixteen_bits_keep_their_range(name, tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    read = np.asarray(photos.read_photo(tmp_path / name))
    np.testing.assert_allclose(read[0, :, 0], np.linspace(0, 255, 64), atol=1)


def test_bits_and_grey_become_colour():
    for mode in ("1", "L"):
        assert photos.read_photo(Image.new(mode, (40, 40), 1)).mode == "RGB"


def test_a_colour_profile_is_applied(picture, tmp_path):
    """LAB → sRGB by profile; a profile that does not fit the pixels is passed over."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=srgb)
    read = np.asarray(photos.read_photo(tmp_path / "srgb.png")).astype(int)
    assert np.abs(read - np.asarray(picture)).max() <= 2
    picture.save(tmp_path / "odd.png", icc_profile=b"no profile at all")
    assert np.array_equal(np.asarray(photos.read_photo(tmp_path / "odd.png")), np.asarray(picture))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused_by_name(picture, suffix, tmp_path):
    path = tmp_path / f"dance.{suffix}"
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(path, save_all=True, append_images=[other])
    with pytest.raises(UserError, match=rf"dance\.{suffix} is animated.*2 frames"):
        photos.read_photo(path)


def test_a_phone_jpeg_with_a_second_view_is_a_photo(picture, tmp_path):
    path = tmp_path / "phone.jpg"
    picture.save(path, format="MPO", save_all=True, append_images=[picture.rotate(180)], quality=95)
    read = np.asarray(photos.read_photo(path)).astype(int)
    assert np.abs(read[5:25, 5:35] - (200, 30, 30)).max() < 12


def test_heic_of_a_phone_is_read_upright(picture, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(picture).save(tmp_path / "phone.heic", quality=90, exif=exif.tobytes())
    read = photos.read_photo(tmp_path / "phone.heic")
    upright = np.rot90(np.asarray(picture), -1).astype(int)
    assert np.abs(np.asarray(read).astype(int) - upright).mean() < 6  # it is compressed
    content = io.BytesIO((tmp_path / "phone.heic").read_bytes())
    assert np.array_equal(photos.read_photo(content), read)


def test_heic_without_its_library_names_it(tmp_path):
    """In a process that cannot import it; the file is a beginning of one, as phones write it."""
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    code = """
import sys
sys.modules["pillow_heif"] = None
from fusionjax.photos import read_photo
try:
    read_photo("phone.heic")
except ValueError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert said.stdout.startswith("phone.heic is a HEIC picture, which pillow-heif reads (pip ")


def test_huge_pictures_are_reduced_or_refused(tmp_path, monkeypatch):
    Image.new("L", (9000, 6000), 128).save(tmp_path / "big.jpg")
    assert max(photos.read_photo(tmp_path / "big.jpg").size) <= 9000 / 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # Pillow refuses twice this
    Image.new("L", (200, 200)).save(tmp_path / "vast.png")
    with pytest.raises(UserError, match=r"vast\.png has more than .* million pixels; reduce it"):
        photos.read_photo(tmp_path / "vast.png")


def test_what_is_no_photo_is_named(tmp_path, picture):
    with pytest.raises(UserError, match=r"nobody\.jpg does not exist"):
        photos.read_photo(tmp_path / "nobody.jpg")
    with pytest.raises(UserError, match="is a folder"):
        photos.read_photo(tmp_path)
    (tmp_path / "words.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"words\.jpg is not a picture"):
        photos.read_photo(tmp_path / "words.jpg")
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 80).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(UserError, match=r"cut\.jpg is damaged or cut off"):
        photos.read_photo(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match="has 20×90 pixels; each side needs at least 32"):
        photos.read_photo(Image.new("RGB", (20, 90)))
    with pytest.raises(UserError, match=r"float32; it must be \[height, width, 3\] of uint8"):
        photos.read_photo(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(UserError, match="floating-point pixels"):
        photos.read_photo(Image.new("F", (64, 64)))


def test_the_face_is_found_and_cut_out():
    image = photos.read_photo(ASTRONAUT)
    (left, top, width, height), *_ = photos.find_faces(image)
    assert left < 225 < left + width  # the nose
    assert top < 120 < top + height
    square = photos.face_square((left, top, width, height), *image.size)
    assert square[2] - square[0] == square[3] - square[1]
    assert 1.8 < (square[2] - square[0]) / width < 2.2
    prepared = photos.prepare_photo(ASTRONAUT, 256)
    assert prepared.size == (256, 256)
    (l2, _, w2, _), *_ = photos.find_faces(prepared)
    assert abs(l2 + w2 / 2 - 128) < 25
    assert 0.4 < w2 / 256 < 0.65


def test_a_photo_of_the_models_size_is_cut_out_too():
    """A whole figure in 512 × 512 pixels is no portrait."""
    figure = ImageOps.fit(photos.read_photo(ASTRONAUT), (512, 512))
    (_, _, before, _), *_ = photos.find_faces(figure)
    (_, _, after, _), *_ = photos.find_faces(photos.prepare_photo(figure, 512))
    assert after > 1.2 * before
    assert 0.4 < after / 512 < 0.65
    nobody = Image.new("RGB", (512, 512), "grey")
    with pytest.warns(UserWarning, match=r"no face was found in the image; .* used whole"):
        assert photos.prepare_photo(nobody, 512).size == (512, 512)


def test_the_largest_face_is_taken():
    photo = Image.open(ASTRONAUT)
    both = Image.new("RGB", (photo.width * 2, photo.height))
    both.paste(photo.resize((photo.width // 2, photo.height // 2)), (0, 0))
    both.paste(photo, (photo.width, 0))
    faces = photos.find_faces(both)
    assert len(faces) == 2
    assert faces[0][0] > photo.width
    with pytest.warns(UserWarning, match=r"2 faces were found in the image; taken is the one of"):
        taken = photos.prepare_photo(both, 128)
    left, top, right, bottom = photos.face_square(faces[0], *both.size)
    expected = both.resize((128, 128), Image.Resampling.LANCZOS, (left, top, right, bottom))
    assert np.abs(np.asarray(taken, int) - np.asarray(expected, int)).mean() < 1


def test_of_several_as_large_the_leftmost_is_taken_at_any_size():
    """The boxes of equal faces are not: the detector's pyramid has steps."""
    photo = photos.read_photo(ASTRONAUT).crop((100, 0, 360, 300))
    row = Image.new("RGB", (photo.width * 3, photo.height))
    for number in range(3):
        darker = photo.point(lambda level, n=number: int(level * (1 - 0.1 * (2 - n))))
        row.paste(darker, (number * photo.width, 0))
    for width in (700, 780, 900):
        group = row.resize((width, width * row.height // row.width))
        found = photos.find_faces(group)
        assert len(found) == 3
        chosen = photos._chosen(found)
        assert chosen[0] == min(left for left, *_ in found)


def test_a_face_is_chosen_by_its_number(tmp_path):
    """From the left; a file of that very name is meant as it is."""
    photo = photos.read_photo(ASTRONAUT).crop((100, 0, 360, 300))
    row = Image.new("RGB", (3 * photo.width, photo.height))
    for number, width in enumerate((260, 180, 220)):
        row.paste(photo.resize((width, width)), (260 * number, 20))
    row.save(tmp_path / "row.png")
    boxes = sorted(photos.find_faces(row))
    for number in (1, 2, 3):
        found = photos.prepare_photo(f"{tmp_path}/row.png#{number}", 128)  # and nothing is told
        square = photos.face_square(boxes[number - 1], *row.size)
        expected = row.resize((128, 128), Image.Resampling.LANCZOS, square)
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 2
    with pytest.raises(UserError, match=r"row\.png#4: 3 faces were found there, numbered from"):
        photos.prepare_photo(tmp_path / "row.png#4", 128)
    with pytest.raises(UserError, match=r"row\.png#2 chooses a face, and none is looked for"):
        photos.prepare_photo(tmp_path / "row.png#2", 128, crop="none")
    with pytest.raises(UserError, match=r"row\.png#0 does not exist"):
        photos.prepare_photo(tmp_path / "row.png#0", 128)
    for number, box in enumerate(boxes, 1):
        numbered = np.asarray(photos.prepare_photo(f"{tmp_path}/row.png#{number}", 128))
        left, top, width, height = box
        point = f"{left + width // 3},{top - 5}"  # on the brow, just outside the box
        pointed = photos.prepare_photo(f"{tmp_path}/row.png#{point}", 128)
        np.testing.assert_array_equal(np.asarray(pointed), numbered)
        boxed = f"{left},{top},{left + width},{top + height}"
        found = photos.prepare_photo(f"{tmp_path}/row.png#{boxed}", 128)
        np.testing.assert_array_equal(np.asarray(found), numbered)
    middle = f"{boxes[0][0] + boxes[0][2] / 2:.0f},"
    with pytest.raises(UserError, match=rf"png#5,319: no face was found there, but at .*{middle}"):
        photos.prepare_photo(tmp_path / "row.png#5,319", 128)
    with pytest.raises(UserError, match=r"#9,9,9,90 is no box in 780×300 pixels; give left"):
        photos.prepare_photo(tmp_path / "row.png#9,9,9,90", 128)
    empty = Image.new("RGB", (300, 200), "grey")
    empty.save(tmp_path / "empty.png")  # a box needs no face to be found
    assert photos.cut_photo(tmp_path / "empty.png#40,40,80,80", 128).square == (20, 20, 100, 100)
    photo.save(tmp_path / "row.png#3", "PNG")
    assert photos.prepare_photo(tmp_path / "row.png#3", 128).size == (128, 128)


def test_a_square_at_the_edge_stays_inside():
    assert photos.face_square((0, 0, 40, 40), 200, 100) == (0, 0, 80, 80)
    assert photos.face_square((150, 40, 50, 50), 200, 100) == (100, 0, 200, 100)
    assert photos.face_square((30, 30, 90, 90), 150, 140) == (5, 0, 145, 140)


def test_no_face_is_an_error_with_the_remedy(picture, tmp_path):
    picture.save(tmp_path / "flag.png")
    with pytest.raises(UserError, match=r"no face was found in .*flag\.png; cut.*crop=\"none\""):
        photos.prepare_photo(tmp_path / "flag.png", 32)
    with pytest.warns(UserWarning, match="flag.png has .* it is used whole"):
        assert photos.prepare_photo(tmp_path / "flag.png", 48, crop="none").size == (48, 48)
    with pytest.raises(UserError, match="crop is 'face'; choose one of auto, none"):
        photos.prepare_photo(tmp_path / "flag.png", 48, crop="face")


@pytest.mark.filterwarnings("ignore:.*it is used whole, with white")
@pytest.mark.parametrize("crop", ["auto", "none"])
def test_the_cut_is_square_whatever_the_photo(crop):
    assert photos.prepare_photo(ASTRONAUT, 96, crop).size == (96, 96)


def test_a_photo_of_the_models_own_size_is_used_whole(picture):
    square = picture.resize((64, 64))
    assert np.array_equal(np.asarray(photos.prepare_photo(square, 64)), np.asarray(square))


def test_arrays_there_and_back():
    levels = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)
    floats = to_unit(Image.fromarray(levels))
    assert floats.min() >= -1
    assert floats.max() <= 1
    assert np.array_equal(to_bytes(floats), levels)


def test_a_portrait_that_is_used_as_it_is_stays_whole():
    """With white beside it, and it is told."""
    pixels = np.full((90, 60, 3), 40, np.uint8)
    pixels[:10] = 200  # the head of who stands upright
    tall, wide = Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))
    with pytest.warns(UserWarning, match="has 60×90 pixels; it is used whole, with white beside"):
        kept = np.asarray(photos.prepare_photo(tall, 90, crop="none"))
    np.testing.assert_array_equal(kept[:, 15:75], pixels)
    assert (kept[:, :15] == 255).all()
    assert (kept[:, 75:] == 255).all()
    with pytest.warns(UserWarning, match="has 90×60 pixels; it is used whole"):
        lying = np.asarray(photos.prepare_photo(wide, 90, crop="none"))
    np.testing.assert_array_equal(lying, kept.transpose(1, 0, 2))
