"""Whether `fusionjax web` holds when many ask at once: answers, waiting, memory.

    python benchmarks/web_load.py               # 40 requests from 8 visitors, then 200 pictures
    python benchmarks/web_load.py --url http://127.0.0.1:7860 --requests 40    # a page of yours

A server of its own with the embedded model, unless a page is named. Eight visitors ask for their
share of the requests all at once. Who is refused because the queue is full asks again when the
message says. Of each request: what the page promised when it came into the line, and how long its
picture took from there. Then pictures one after the other, with the memory of the server's process
after some of them. Needs the extra `web`; prints what it finds, and writes JSON.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gradio_client.utils import apply_diff

PROMISE = re.compile(r"(\d+) before you(?:; your picture is there within (.*))?")
REFUSAL = re.compile(r"the queue is full: \d+ requests wait; ask again (later|in (.*))")
MARKS = (20, 100, 200)
PATIENCE = 600  # seconds
_UNITS = {"h": 3600, "min": 60, "s": 1}


@dataclass
class Answer:
    """What became of a request.

    Attributes:
        visitor: who asked.
        seed: of the picture that was asked for.
        refusals: how often the queue was full.
        promised: seconds, as the page told first; None if nobody was before it.
        seconds: from there until the picture was there.
        error: anything else that it was answered with; empty if a picture came.
    """

    visitor: int
    seed: int
    refusals: int = 0
    promised: float | None = None
    seconds: float = 0.0
    error: str = ""


def seconds_of(text: str) -> float:
    """A duration as the page writes it: "1 min 20 s" is 80."""
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([\d.]+) (h|min|s)", text))


class RefusedError(Exception):
    """A request was answered with a message."""


class Visit:
    """A visitor's connection to a page.

    gradio's own client is not used: answered before it has noted its request, it waits for ever.

    Args:
        url: of the page.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        functions = httpx.get(f"{url}/config", timeout=PATIENCE).json()["dependencies"]
        (self._function,) = [each["id"] for each in functions if each["api_name"] == "paint"]

    def paint(self, scene: dict[str, Any]) -> Iterator[list[Any]]:
        """Asks for a scene, and yields what the endpoint answers: pictures, archive, lines.

        Raises:
            RefusedError: with the message, if it is refused.
        """
        session = uuid.uuid4().hex
        asked = {"data": [scene, []], "fn_index": self._function, "session_hash": session}
        joined = httpx.post(f"{self.url}/gradio_api/queue/join", json=asked, timeout=PATIENCE)
        joined.raise_for_status()
        answer: list[Any] = []
        with httpx.stream(
            "GET", f"{self.url}/gradio_api/queue/data", params={"session_hash": session},
            timeout=PATIENCE,
        ) as news:  # fmt: skip
            for line in news.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                output = message.get("output") or {}
                if output.get("error"):
                    raise RefusedError(output["error"])
                data = output.get("data")
                if message["msg"] == "process_generating" and data:
                    # The first in full, then what has changed.
                    answer = data if not answer else list(map(apply_diff, answer, data))
                    yield answer
                elif message["msg"] == "process_completed":
                    return
        raise RefusedError("the stream ended without an answer")


def ask(visit: Visit, answer: Answer, scene: dict[str, Any]) -> Answer:
    """Asks until there is a picture, or an error that is no full queue."""
    while True:
        began, promise, pictures = time.monotonic(), None, []
        try:
            for pictures, _, lines in visit.paint({**scene, "seed": answer.seed}):  # noqa: B007
                if promise is None and lines and (promise := PROMISE.search(lines[-1])):
                    answer.promised = seconds_of(promise[2]) if promise[2] else None
                    began = time.monotonic()
            answer.seconds = time.monotonic() - began
            file = httpx.get(f"{visit.url}/gradio_api/file={pictures[0]['path']}", timeout=PATIENCE)
            if not file.content.startswith(b"\x89PNG"):
                answer.error = "no picture came"
            return answer
        except (RefusedError, httpx.HTTPError) as error:
            full = REFUSAL.search(str(error))
            if full is None:
                answer.error = str(error) or type(error).__name__
                return answer
            answer.refusals += 1
            time.sleep(seconds_of(full[2]) if full[2] else 1.0)


