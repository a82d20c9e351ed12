"""The page in a browser: a started server, Chromium without a window, the mouse and the keys."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sample.images import text_of
from sample.web.places import COLOURS
from sample.web.visitors import VARY_STRENGTH
from tests.web_site import ROOT, pixels, server, unpacked, words, write_world

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
MISSING += [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed"),
]
STEPS = 3
SLOW_FRAMES = "window.requestAnimationFrame = f => setTimeout(() => f(performance.now()), 200)"
PATIENCE = 300  # seconds; the first picture is compiled


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def site(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    process, url = server(words(world), folder)
    yield url, folder
    process.send_signal(signal.SIGINT)
    with process.stdout:
        process.wait(60)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser that reaches nothing but this machine, and the folder that it downloads to."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1500",
        "--enable-unsafe-swiftshader", f"--user-data-dir={folder}/profile",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(word)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder), "download.prompt_for_download": False}
    )
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver, folder
    driver.quit()


class Screen:
    """A visitor's page, newly opened, as it is seen and touched."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        # The canvas is drawn anew in every frame, without a graphics card at the cost of a core.
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SLOW_FRAMES})
        driver.get(url)
        self.until(lambda: self.all("#places canvas") and self.all("#paint"))

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, ready, seconds=PATIENCE):
        """What `ready` answers, once it is something; the page may be drawn anew meanwhile."""
        from selenium.common.exceptions import WebDriverException

        end, answer = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                if answer := ready():
                    return answer
            except (WebDriverException, IndexError):
                pass
            time.sleep(0.1)
        self.driver.save_screenshot(str(Path(os.environ.get("TMPDIR", "/tmp")) / "page.png"))
        raise AssertionError(f"waited {seconds} s; the status is {self.status!r}")

    def click(self, selector):
        self.until(lambda: self.all(selector)[-1].click() or True, 30)

    def type(self, name, text):
        from selenium.webdriver.common.keys import Keys

        (box,) = [e for e in self.all(f"#{name} :is(textarea, input)") if e.is_displayed()]
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text, Keys.TAB)

    def upload(self, where, path):
        """Uploads a file, and waits until its name is on the page."""
        self.all(f"#{where} input[type=file]")[0].send_keys(str(path))
        self.until(lambda: path.stem in self.all(f"#{where}")[0].text)

    def people(self, *photos):
        self.click(f'#count input[value="{len(photos)}"]')
        for number, photo in enumerate(photos, 1):
            if photo is not None:
                self.until(lambda n=number: self.all(f"#photos-{n}")[0].is_displayed())
                self.upload(f"photos-{number}", photo)

    def draw(self, colour, x):
        """A line from top to bottom in a person's colour.

        Args:
            colour: as it stands in `COLOURS`.
            x: from the canvas' middle, as a share of its width.
        """
        from selenium.webdriver.common.action_chains import ActionChains

        red, green, blue = bytes.fromhex(colour[1:])
        self.click('#places button[aria-label="Color"]')
        self.click(f'#places [style*="{red}, {green}, {blue}"]:not([aria-label="Color"])')
        self.click('#places button[aria-label="Brush"]')
        area = self.all("#places canvas")[0]
        side = min(area.size["width"], area.size["height"])
        mouse = ActionChains(self.driver).move_to_element_with_offset(
            area, round(x * side), round(-0.25 * side)
        )
        mouse = mouse.click_and_hold()
        for _ in range(10):
            mouse = mouse.move_by_offset(0, round(0.05 * side)).pause(0.05)
        mouse.release().perform()

    @property
    def status(self):
        return self.all("#status")[0].text

    @property
    def told(self):
        """The lines that have come up at the page's corner."""
        return [toast.text for toast in self.all('[data-testid="toast-body"], .toast-body')]

    def painted(self, button="paint"):
        """Clicks, waits until the job has ended, and returns the newest picture as it is served."""
        before = self.newest()
        self.click(f"#{button}")
        self.until(lambda: self.newest() not in (None, before))
        return self.fetched(self.newest())

    def newest(self):
        images = self.all("#pictures .thumbnail-item img")
        return images[0].get_attribute("src") if images else None

    def fetched(self, address):
        import httpx

        return io.BytesIO(httpx.get(address).raise_for_status().content)

    def downloaded(self, folder):
        """The scene, as clicking on it leaves it."""
        (folder / "scene.zip").unlink(missing_ok=True)
        self.click("#scene a[download]")
        self.until(lambda: (folder / "scene.zip").is_file(), 30)
        return folder / "scene.zip"


@pytest.fixture
def screen(site, chromium):
    screen = Screen(chromium[0], site[0])
    screen.type("num-inference-steps", str(STEPS))
    screen.type("prompt", "two people")
    return screen


