"""What is measured of pictures of real people: identity, copying, likeness of the face, failures.

Legend: p people, q prompts.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fusionjax.errors import UserError
from fusionjax.evaluation.judges import Judges, Seen
from fusionjax.evaluation.people import Subject, extra_files, find
from fusionjax.face_detection import SAME_PERSON, aligned, detect, embed
from fusionjax.photos import read_photo

FAILURES = ("missing", "unreadable", "no face")
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Known:
    """What a person's photos say.

    Attributes:
        reference: the likeness of the photo that is shown, [128].
        others: those of the other true photos, [n, 128].
        crop: the reference's face, aligned.
        seen: what further judges say of the reference, then of the others.
    """

    reference: Float[np.ndarray, "128"]
    others: Float[np.ndarray, "n 128"]
    crop: UInt8[np.ndarray, "112 112 3"]
    seen: tuple[Seen, ...] = ()


@dataclasses.dataclass(frozen=True)
class FaceScores:
    """What one method reached; a picture that failed is NaN, and counted.

    Attributes:
        distance: cosine distance to the reference, [p, q]: what the paper's Table 1 says, here by
            SFace.
        to_others: mean cosine distance to the person's other true photos, [p, q].
        copied: how far a picture copies the reference, [p, q]: (θ_other − θ_reference) over the
            angle between reference and other photo (WithAnyone, arXiv 2510.14975); 1 is a copy, 0
            as near to both.
        psnr: of the aligned face crops against the reference's, in decibels, [p, q].
        wrapped: the same with differences squared in bytes, which wrap around: no PSNR, but what
            the paper's column can be compared with.
        ssim: of the crops, [p, q].
        faces: faces found in each picture, [p, q]; of several the largest is measured.
        failures: pictures by what is wrong with them.
        extra: files in the folder that are not looked for.
        text: 100 × cosine of picture and prompt by CLIP, [p, q]; None without a CLIP.
        further: what further judges say, by measure, see `Judges.compare`; each [p, q].
    """

    distance: Float[np.ndarray, "p q"]
    to_others: Float[np.ndarray, "p q"]
    copied: Float[np.ndarray, "p q"]
    psnr: Float[np.ndarray, "p q"]
    wrapped: Float[np.ndarray, "p q"]
    ssim: Float[np.ndarray, "p q"]
    faces: Int[np.ndarray, "p q"]
    failures: dict[str, int]
    extra: int
    text: Float[np.ndarray, "p q"] | None = None
    further: Mapping[str, Float[np.ndarray, "p q"]] = dataclasses.field(default_factory=dict)

    @property
    def verified(self) -> Float[np.ndarray, "p q"]:
        """Whether each is taken for the person, NaN where it failed."""
        right = (self.distance < 1 - SAME_PERSON).astype(np.float64)
        return np.where(np.isnan(self.distance), np.nan, right)

    def values(self, measure: str) -> np.ndarray | None:
        """A measure by its name; None if it was not measured."""
        return self.further.get(measure, getattr(self, measure, None))


def know(subject: Subject, judges: Judges | None = None) -> Known:
    """Reads a person's photos; `read_people` has seen that each shows a face."""
    images = [read_photo(path) for path in subject.photos]
    found = [detect(image) for image in images]
    vectors = [embed(image, faces[0]) for image, faces in zip(images, found, strict=True)]
    seen = [judges.see(*each) for each in zip(images, found, strict=True)] if judges else []
    return Known(vectors[0], np.stack(vectors[1:]), aligned(images[0], found[0][0]), tuple(seen))


