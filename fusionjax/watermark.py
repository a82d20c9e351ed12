"""An invisible watermark: a few letters in the grey levels of a picture, which a program reads.

The letters with their checksum are bits, and each bit is written into many places all over the
picture: some low frequencies of its 8 × 8 blocks are moved to a lattice that says 0 or 1
(quantization index modulation, Chen & Wornell 2001), by less than an eye sees. To read them, the
places of a bit vote. That stands JPEG and noise, the better the larger the picture is; cutting,
turning or scaling a picture takes it out, and so can everybody who wants to.
"""

import functools
import hashlib
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fusionjax.ranges import WATERMARK_BYTES, check_watermark

_SUM_BYTES = 4  # of zlib's crc32; so one of four billion pictures without a watermark has one
_BITS = 8 * (WATERMARK_BYTES + _SUM_BYTES)
_SIDE = 8  # of a block: JPEG's own
# Rows and columns of a block's frequencies: those that JPEG keeps best, without the mean.
_ROWS, _COLUMNS = np.array([[0, 1, 1, 2, 0, 2], [1, 0, 1, 0, 2, 1]])
_STEP = 16.0  # of the lattice; a frequency moves by 4.6 on average, a grey level by 1.4
_LUMA = np.array([0.299, 0.587, 0.114])  # JPEG's
_ROUNDS = 8  # what is cut off at black and white is written again beside it


def embed(pixels: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "H W 3"]:
    """Writes a watermark into a picture.

    Args:
        pixels: grey levels. What is left of whole blocks of 8 × 8 stays as it is.
        text: at most `WATERMARK_BYTES` long in UTF-8.

    Returns:
        The picture, with peak signal-to-noise ratios of about 45 dB.

    Raises:
        UserError: if the text is too long.
    """
    check_watermark(text)
    bits, places = _bits(text), _places(pixels)
    wanted = np.where(bits[places], _STEP / 4, -_STEP / 4)
    marked = pixels.astype(np.float64)
    whole = _blocks_of(marked)
    for _ in range(_ROUNDS):
        found = _frequencies(whole)
        change = np.zeros_like(found)
        chosen = found[..., _ROWS, _COLUMNS]
        lattice = np.round((chosen - wanted) / _STEP) * _STEP + wanted
        change[..., _ROWS, _COLUMNS] = lattice - chosen
        whole += _luma_of(change)[..., None]  # the same in red, green and blue is luma alone
        np.clip(whole, 0, 255, out=whole)
    return np.round(marked).astype(np.uint8)


def read(pixels: UInt8[np.ndarray, "H W 3"]) -> str | None:
    """The watermark of a picture.

    Args:
        pixels: grey levels.

    Returns:
        Its text, or None if there is none, or none any more.
    """
    whole = _blocks_of(pixels)
    if not whole.size:
        return None
    found = _frequencies(whole.astype(np.float64))[..., _ROWS, _COLUMNS]
    votes = np.sin(2 * np.pi * found / _STEP)  # 1 on the lattice of ones, -1 on that of zeros
    sums = np.bincount(_places(pixels).ravel(), votes.ravel(), _BITS)
    content = np.packbits((sums > 0) ^ _whitening()).tobytes()
    letters, checksum = content[:WATERMARK_BYTES], content[WATERMARK_BYTES:]
    if checksum != _checksum(letters):
        return None
    return letters.rstrip(b"\0").decode("utf-8", "replace")


def _blocks_of(pixels: np.ndarray) -> np.ndarray:
    """The part of a picture, not a copy, that is whole blocks."""
    rows, columns = (side // _SIDE * _SIDE for side in pixels.shape[:2])
    return pixels[:rows, :columns]


def _checksum(letters: bytes) -> bytes:
    return zlib.crc32(b"fusionjax" + letters).to_bytes(_SUM_BYTES, "big")


def _bits(text: str) -> Bool[np.ndarray, " n"]:
    letters = text.encode().ljust(WATERMARK_BYTES, b"\0")
    content = np.frombuffer(letters + _checksum(letters), np.uint8)
    return np.unpackbits(content).astype(bool) ^ _whitening()


@functools.cache
def _whitening() -> Bool[np.ndarray, " n"]:
    """Fixed bits that are added to the letters', so that zeros are no pattern."""
    return np.unpackbits(np.frombuffer(_noise(b"bits", _BITS // 8), np.uint8)).astype(bool)


def _places(pixels: Any) -> Int[np.ndarray, "rows columns k"]:
    """Which bit each frequency of each block holds: every bit equally often, all over the place."""
    rows, columns = (side // _SIDE for side in pixels.shape[:2])
    count = rows * columns * len(_ROWS)
    order = np.argsort(np.frombuffer(_noise(b"places", 8 * count), "<u8"), kind="stable")
    return (order % _BITS).reshape(rows, columns, len(_ROWS))


def _noise(what: bytes, count: int) -> bytes:
    """Bytes that are the same everywhere and for ever."""
    return hashlib.shake_256(b"fusionjax watermark 1 " + what).digest(count)


def _frequencies(whole: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "rows columns 8 8"]:
    from scipy.fft import dctn

    luma = whole @ _LUMA
    blocks = luma.reshape(luma.shape[0] // _SIDE, _SIDE, luma.shape[1] // _SIDE, _SIDE)
    return np.asarray(dctn(blocks.transpose(0, 2, 1, 3), axes=(2, 3), norm="ortho"))


def _luma_of(frequencies: Float[np.ndarray, "rows columns 8 8"]) -> Float[np.ndarray, "H W"]:
    from scipy.fft import idctn

    blocks = np.asarray(idctn(frequencies, axes=(2, 3), norm="ortho")).transpose(0, 2, 1, 3)
    rows, columns = blocks.shape[0] * _SIDE, blocks.shape[2] * _SIDE
    return blocks.reshape(rows, columns)
