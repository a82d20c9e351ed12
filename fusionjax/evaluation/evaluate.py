"""Runs the suite: loads base and adapters, paints in every way, measures.

One base model is loaded; the adapters share it.
"""

from PIL import Image

from fusionjax.backend.devices import default_dtype
from fusionjax.embedded import MINI, MINI_BASE, MINI_DECOUPLED, base_source
from fusionjax.errors import UserError
from fusionjax.evaluation import measure, report
from fusionjax.evaluation import suite as suites
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.evaluation.suite import Cases, Pixels, Progress, Suite
from fusionjax.interop.adapter_file import check_fits
from fusionjax.models.adapter import load_adapter
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline

NO_FUSION = "none"


def evaluate(
    suite: Suite,
    *,
    base: str | None = None,
    fusion: str | None = None,
    decoupled: str | None = None,
    recogniser: str | None = None,
    progress: Progress | None = None,
) -> tuple[report.Results, dict[str, Image.Image]]:
    """Paints and measures the whole suite.

    Args:
        suite: How much, and how.
        base: The base model; None is the adapter's own, or the embedded one.
        fusion: The adapter; None is the embedded one, which belongs to the embedded base; `none`
            measures the base alone.
        decoupled: An adapter with `fusion="decoupled"` for the same base, to compare with; the
            embedded adapter is compared with an embedded one.
        recogniser: A recogniser's file; None is the embedded one.
        progress: Called with a stage, how much of it is done, and of how much.

    Returns:
        The results, and the contact sheets by file name.

    Raises:
        UserError: If something is missing or does not fit together.
    """
    if fusion is None and base not in (None, MINI):
        raise UserError(
            f"base is {base!r}, and the embedded adapter belongs to the embedded base; name an "
            "adapter with --fusion, or measure the base alone with --fusion none"
        )
    judge = Recogniser.from_pretrained(recogniser)
    pipe = open_pipeline(base, fusion)
    if fusion is None and decoupled is None and pipe.fusion_params is not None:
        decoupled = str(MINI_DECOUPLED)
    return run(suite, pipe, judge, other=_other(pipe, decoupled), progress=progress)


def open_pipeline(base: str | None, fusion: str | None) -> FusionPipeline:
    """A base with an adapter; `none` for the base alone, see `evaluate`."""
    if fusion == NO_FUSION:
        source = MINI_BASE if base is None else base_source(base)
        return FusionPipeline(BaseModel.from_pretrained(source, dtype=default_dtype()))
    return FusionPipeline.from_pretrained(base, fusion)


def _other(pipe: FusionPipeline, decoupled: str | None) -> FusionPipeline | None:
    """A second pipeline over the same base with the adapter to compare with."""
    if decoupled is None:
        return None
    adapter = load_adapter(decoupled)
    if adapter.options.fusion != "decoupled":
        raise UserError(
            f"decoupled {decoupled!r} was trained with fusion={adapter.options.fusion!r}; "
            "name an adapter that was trained with fusion='decoupled'"
        )
    other = FusionPipeline(pipe.base, adapter.params, adapter.options)
    check_fits(adapter, other.fusion.layers, pipe.base.fingerprint, decoupled)
    return other


def run(
    suite: Suite,
    pipe: FusionPipeline,
    judge: Recogniser,
    *,
    other: FusionPipeline | None = None,
    progress: Progress | None = None,
) -> tuple[report.Results, dict[str, Image.Image]]:
    """Paints and measures with pipelines that are loaded.

    Args:
        suite: How much, and how.
        pipe: Base and adapter; without an adapter only text is painted from.
        judge: The recogniser.
        other: A pipeline over the same base with a decoupled adapter.
        progress: Called with a stage, how much of it is done, and of how much.

    Returns:
        The results, and the contact sheets by file name.
    """
    cases = suites.make_cases(suite, pipe.photo_side)
    painted: dict[str, list[Pixels]] = {
        report.TEXT_ONLY: suites.generate_cases(pipe, cases, suite, None, progress)
    }
    pairs: dict[str, list[Pixels]] = {}
    if pipe.fusion_params is not None:
        faces = suites.encode_people(pipe, cases, list(cases.photos), 1, progress)
        painted[report.OURS] = suites.generate_cases(pipe, cases, suite, faces, progress)
        if cases.pairs:
            pairs[report.DRAWN] = [pair.truth for pair in cases.pairs]
            for name, masks in ((report.WITH_MASKS, True), (report.WITHOUT_MASKS, False)):
                pairs[name] = suites.generate_pairs(
                    pipe, cases, suite, faces, masks=masks, progress=progress
                )
        if suite.photos > 1:
            more = suites.encode_people(pipe, cases, cases.people, suite.photos, progress)
            name = report.OURS_MORE.format(suite.photos)
            painted[name] = suites.generate_cases(pipe, cases, suite, more, progress)
    if other is not None:
        faces = suites.encode_people(other, cases, cases.people, 1, progress)
        painted[report.DECOUPLED] = suites.generate_cases(other, cases, suite, faces, progress)
    results = report.Results(
        suite=suite,
        base=pipe.base.fingerprint,
        fusion=_adapter(pipe),
        decoupled=None if other is None else _adapter(other),
        ways={name: measure.measure(judge, cases, each) for name, each in _all(cases, painted)},
        pairs={name: measure.measure_pairs(judge, cases, each) for name, each in pairs.items()},
        autoencoder_psnr=measure.autoencoder_psnr(pipe.base, [c.truth for c in cases.flat()]),
        recogniser=judge.report,
    )
    sheets = {"sheet.png": report.sheet(cases, painted)}
    if pairs:
        sheets["pairs.png"] = report.pair_sheet(cases, pairs)
    return results, sheets


def _adapter(pipe: FusionPipeline) -> report.AdapterName | None:
    """By which results are told apart."""
    if pipe.fusion_params is None:
        return None
    return report.AdapterName(pipe.fingerprints["fusion"], pipe.fusion.options.to_json())


def _all(cases: Cases, painted: dict[str, list[Pixels]]) -> list[tuple[str, list[Pixels]]]:
    """The floor first, then what was painted, then the ceiling."""
    flat = cases.flat()
    return [
        (report.TRUTH, [case.truth for case in flat]),
        *painted.items(),
        (report.STRANGER, [case.stranger for case in flat]),
    ]