def score(
    pictures: Callable[[Subject, int], Path | None],
    subjects: Sequence[Subject],
    known: Sequence[Known],
    prompts: Sequence[str],
    *,
    extra: int = 0,
    left_out: Callable[[Subject, int], int] | None = None,
    clip: Callable[[Image.Image, str], float] | None = None,
    judges: Judges | None = None,
    progress: Progress | None = None,
) -> FaceScores:
    """Measures one method's pictures.

    Args:
        pictures: where a person's picture by a prompt is; None if there is none.
        subjects: the people.
        known: what `know` says of each.
        prompts: what was asked for.
        extra: see `FaceScores`.
        left_out: which of the person's other photos a picture is, and is not compared with.
        clip: picture and prompt to 100 × cosine.
        judges: who measures further; `know` must have asked them too.
        progress: called with the pictures done and their number.
    """
    shape = len(subjects), len(prompts)
    names = ("distance", "to_others", "copied", "psnr", "wrapped", "ssim")
    found = {name: np.full(shape, np.nan) for name in names}
    further = {name: np.full(shape, np.nan) for name in (judges.measures if judges else ())}
    faces, text = np.zeros(shape, np.int64), np.full(shape, np.nan)
    failures = dict.fromkeys(FAILURES, 0)
    for place in np.ndindex(shape):
        subject, number = subjects[place[0]], place[1]
        if progress is not None:
            progress(place[0] * len(prompts) + number + 1, shape[0] * shape[1])
        image = read_or_count(pictures(subject, number), failures)
        if image is None:
            continue
        if clip is not None:
            text[place] = clip(image, prompts[number])
        seen = detect(image)
        faces[place] = len(seen)
        own = known[place[0]]
        if left_out is not None:
            own = _without(own, left_out(subject, number))
        if judges is not None:  # they may find a face where YuNet finds none
            for name, value in judges.compare(judges.see(image, seen), own.seen).items():
                further[name][place] = value
        if not seen:
            failures["no face"] += 1
            continue
        measures = _measures(embed(image, seen[0]), aligned(image, seen[0]), own)
        for name, value in zip(names, measures, strict=True):
            found[name][place] = value
    return FaceScores(
        **found, faces=faces, failures=failures, extra=extra,
        text=None if clip is None else text, further=further,
    )  # fmt: skip


def read_or_count(
    picture: Path | Image.Image | None, failures: dict[str, int]
) -> Image.Image | None:
    """Reads a picture to be measured; None if that cannot be, which is counted."""
    if picture is None:
        failures["missing"] += 1
        return None
    try:
        return read_photo(picture)
    except UserError:
        failures["unreadable"] += 1
        return None


def _without(known: Known, number: int) -> Known:
    """What a person's photos say but for one of the others."""
    seen = tuple(each for place, each in enumerate(known.seen) if place != 1 + number)
    return dataclasses.replace(known, others=np.delete(known.others, number, axis=0), seen=seen)


def shown_photo(subject: Subject, number: int) -> int:
    """Which of a person's other photos stands for a perfect picture by a prompt."""
    return number % (len(subject.photos) - 1)


def score_folder(
    folder: Path, subjects: Sequence[Subject], known: Sequence[Known], prompts: Sequence[str],
    *, clip: Callable[[Image.Image, str], float] | None = None, judges: Judges | None = None,
    progress: Progress | None = None,
) -> FaceScores:  # fmt: skip
    """Measures a folder of pictures, see `people`; the arguments are those of `score`."""
    extra = extra_files(folder, subjects, len(prompts))
    return score(
        lambda subject, number: find(folder, subject, number), subjects, known, prompts,
        extra=extra, clip=clip, judges=judges, progress=progress,
    )  # fmt: skip


def _measures(
    vector: Float[np.ndarray, "128"], crop: UInt8[np.ndarray, "112 112 3"], known: Known
) -> tuple[float, ...]:
    to_reference = float(vector @ known.reference)
    to_others = known.others @ vector
    return (
        1 - to_reference,
        float(np.mean(1 - to_others)) if len(to_others) else np.nan,
        copying(to_reference, to_others, known.others @ known.reference),
        float(peak_signal_noise_ratio(known.crop, crop, data_range=255))
        if (crop != known.crop).any()
        else 100.0,
        wrapped_psnr(known.crop, crop),
        float(structural_similarity(known.crop, crop, channel_axis=-1, data_range=255)),
    )


def copying(
    to_reference: float,
    to_others: Float[np.ndarray, " n"],
    reference_to_others: Float[np.ndarray, " n"],
) -> float:
    """How far a picture copies the reference rather than knows the person, see `FaceScores`.

    Args:
        to_reference: cosine of picture and reference.
        to_others: cosines of the picture and the other true photos.
        reference_to_others: cosines of the reference and those.

    Returns:
        The mean over the other photos; NaN if there is none.
    """
    if not len(to_others):
        return float("nan")
    angles = [np.arccos(np.clip(c, -1, 1)) for c in (to_others, to_reference, reference_to_others)]
    return float(np.mean((angles[0] - angles[1]) / np.maximum(angles[2], 1e-3)))


def wrapped_psnr(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    """What comes out for PSNR where differences of bytes are squared as bytes.

    Both wrap around at 256, so that unrelated pictures have a mean of about 105, which is 27.9
    decibels, and everything else nearly that.
    """
    wrapped = (a - b) * (a - b)
    mean = float(np.mean(wrapped))
    return 10 * np.log10(255**2 / mean) if mean else 100.0
