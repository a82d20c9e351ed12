"""Photos that lie behind a link, fetched into a file beside the images."""

import hashlib
from pathlib import Path

from fusionjax.data.picture import ENDINGS
from fusionjax.errors import UserError, shortened
from fusionjax.files import whole_file

_MOST_BYTES = 100_000_000
_SECONDS = 30


def is_link(name: str) -> bool:
    """Whether a face's name is a link."""
    return name.lower().startswith(("http://", "https://"))


def fetched(link: str, folder: Path) -> str:
    """Fetches a photo or an identity file, which only a command line may name so.

    Args:
        link: http or https; `#2` at its end chooses a face.
        folder: to write it to, as `photo_` and the digest of its content.

    Returns:
        The file, with the `#2`.

    Raises:
        UserError: if it cannot be fetched.
    """
    import http.client
    import urllib.parse
    import urllib.request

    link, mark, face = link.partition("#")
    shown = shortened(link, 160)
    # Neither files nor ftp, to which a server might lead on.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    try:
        request = urllib.request.Request(link, headers={"User-Agent": "fusionjax"})
        with opener.open(request, timeout=_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{shown} cannot be fetched ({shortened(str(reason), 120)}); save the photo, and name "
            "its file"
        ) from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{shown} has more than {_MOST_BYTES // 10**6} MB; name a photo")
    ending = Path(urllib.parse.urlsplit(link).path).suffix.lower()
    if ending not in (*ENDINGS, ".safetensors"):
        ending = ""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    path = folder / f"photo_{digest}{ending}"
    with whole_file(path) as beside:
        beside.write_bytes(content)
    return f"{path}{mark}{face}"
