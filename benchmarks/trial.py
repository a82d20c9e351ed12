"""Which fusion keeps the person better? Trains and measures both in miniature, many settings each.

    python -m benchmarks.trial runs/trial                  # all of it; goes on where it stopped
    python -m benchmarks.trial runs/trial --seconds 480    # begins nothing that would take longer
    python -m benchmarks.trial runs/trial --stages base    # what the base draws when it is told
    python -m benchmarks.trial runs/trial --workers 6      # so many settings at once, on a GPU

Every setting is trained on the mini world and measured on people of the validation split, at
several face strengths, so that a setting is a curve and no point. A setting's worth is the least
identity distance among the strengths at which the prompt is followed as by the base alone, but for
three points: a copy that ignores the prompt is worth nothing. Both fusions get the same number of
settings, the same budgets, and the same number of seeds:

base      how often the base shows a trait that the caption names: what no adapter can exceed
settings  18 settings of each fusion, 500 steps: start, bias, learning rate
budgets   the best three of each at 2,000 steps, then the best of those at 6,000
seeds     the best of each with three seeds
readings  of the best concatenation: matched references; faces shown to the negative branch
test      the best of each, its three seeds, on people of the test split

A setting's folder holds the adapter and `result.json`; FOLDER/table.md is written anew after each.
On two cores a setting of 500 steps takes half an hour. Several processes share a GPU well: the
miniature leaves most of it idle (`XLA_PYTHON_CLIENT_PREALLOCATE=false` lets them share its memory).
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from configs import mini
from fusionjax.backend.compilation import use_compilation_cache
from fusionjax.command import run_command
from fusionjax.evaluation import suite as suites
from fusionjax.evaluation.evaluate import NO_FUSION, open_pipeline
from fusionjax.evaluation.measure import Measured, measure
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.evaluation.suite import PROMPTED, Case, Cases, Suite
from fusionjax.files import write_whole
from fusionjax.mini import captions
from fusionjax.mini.people import TRAITS
from fusionjax.models.adapter import load_adapter
from fusionjax.options import FusionOptions
from fusionjax.pipeline import FusionPipeline
from train import loop
from train.config import CheckpointConfig, ValidationConfig
from train.main import use_cpu_settings

STARTS = ("query", "self_attention", "zeros")
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
FUSIONS = ("concat", "decoupled")
BUDGETS = (500, 2000, 6000)  # steps
MAY_COST = 0.03  # of the prompt's attributes, on average
STAGES = ("base", "settings", "budgets", "seeds", "readings", "test")
Results = dict["Setting", dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One adapter, and where it is measured."""

    fusion: str
    init: str = "query"
    face_logit_bias: float = 0.0
    learning_rate: float = 5e-3
    steps: int = 500
    seed: int = 0
    reference: str = "clean"
    faces_in_negative: bool = False
    split: str = "validation"

    @property
    def run(self) -> str:
        """Name of the adapter's run: two settings that differ in painting alone have one."""
        words = [self.fusion, self.init, f"bias{self.face_logit_bias:g}", self.reference]
        return "-".join([*words, f"lr{self.learning_rate:g}", f"{self.steps}", f"s{self.seed}"])

    @property
    def result(self) -> str:
        """Name of the file in the run's folder that says what was measured."""
        return f"{self.split}{'-negative' if self.faces_in_negative else ''}.json"


def first_settings(steps: int) -> list[Setting]:
    """As many of each fusion, in turns: a decoupled one has no bias, so more learning rates."""
    concat = [
        Setting("concat", init, bias, rate, steps)
        for rate, bias, init in itertools.product((5e-3, 2.5e-3), (-4.0, 0.0, -2.0), STARTS)
    ]
    rates = (5e-3, 2.5e-3, 1.2e-3, 1e-2, 3.5e-3, 7e-3)
    decoupled = [
        Setting("decoupled", init, 0.0, rate, steps)
        for rate, init in itertools.product(rates, STARTS)
    ]
    return [setting for pair in zip(concat, decoupled, strict=True) for setting in pair]


def best_of(results: Results, fusion: str, steps: int, count: int = 1) -> list[Setting]:
    """The best settings of a fusion and a budget, seed 0 of each, on the validation split."""
    first = Setting(fusion, steps=steps)
    fixed = ("fusion", "steps", "seed", "reference", "faces_in_negative", "split")
    alike = [
        setting for setting in results
        if all(getattr(setting, name) == getattr(first, name) for name in fixed)
    ]  # fmt: skip
    return sorted(alike, key=lambda setting: worth(results[setting]))[:count]


