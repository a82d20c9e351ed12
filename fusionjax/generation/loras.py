"""LoRAs of a pipeline that is in use, under diffusers' names."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionjax.errors import UserError, told
from fusionjax.generation.model import Model
from fusionjax.generation.runner import Runner
from fusionjax.interop.lora_source import find_lora, parse
from fusionjax.options import not_one_of
from fusionjax.schema import real, typed

if TYPE_CHECKING:
    from fusionjax.models.base import BaseModel

_STRENGTH = real(-1e6, 1e6)


class LoraMethods:
    """What a pipeline does with LoRAs: they are merged into its base, and taken out again.

    The base is not loaded again: the weights that a LoRA changes are read anew from its files, and
    nothing is compiled. Identities that are encoded already are computed again from their latents,
    when they are next shown.
    """

    base: "BaseModel"
    model: Model
    runner: Runner
    _loras: dict[str, tuple[Path, float]]  # by name, in the order of loading
    _active: list[str]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike[str] | tuple[Any, Any],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
    ) -> None:
        """Loads a LoRA, which is then the only active one, as in diffusers; see `set_adapters`.

        Args:
            pretrained_model_name_or_path: a file (`.safetensors` may be left out), a folder or a
                name on the hub, with a strength as `FILE:0.8` or `(file, 0.8)`.
            adapter_name: a name for `set_adapters`; None is `default_0`, `default_1`, …
            weight_name: the file in the folder or on the hub.

        Raises:
            UserError: if it is missing or does not fit the base, or the name is taken.
        """
        loras, _ = self._now()
        name = f"default_{len(loras)}" if adapter_name is None else adapter_name
        if name in loras:
            raise UserError(f"adapter_name {told(name)} is taken; choose another one")
        source, strength = parse(pretrained_model_name_or_path)
        self._go_on(loras | {name: (find_lora(source, weight_name), strength)}, [name])

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float | None] | None = None,
    ) -> None:
        """Says which of the loaded LoRAs are active, and how strongly.

        Args:
            adapter_names: one name or several, merged in this order; none takes all out.
            adapter_weights: a strength for all or one for each; None keeps the present one.

        Raises:
            UserError: if a name is not known, or the numbers do not fit.
        """
        loras, _ = self._now()
        chosen = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given: Any = adapter_weights
        weights = list(given) if isinstance(given, list | tuple) else [given] * len(chosen)
        if len(weights) != len(chosen):
            raise UserError(f"{len(weights)} adapter_weights for {len(chosen)} adapter_names")
        for name, weight in zip(chosen, weights, strict=True):
            if name not in loras:
                raise UserError(not_one_of("adapter_names", name, list(loras)))
            if weight is not None:
                strength = float(typed(weight, _STRENGTH, "adapter_weights"))
                loras = loras | {name: (loras[name][0], strength)}
        self._go_on(loras, list(dict.fromkeys(chosen)))

    def get_active_adapters(self) -> list[str]:
        """The names of the LoRAs that are merged in."""
        return self._now()[1]

    def unload_lora_weights(self) -> None:
        """Takes all LoRAs out, also those that the pipeline was loaded with."""
        self._go_on({}, [])

    def _now(self) -> tuple[dict[str, tuple[Path, float]], list[str]]:
        """The LoRAs by name, and the active ones; those that were loaded with the base at first."""
        if not hasattr(self, "_loras"):
            origin = self.base.origin
            merged = () if origin is None else origin.loras
            self._loras = {f"default_{i}": lora for i, lora in enumerate(merged)}
            self._active = list(self._loras)
        return dict(self._loras), list(self._active)

    def _go_on(self, loras: dict[str, tuple[Path, float]], active: list[str]) -> None:
        base = self.base.with_loras([loras[name] for name in active])
        self.base, self.model = base, dataclasses.replace(self.model, base=base)
        self.runner.go_on_with(self.model, {**self.runner.params, "base": base.params})
        self.__dict__.pop("fingerprints", None)  # computed when next asked for
        self._loras, self._active = loras, active
