"""The page's line of those who wait, and what is kept of a visitor; neither needs a model."""

import re
import threading

import pytest
from PIL import Image

from fusionjax.errors import UserError
from sample.job import Job
from sample.web.line import Line, cost
from sample.web.painter import Done
from sample.web.visitors import VARY_STRENGTH, Visitor, again, varied


def test_a_job_costs_pixels_times_steps():
    """Four steps are for reading, decoding and writing; by hand."""
    job = Job(prompt="x", num_inference_steps=30, num_images_per_prompt=2, height=64)
    assert cost(job, 128) == 2 * 64 * 128 * 34
    from_image = Job(prompt="x", num_inference_steps=30, image="a.png", strength=0.5)
    assert cost(from_image, 64) == 64 * 64 * (15 + 4)
    larger = Job(prompt="x", num_inference_steps=10, upscale=2.0, upscale_strength=0.5)
    assert cost(larger, 64) == 64 * 64 * (14 + 4 * (5 + 4))


def test_the_line_is_first_come_first_served():
    line = Line(most=3)
    places = [line.enter(1) for _ in range(4)]
    assert [line.wait(place, 0) for place in places] == [True, False, False, False]
    assert [line.told(place) for place in places] == [
        "", "1 before you", "2 before you", "3 before you"
    ]  # fmt: skip
    served = []

    def wait(number):
        line.wait(places[number], 60)
        served.append(number)
        line.leave(places[number])

    threads = [threading.Thread(target=wait, args=(number,)) for number in (3, 1)]
    for thread in threads:
        thread.start()
    line.leave(places[2])  # who gives up while waiting
    line.leave(places[0])
    for thread in threads:
        thread.join(60)
    assert served == [1, 3]
    assert line.wait(line.enter(1), 0)


def test_the_time_that_is_told_is_one_that_nine_of_ten_jobs_keep():
    """Ten jobs of cost 1 took 1 to 10 seconds; nine of ten kept 9.1 s (between 9 and 10)."""
    line = Line(most=5)
    for seconds in range(1, 11):
        line.leave(line.enter(1), seconds)
    first, second, third = (line.enter(share) for share in (1, 2, 4))
    assert line.told(second) == "1 before you; your picture is there within 27 s"  # 9.1 × 3
    assert line.told(third) == "2 before you; your picture is there within 1 min 04 s"  # 9.1 × 7
    first.seconds_left = 20.0  # its own steps know better
    assert line.told(second) == "1 before you; your picture is there within 38 s"
    line.leave(second)
    assert line.told(third) == "1 before you; your picture is there within 56 s"
    for _ in range(20):  # only the last twenty count
        line.leave(line.enter(1), 2)
    first.seconds_left = None
    assert line.told(third) == "1 before you; your picture is there within 10 s"


def test_a_full_line_is_told_in_a_line_with_when_to_ask_again():
    line = Line(most=2)
    places = [line.enter(1) for _ in range(3)]
    told = re.escape("the queue is full: 2 requests wait; ask again later")
    with pytest.raises(UserError, match=told):
        line.enter(1)
    line.leave(places[0], 30.0)
    line.enter(1)
    with pytest.raises(UserError, match="2 requests wait; ask again in 30 s"):
        line.enter(1)


def done(folder, seeds, maps=False, **job):
    files = [folder / f"{seed}.png" for seed in seeds]
    drawn = [folder / f"{seed}_attention.png" for seed in seeds] if maps else []
    for file in files + drawn:
        Image.new("RGB", (8, 8)).save(file)
    made = Job(prompt="x", seed=seeds[0], num_images_per_prompt=len(seeds), **job)
    return Done(made, files, list(seeds), drawn, folder / "scene.zip")


def test_buttons_take_the_chosen_picture_else_the_last(tmp_path):
    """A map stands beside its picture, and choosing it chooses the picture."""
    visitor = Visitor()
    with pytest.raises(UserError, match="nothing has been painted yet"):
        _ = visitor.taken
    visitor.add(done(tmp_path, [3], guidance_scale=5.0))
    visitor.add(done(tmp_path, [7, 8], maps=True))
    assert [tile.caption for tile in visitor.tiles] == [
        "seed 7", "seed 7: where each photo was looked at",
        "seed 8", "seed 8: where each photo was looked at", "seed 3",
    ]  # fmt: skip
    assert visitor.taken.job.seed == 7
    assert visitor.choose(3).picture == tmp_path / "8.png"
    assert visitor.taken.job.seed == 8
    visitor.choose(4)
    job = again(visitor.taken)
    assert (job.guidance_scale, job.image) == (5.0, None)
    assert job.seed != 3
    job = varied(visitor.taken)
    assert (job.image, job.strength) == (str(tmp_path / "3.png"), VARY_STRENGTH)
    assert job.seed != 3
    assert (job.guidance_scale, job.num_images_per_prompt) == (5.0, 1)
    visitor.add(done(tmp_path, [9]))
    assert visitor.taken.job.seed == 9  # none is chosen any more
    with pytest.raises(UserError, match="there is no picture 7; there are 6"):
        visitor.choose(6)
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png is not kept any more; make another picture"):
        visitor.choose(5)