def next_settings(stage: str, results: Results, budgets: Sequence[int]) -> list[Setting]:
    """What a stage wants, as far as it can be said from what is measured."""
    short, long, longest = budgets
    if stage == "settings":
        return first_settings(short)
    wanted = []
    for fusion in FUSIONS:
        if stage == "budgets":
            best = best_of(results, fusion, short, 3)
            longer = [dataclasses.replace(setting, steps=long) for setting in best]
            wanted += longer
            if results.keys() >= set(longer):
                best = best_of(results, fusion, long)
                wanted += [dataclasses.replace(setting, steps=longest) for setting in best]
            continue
        winners = [setting for steps in budgets for setting in best_of(results, fusion, steps)]
        if not winners:
            continue
        winner = min(winners, key=lambda setting: worth(results[setting]))
        seeds = [dataclasses.replace(winner, seed=seed) for seed in range(3)]
        if stage == "seeds":
            wanted += seeds
        if stage == "readings" and fusion == "concat":
            wanted.append(dataclasses.replace(winner, reference="matched"))
            wanted.append(dataclasses.replace(winner, faces_in_negative=True))
        if stage == "test":
            wanted += [dataclasses.replace(setting, split="test") for setting in seeds]
    return wanted


def worth(result: dict[str, Any]) -> float:
    """The least identity distance at which the prompt is followed; less is better."""
    enough = result["text only"]["prompted"] - MAY_COST
    kept = [at["distance"] for at in result["strengths"].values() if at["prompted"] >= enough]
    return min(kept, default=float("inf"))


# --- training and measuring -----------------------------------------------------------------------


def train(setting: Setting, folder: Path) -> Path:
    """Trains a setting's adapter, unless it is there; returns its file."""
    adapter = folder / "adapter.safetensors"
    if not adapter.is_file():
        run = dataclasses.replace(
            mini.config,
            name=setting.run,
            output=str(folder),
            steps=setting.steps,
            seed=setting.seed,
            fusion=FusionOptions(
                reference=setting.reference,
                fusion=setting.fusion,
                init=setting.init,
                face_logit_bias=setting.face_logit_bias,
            ),
            optimizer=dataclasses.replace(
                mini.config.optimizer, learning_rate=setting.learning_rate
            ),
            checkpoint=CheckpointConfig(every_steps=250, keep_last=1),
            validation=ValidationConfig(every_steps=setting.steps, examples=128, grid_rows=2),
        )
        loop.run(run)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return adapter


class Bench:
    """The base, the judge, and the cases of a split with what text alone makes of them."""

    def __init__(self, people: int, prompts: int) -> None:
        self._alone = open_pipeline(None, NO_FUSION)
        self._judge = Recogniser.from_pretrained(None)
        self._size = people, prompts
        self._known: dict[str, tuple[Suite, Cases, dict[str, Any]]] = {}

    def _of_split(self, split: str) -> tuple[Suite, Cases, dict[str, Any]]:
        """The suite, its cases, and what text alone reaches."""
        if split not in self._known:
            people, prompts = self._size
            suite = Suite(split=split, people=people, prompts=prompts, pairs=0, photos=1)
            cases = suites.make_cases(suite, self._alone.photo_side)
            alone = suites.generate_cases(self._alone, cases, suite, None)
            self._known[split] = suite, cases, in_numbers(measure(self._judge, cases, alone))
        return self._known[split]

    def measure(self, setting: Setting, adapter: Path) -> dict[str, Any]:
        """Paints the cases with an adapter at each strength."""
        suite, cases, alone = self._of_split(setting.split)
        loaded = load_adapter(str(adapter))
        pipe = FusionPipeline(self._alone.base, loaded.params, loaded.options)
        faces = suites.encode_people(pipe, cases, cases.people, 1)
        strengths = {}
        for strength in STRENGTHS:
            how = dataclasses.replace(
                suite, face_strength=strength, faces_in_negative=setting.faces_in_negative
            )
            made = suites.generate_cases(pipe, cases, how, faces)
            strengths[f"{strength:g}"] = in_numbers(measure(self._judge, cases, made))
        return {
            "setting": dataclasses.asdict(setting),
            "text only": alone,
            "strengths": strengths,
        }

    def told_traits(self, split: str = "validation") -> dict[str, float]:
        """The share of pictures that show a trait that their caption names, by trait.

        Line art has no colours, and is left out; so are no beard and no glasses, which nobody
        names.
        """
        suite, cases, _ = self._of_split(split)
        rng = np.random.default_rng(suite.seed)

        def told(case: Case) -> Case:
            words = captions.caption(
                case.person, case.circumstance, rng, identity_share=1, trait_share=1
            )
            return dataclasses.replace(case, prompt=words)

        named = dataclasses.replace(cases, cases=[[told(c) for c in own] for own in cases.cases])
        read = self._judge.read(suites.generate_cases(self._alone, named, suite, None))
        shares = {}
        for trait in TRAITS:
            right = [
                seen[trait] == getattr(case.person, trait)
                for seen, case in zip(read, named.flat(), strict=True)
                if case.circumstance.style != "line art" and getattr(case.person, trait) != "none"
            ]
            shares[trait] = float(np.mean(right))
        return shares