def crowd(
    url: str, visitors: int, requests: int, scene: dict[str, Any]
) -> tuple[list[Answer], float]:
    """Has visitors ask for their share of the requests, all at once.

    Returns:
        What became of each, and the seconds until the last was answered.
    """
    visits = [Visit(url) for _ in range(visitors)]
    asked = [Answer(number % visitors, seed=1000 + number) for number in range(requests)]
    gate = threading.Barrier(requests)

    def one(answer: Answer) -> Answer:
        gate.wait()
        return ask(visits[answer.visitor], answer, scene)

    began = time.monotonic()
    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(one, asked))
    return answers, time.monotonic() - began


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Figures of a crowd; a promise is kept if the picture was there by then."""
    told = [answer for answer in answers if answer.promised is not None and not answer.error]
    shares = [answer.seconds / answer.promised for answer in told if answer.promised]
    return {
        "requests": len(answers),
        "pictures": sum(not answer.error for answer in answers),
        "errors": sorted({answer.error for answer in answers if answer.error}),
        "refusals": sum(answer.refusals for answer in answers),
        "promised": len(told),
        "kept": sum(share <= 1 for share in shares),
        "seconds_p95": float(np.quantile([answer.seconds for answer in answers], 0.95)),
        "share_of_promise_p50": float(np.quantile(shares, 0.5)) if shares else None,
        "share_of_promise_p95": float(np.quantile(shares, 0.95)) if shares else None,
    }


def resident_mib(pid: int) -> float:
    """The memory that a process holds (RSS), in MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(
    visit: Visit, pid: int, marks: tuple[int, ...], scene: dict[str, Any]
) -> dict[int, float]:
    """Memory of the server after some numbers of pictures, one asked for after the other."""
    measured = {}
    for number in range(1, max(marks) + 1):
        answer = ask(visit, Answer(0, seed=number), scene)
        if answer.error:
            raise RuntimeError(f"picture {number}: {answer.error}")
        if number in marks:
            measured[number] = round(resident_mib(pid), 1)
            print(f"after {number} pictures: {measured[number]:.0f} MiB", flush=True)
    return measured


def start(queue: int, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A page of its own, with the embedded model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusionjax", "web", "--port", str(port), "--queue", str(queue)],
        env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if "http" not in process.stdout.readline():
        raise SystemExit("the page did not start")
    return process, f"http://127.0.0.1:{port}"


def main() -> None:
    """Starts a page, asks, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="of a page that runs; its memory is not measured then")
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--requests", type=int, default=40, help="of all visitors, all at once")
    parser.add_argument("--queue", type=int, default=20, help="the page's own limit")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--face", default="cleo", help="a saved person of the page")
    parser.add_argument(
        "--pictures", type=int, nargs="*", default=MARKS,
        help="measure the memory after so many; nothing for not at all",
    )  # fmt: skip
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    output = args.output or Path(__file__).parent / "web_load.json"

    with tempfile.TemporaryDirectory() as name:
        process, url = None, args.url
        if url is None:
            process, url = start(args.queue, Path(name))
        try:
            scene = {
                "prompt": "a person reading", "faces": args.face,
                "num_inference_steps": args.steps,
            }  # fmt: skip

            first = Visit(url)
            for seed in range(3):  # compiled, and known how long it takes
                if error := ask(first, Answer(0, seed), scene).error:
                    raise SystemExit(f"error: {error}")
            answers, seconds = crowd(url, args.visitors, args.requests, scene)
            report: dict[str, Any] = {
                **vars(args), "seconds": seconds, **summary(answers),
                "answers": [asdict(answer) for answer in answers],
            }  # fmt: skip
            print(
                "\n".join(f"{key}: {value}" for key, value in summary(answers).items()), flush=True
            )
            if process is not None and args.pictures:
                marks = tuple(args.pictures)
                report["mib_after_pictures"] = memory(first, process.pid, marks, scene)
        finally:
            if process is not None:
                process.send_signal(signal.SIGINT)
                process.wait(60)
    output.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
