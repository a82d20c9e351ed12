"""Small faces: where they are, whose they are, and that they alone are painted again."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusionjax.embedded import MINI_FACE
from fusionjax.generation.face_detail import find_places, soft_square, with_detailed_faces
from fusionjax.generation.generate import Generated
from fusionjax.generation.request import FaceDetail, Request
from fusionjax.options import Settings
from tests import tiny

ASTRONAUT = Image.fromarray(data.astronaut()).crop((128, 0, 384, 256)).resize((128, 128))
DRAWN = Image.open(MINI_FACE).convert("RGB")


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipe()


@pytest.fixture(scope="module")
def people():
    return list(tiny.tiny_people())


@pytest.fixture(scope="module")
def two():
    """A photographed face at the left, a drawn one of a quarter of the width at the right."""
    picture = Image.new("RGB", (256, 128), "grey")
    picture.paste(ASTRONAUT, (0, 0))
    picture.paste(DRAWN.resize((96, 96), Image.Resampling.LANCZOS), (150, 16))
    return np.asarray(picture)


def halves(height=128, width=256):
    masks = np.zeros((2, height, width), np.float32)
    masks[0, :, : width // 2] = masks[1, :, width // 2 :] = 1
    return masks


def is_around(box, column, row):
    left, top, right, bottom = box
    return left < column < right and top < row < bottom and right - left == bottom - top


def test_faces_are_found_in_photographs_and_drawings_and_matched(two, people):
    """From left to right without masks; by whose mask a face lies in with them."""
    left, right = find_places(two, Request("x", identities=people))
    assert left.why == right.why == "found"
    assert is_around(left.box, 48, 55)
    assert is_around(right.box, 198, 65)
    assert not is_around(left.box, 198, 65)
    swapped = find_places(two, Request("x", identities=people, masks=halves()[::-1].copy()))
    assert [place.box for place in swapped] == [right.box, left.box]


def test_where_no_face_is_found_it_is_at_the_top_of_the_mask(people):
    blank = np.full((64, 64, 3), 128, np.uint8)
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, 8:60, 4:24] = masks[1, 20:36, 32:64] = 1
    left, right = find_places(blank, Request("x", identities=people, masks=masks))
    assert left.box == (2, 6, 27, 31), "a square of 1.25 times the mask's 20 columns"
    assert is_around(right.box, 48, 28)
    assert left.why.startswith("no face was found")
    for request, why in (
        (Request("x", identities=people), "0 faces were found for 2 people"),
        (Request("x", identities=people[:1]), "no face was found"),
    ):
        assert {(place.box, place.why[: len(why)]) for place in find_places(blank, request)} == {
            (None, why)
        }


def test_a_soft_square_is_whole_in_the_middle_and_nothing_outside():
    share = soft_square((20, 10, 60, 50), 100, 80)
    assert share.shape == (80, 100)
    assert share[30, 40] == 1
    outside = share.copy()
    outside[10:50, 20:60] = 0
    assert not outside.any()
    assert np.abs(np.diff(share, axis=1)).max() < 0.4
    corner = soft_square((0, 0, 40, 40), 100, 80)
    assert (corner[:20, :20] == 1).all(), "there is no edge where the image ends"


def test_what_is_small_and_free_is_painted_again_and_nothing_else(two, people):
    """What paints is given as a constant, so that every pixel can be foretold."""
    asked = []

    def generate(requests, settings):
        asked.extend(requests)
        for request in requests:
            red = np.zeros((128, 128, 3), np.uint8)
            red[..., 0] = 255
            assert request.image.shape == red.shape
            yield Generated(red, np.zeros((1, 1, 4), np.float32), None)

    request = Request("x", identities=people, masks=halves(), face_strength=[0.5, 2.0], seed=3)
    settings = Settings(height=128, width=256, face_detail=True).face_pass(128)
    image = Generated(two, np.zeros((1, 1, 4), np.float32), None)
    (done,) = with_detailed_faces([request], [image], settings, 128, generate)
    assert [each.face_strength for each in asked] == [0.5, 2.0]
    assert [each.identities for each in asked] == [(person,) for person in people]
    for face, (column, row) in zip(done.faces, ((48, 55), (198, 65)), strict=True):
        assert face.side == 128
        assert is_around(face.box, column, row)
        assert str(face).endswith("is painted again at 128 (found)")
        np.testing.assert_array_equal(done.pixels[row, column], [255, 0, 0])
    outside = np.ones((128, 256), bool)
    for face in done.faces:
        left, top, right, bottom = face.box
        outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(done.pixels[outside], two[outside])

    stays = np.zeros((128, 256), np.float32)
    stays[:, :128] = 1
    (half,) = with_detailed_faces(
        [dataclasses.replace(request, mask_image=stays)], [image], settings, 128, generate
    )
    np.testing.assert_array_equal(half.pixels[:, 128:], two[:, 128:])
    assert "it lies where the image stays" in str(half.faces[1])
    (large,) = with_detailed_faces([request], [image], settings, 16, generate)
    np.testing.assert_array_equal(large.pixels, two)
    assert "it is no smaller than the 16 pixels" in str(large.faces[0])


def test_a_call_paints_faces_again(pipe, people):
    """Where nothing looks like a face the mask says where the head is."""
    masks = np.zeros((1, 64, 64), np.float32)
    masks[0, 20:44, 20:44] = 1
    options = {"masks": masks, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 1}
    plain = pipe("a garden", people[:1], **options)
    out = pipe("a garden", people[:1], **options, face_detail=True, face_detail_strength=0.5)
    assert plain.faces == [()]
    ((face,),) = out.faces
    assert isinstance(face, FaceDetail)
    assert (face.person, face.side) == (0, 64)
    left, top, right, bottom = face.box
    before, after = (np.asarray(each.images[0]).astype(int) for each in (plain, out))
    changed = (before != after).any(-1)
    assert changed[top:bottom, left:right].mean() > 0.3
    changed[top:bottom, left:right] = False
    assert not changed.any()
    np.testing.assert_array_equal(plain.latents, out.latents)

    crop = plain.images[0].crop(face.box).resize((64, 64), Image.Resampling.LANCZOS)
    options.pop("masks")
    by_hand = pipe("a person", people[:1], **options, image=crop, strength=0.5).images[0]
    small = by_hand.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    middle = slice((right - left) // 3, -(right - left) // 3)
    np.testing.assert_array_equal(
        after[top:bottom, left:right][middle, middle], np.asarray(small)[middle, middle]
    )