def in_numbers(measured: Measured) -> dict[str, Any]:
    """What is compared, with plain types."""
    return {
        "distance": measured.distance.mean,
        "interval": [measured.distance.low, measured.distance.high],
        "recognised": measured.recognised,
        "prompted": float(np.mean([measured.prompt[name] for name in PROMPTED])),
        "prompt": measured.prompt,
        "traits": measured.traits,
    }


# --- the command ----------------------------------------------------------------------------------


def table(results: Results) -> str:
    """The settings as Markdown, the best first."""
    lines = [
        f"| worth ↓ | setting | {' | '.join(f'at {s:g}' for s in STRENGTHS)} | text only |",
        "| --- " * (len(STRENGTHS) + 3) + "|",
    ]

    def cell(at: dict[str, Any]) -> str:
        return f"{at['distance']:.3f}, {100 * at['prompted']:.0f} %"

    for setting in sorted(results, key=lambda setting: worth(results[setting])):
        result = results[setting]
        name = f"{setting.run} {setting.result.removesuffix('.json')}"
        cells = [cell(at) for at in (*result["strengths"].values(), result["text only"])]
        lines.append(f"| {worth(result):.3f} | {name} | {' | '.join(cells)} |")
    words = (
        "Identity distance, and how often the prompt's attributes are shown, by face strength.\n"
    )
    return "\n".join([words, *lines]) + "\n"


def read_results(folder: Path) -> Results:
    """What is measured already."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*.json")
             if path.name != "config.json"]  # fmt: skip
    return {Setting(**each["setting"]): each for each in found if "setting" in each}


_bench: Bench  # of a worker process


def _start_worker(people: int, prompts: int) -> None:
    """Begins a worker process."""
    global _bench
    use_compilation_cache()
    _bench = Bench(people, prompts)


def _told_traits() -> dict[str, float]:
    """What the base draws, in a worker."""
    return _bench.told_traits()


def _do(setting: Setting, folder: Path) -> None:
    """Trains and measures one setting, in a worker; what it says goes to the run's `log.txt`."""
    begun = time.monotonic()
    folder.mkdir(exist_ok=True)
    with (
        open(folder / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        result = _bench.measure(setting, train(setting, folder))
    result["seconds"] = round(time.monotonic() - begun, 1)
    write_whole(folder / setting.result, json.dumps(result, indent=1))


class Trial:
    """The stages, with so many settings at once; what is measured already is not done again."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor, at_once: int, seconds: float):
        self._folder, self._pool, self._at_once = folder, pool, at_once
        self._end = time.monotonic() + seconds

    def _is_late(self, results: Results) -> bool:
        """Whether what is begun now would end too late, by what took longest so far."""
        longest = max((result["seconds"] for result in results.values()), default=0)
        return time.monotonic() + longest > self._end

    def base(self) -> None:
        """What the base draws when it is told."""
        if not (place := self._folder / "told_traits.json").is_file():
            write_whole(place, json.dumps(self._pool.submit(_told_traits).result(), indent=1))

    def stage(self, stage: str, budgets: Sequence[int]) -> bool:
        """Does what a stage wants; False if it is too late for some of it."""
        running: dict[Future[None], Setting] = {}
        while True:
            results = read_results(self._folder)
            write_whole(self._folder / "table.md", table(results))
            missing = [s for s in next_settings(stage, results, budgets) if s not in results]
            late = self._is_late(results)
            # The first setting draws the pictures and encodes them; the others find them.
            at_once = self._at_once if results else 1
            for setting in missing:
                busy = {other.run for other in running.values()}
                if not late and len(running) < at_once and setting.run not in busy:
                    folder = self._folder / setting.run
                    running[self._pool.submit(_do, setting, folder)] = setting
            if not running:
                return not missing
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                setting = running.pop(future)
                future.result()
                print(f"{stage}: {setting.run}, {len(missing) - 1} to go", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"),
        help="begin no setting that would end later, by how long others took",
    )  # fmt: skip
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=4, help="for each of the people")
    parser.add_argument("--workers", type=int, default=1, help="settings at once")
    parser.add_argument(
        "--budgets", type=int, nargs=3, default=BUDGETS, metavar="STEPS",
        help="of the stages (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()

    def body() -> None:
        use_cpu_settings()  # the workers inherit them
        args.folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(
            args.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(args.people, args.prompts),
        ) as pool:
            trial = Trial(args.folder, pool, args.workers, args.seconds)
            for stage in args.stages:
                if stage == "base":
                    trial.base()
                elif not trial.stage(stage, args.budgets):
                    break

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
