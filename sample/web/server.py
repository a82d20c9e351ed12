"""The server: where it listens, what it lets in and out, and the endpoint for programs."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fusionjax.errors import UserError
from sample.web import asked

if TYPE_CHECKING:
    from sample.web.painter import Painter

_THREADS = 40  # for what does not wait for the model
# Visitors, and calls of programs, whose state gradio keeps: 0.2 MiB each. Where one's has gone, it
# makes it anew.
_SESSIONS = 50


def own_folder() -> Path:
    """A folder for all that visitors bring and get, which nobody else on the machine can enter.

    gradio, not yet imported, learns of it: it serves nothing from elsewhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="fusionjax-")).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return folder


def serve(painter: "Painter", *, host: str, port: int, upload_mb: float) -> None:
    """Serves the page until Ctrl-C.

    Args:
        painter: does what it asks for; its folder is removed at the end.
        host: the address to listen on.
        port: likewise.
        upload_mb: the largest upload in megabytes.

    Raises:
        UserError: if it cannot listen there.
    """
    import gradio as gr

    from sample.web.page import Page

    # Of the canvas; photos are looked at before they are decoded (`asked.check_pixels`).
    Image.MAX_IMAGE_PIXELS = painter.limits.photo_pixels // 2
    blocks = Page(painter).blocks
    with blocks:
        gr.api(_endpoint(painter), api_name="paint", concurrency_limit=None)
    for block in blocks.blocks.values():
        _refuse_links(block)
    # Who waits for the model, waits in the painter's own line; gradio's is never full before it.
    threads = painter.limits.waiting + _THREADS
    blocks.queue(max_size=threads, api_open=False)
    _forget_old_events(blocks, keep=10 * threads)
    people = painter.people
    closed = people is not None and not painter.folder.is_relative_to(people)
    try:
        _, url, _ = blocks.launch(
            server_name=host, server_port=port, max_file_size=round(upload_mb * 2**20),
            allowed_paths=[], blocked_paths=[str(people)] if closed else [],
            show_error=False, quiet=True, prevent_thread_lock=True, share=False, ssr_mode=False,
            enable_monitoring=False, state_session_capacity=_SESSIONS, max_threads=threads,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({error}); name another --port"
        ) from None
    print(f"the page is at {url}", flush=True)
    try:
        blocks.block_thread()
    finally:
        shutil.rmtree(painter.folder, ignore_errors=True)


def _forget_old_events(blocks: Any, keep: int) -> None:
    """Has gradio's queue keep the last requests only; it keeps all that ever were."""
    from gradio.utils import LRUCache

    blocks._queue.event_ids_to_events = LRUCache(keep)
    blocks._queue.event_analytics = LRUCache(keep)


def _refuse_links(block: Any) -> None:
    """Has a component take uploads only: gradio would fetch whatever link stands in their place."""
    if not hasattr(block, "async_move_resource_to_block_cache"):
        return
    own = block.async_move_resource_to_block_cache

    async def moved(path: Any) -> Any:
        if path is not None and "://" in str(path):
            import gradio as gr

            raise gr.Error("a link is no uploaded file; upload the file", print_exception=False)
        return await own(path)

    block.async_move_resource_to_block_cache = moved


def _endpoint(painter: "Painter") -> Any:
    import gradio as gr

    def paint(  # type: ignore[misc]  # gradio reads what it yields in the place of what it returns
        scene: dict, files: list[dict], request: gr.Request
    ) -> tuple[list[dict], dict, list[str]]:
        """Paints a scene.

        Args:
            scene: the keys of a scene file; files by name: uploads, and saved people.
            files: the uploads.

        Returns:
            The pictures, the scene with its files as an archive, and what there is to say.
        """
        yield from _painted(painter, scene, files)

    return paint


def _painted(painter: "Painter", scene: Any, files: Any) -> Iterator[Any]:
    import gradio as gr

    told: list[str] = []
    try:
        job = painter.job(scene, asked.uploads(files or [], painter.folder))
        for news in painter.paint(job):
            if news.warning:
                told.append(news.warning)
            if news.done is None:
                yield [], None, [*told, news.line]
            else:
                pictures = [_served(path) for path in news.done.pictures]
                yield pictures, _served(news.done.scene), told
    except UserError as error:
        raise gr.Error(painter.bare(error), print_exception=False) from None


def _served(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
