"""Which fusion keeps the person better? Trains and measures both in miniature, many settings each.

    python -m benchmarks.trial runs/trial                  # all of it; goes on where it stopped
    python -m benchmarks.trial runs/trial --seconds 480    # begins nothing that would take longer
    python -m benchmarks.trial runs/trial --stages base    # what the base draws when it is told

Every setting is trained on the mini world and measured on people of the validation split, at
several face strengths, so that a setting is a curve and no point. A setting's worth is the least
identity distance among the strengths at which the prompt is followed as by the base alone, but for
three points: a copy that ignores the prompt is worth nothing. Both fusions get the same number of
settings, the same budgets, and the same number of seeds:

base      how often the base shows a trait that the caption names: what no adapter can exceed
settings  18 settings of each fusion, 500 steps: start, bias, learning rate
budgets   the best three of each at 2,000 steps, the best of those at 6,000
seeds     the best of each with three seeds
readings  of the best concatenation: matched references; faces shown to the negative branch
test      the best of each, its three seeds, on people of the test split

A setting's folder holds the adapter and `result.json`; FOLDER/table.md is written anew after each.
With an accelerator a setting of 500 steps takes half a minute, on two cores half an hour.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
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


def first_settings() -> list[Setting]:
    """As many of each fusion, in turns: a decoupled one has no bias, so more learning rates."""
    concat = [
        Setting("concat", init, bias, rate)
        for rate, bias, init in itertools.product((5e-3, 2.5e-3), (-4.0, 0.0, -2.0), STARTS)
    ]
    rates = (5e-3, 2.5e-3, 1.2e-3, 1e-2, 3.5e-3, 7e-3)
    decoupled = [
        Setting("decoupled", init, 0.0, rate) for rate, init in itertools.product(rates, STARTS)
    ]
    return [setting for pair in zip(concat, decoupled, strict=True) for setting in pair]


def next_settings(stage: str, results: Results) -> list[Setting]:
    """What a stage wants, as far as it can be said from what is measured."""
    if stage == "settings":
        return first_settings()
    wanted = []
    for fusion in ("concat", "decoupled"):

        def best(steps: int, count: int = 1, fusion: str = fusion) -> list[Setting]:
            first = dataclasses.replace(Setting(fusion), steps=steps)
            fixed = ("fusion", "steps", "seed", "reference", "faces_in_negative", "split")
            alike = [
                setting for setting in results
                if all(getattr(setting, name) == getattr(first, name) for name in fixed)
            ]  # fmt: skip
            return sorted(alike, key=lambda setting: worth(results[setting]))[:count]

        longer = [dataclasses.replace(setting, steps=2000) for setting in best(500, 3)]
        longest = [dataclasses.replace(setting, steps=6000) for setting in best(2000)]
        chosen = min(
            (setting for steps in (500, 2000, 6000) for setting in best(steps)),
            key=lambda setting: worth(results[setting]),
            default=None,
        )
        if stage == "budgets":
            wanted += [*longer, *longest]
        if chosen is None:
            continue
        seeds = [dataclasses.replace(chosen, seed=seed) for seed in range(3)]
        if stage == "seeds":
            wanted += seeds
        if stage == "readings" and fusion == "concat":
            wanted.append(dataclasses.replace(chosen, reference="matched"))
            wanted.append(dataclasses.replace(chosen, faces_in_negative=True))
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


def work(folder: Path, stages: Iterable[str], bench: Bench, done: Callable[[], bool]) -> None:
    """Trains and measures what the stages want and is not there, until it is time to end."""
    for stage in stages:
        if stage == "base" and not (place := folder / "told_traits.json").is_file():
            write_whole(place, json.dumps(bench.told_traits(), indent=1))
        while stage != "base":
            results = read_results(folder)
            write_whole(folder / "table.md", table(results))
            missing = [s for s in next_settings(stage, results) if s not in results]
            if not missing:
                break
            if done():
                return
            setting = missing[0]
            print(f"{stage}: {setting.run}, {len(missing)} to go", flush=True)
            begun = time.monotonic()
            run = folder / setting.run
            result = bench.measure(setting, train(setting, run))
            result["seconds"] = round(time.monotonic() - begun, 1)
            write_whole(run / setting.result, json.dumps(result, indent=1))


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
    args = parser.parse_args()

    def body() -> None:
        use_cpu_settings()
        use_compilation_cache()
        args.folder.mkdir(parents=True, exist_ok=True)
        last = time.monotonic()
        end, longest = last + args.seconds, 0.0

        def done() -> bool:
            nonlocal last, longest
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            return last + longest > end

        work(args.folder, args.stages, Bench(args.people, args.prompts), done)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