def command_line(world, archive, folder):
    """The pixels that a scene makes on the command line, in a process of its own."""
    words = ["--scene", unpacked(archive, folder / "scene"), "--output", folder / "out",
             "--cache", world / "cache", "--quiet"]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "sample", *map(str, words)], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    (picture,) = (folder / "out").glob("*_seed*.png")
    return pixels(picture)


def about(picture, folder):
    """The job that a picture carries, as JSON."""
    path = folder / "picture.png"
    path.write_bytes(picture.getvalue())
    return json.loads(text_of(path))["job"]


def test_two_people_drawn_with_the_mouse_are_the_command_lines(world, screen, chromium, tmp_path):
    screen.people(world / "me.png", world / "you.png")
    screen.draw(COLOURS[0], -0.25)
    screen.draw(COLOURS[1], 0.25)
    picture = screen.painted()
    scene = screen.downloaded(chromium[1])
    assert np.array_equal(pixels(picture), command_line(world, scene, tmp_path))
    masks = [pixels(tmp_path / "scene" / f"place{number}.png") for number in (1, 2)]
    width = masks[0].shape[1]
    for mask, middle in zip(masks, (0.25, 0.75), strict=True):
        assert set(np.unique(mask)) == {0, 255}
        assert abs(mask.nonzero()[1].mean() / width - middle) < 0.1
        assert mask.any(1).mean() > 0.4
    assert not (masks[0] & masks[1]).any()
    assert screen.status.startswith("1 picture, seed 0")


def test_a_picture_is_started_from_varied_and_chosen(world, screen, chromium, tmp_path):
    screen.people(world / "me.png")
    screen.click("#encode-1")
    screen.until(lambda: screen.all("#encoded-1 a[download]"))
    first = screen.painted()
    assert "take the last picture, seed 0" in screen.all("#taken")[0].text
    screen.click("#more > button")
    screen.click("#attention input")
    varied = screen.painted("vary")
    captions = [each.text for each in screen.all("#pictures .caption-label")]
    own = about(varied, tmp_path)
    seed = f"seed {own['seed']}"
    assert captions == [seed, f"{seed}: where each photo was looked at", "seed 0"]
    assert (own["image"], own["strength"]) == ("01_seed0.png", VARY_STRENGTH)
    scene = screen.downloaded(chromium[1])
    assert np.array_equal(pixels(varied), command_line(world, scene, tmp_path))
    assert (tmp_path / "scene" / "01_seed0.png").read_bytes() == first.getvalue()

    screen.all("#pictures .thumbnail-item")[2].click()  # the first picture
    screen.until(lambda: "take the chosen picture, seed 0" in screen.all("#taken")[0].text)
    screen.click("#use")
    screen.until(lambda: "01_seed0" in screen.all("#start-picture")[0].text)
    screen.type("strength", "0.5")
    screen.type("seed", "11")
    started = screen.painted()
    own = about(started, tmp_path)
    assert (own["image"], own["seed"], own["strength"]) == ("01_seed0.png", 11, 0.5)
    unpacked(screen.downloaded(chromium[1]), tmp_path / "started")
    assert (tmp_path / "started" / "01_seed0.png").read_bytes() == first.getvalue()


def test_a_visitor_waits_and_cancels_and_another_goes_on(screen, site, chromium):
    """Two at once in two windows: the second is told how many are before."""
    driver, _ = chromium
    screen.people()
    screen.type("num-inference-steps", "999")
    screen.type("num-images-per-prompt", "16")
    first = driver.current_window_handle
    driver.switch_to.new_window("window")
    other = driver.current_window_handle
    second = Screen(driver, site[0])
    second.people()
    second.type("prompt", "x")
    driver.switch_to.window(first)
    screen.click("#paint")
    screen.until(lambda: "step" in screen.status)
    driver.switch_to.window(other)
    second.click("#paint")
    second.until(lambda: second.status.startswith("1 before you"))
    second.click("#cancel")
    second.until(lambda: second.status == "stopped", 30)
    driver.close()
    driver.switch_to.window(first)
    assert "step" in screen.status
    screen.click("#again")
    screen.until(lambda: any("nothing has been painted yet" in line for line in screen.told), 30)
    screen.click("#cancel")
    screen.until(lambda: screen.status == "stopped", 60)
    assert screen.newest() is None


def test_a_wrong_photo_is_one_line_and_no_traceback(world, screen, site):
    wrong = world / "notes.png"
    wrong.write_text("no picture")
    screen.people(wrong)
    screen.click("#paint")
    line = "error: notes.png is not a picture that can be read here"
    screen.until(lambda: screen.status.startswith(line))
    assert "\n" not in screen.status
    screen.people(None, None)
    screen.click("#paint")
    screen.until(lambda: screen.status.startswith("error: person 2 has no photo"))
    assert "Traceback" not in (site[1] / "log").read_text()
