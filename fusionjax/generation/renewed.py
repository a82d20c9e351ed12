"""A person again, as other weights of the base see them: from the latents of their photos."""

import dataclasses
import warnings
from weakref import WeakKeyDictionary

import jax
import numpy as np

from fusionjax.backend.compilation import full_memory_told
from fusionjax.generation import programs
from fusionjax.generation.runner import Runner
from fusionjax.identity import Identity

# What came of people when they were last computed again.
_RENEWED: WeakKeyDictionary[Identity, Identity] = WeakKeyDictionary()


def renewed(runner: Runner, person: Identity) -> Identity:
    """A person as this base's weights see them, computed again from their latents if need be.

    Args:
        runner: of the model.
        person: encoded with this base or another one of the same latents.

    Returns:
        The same person, or a new one with the same photos; the same for the same person, as long as
        the base's weights stay.

    Warns:
        UserWarning: if they were encoded with another base, not only with other LoRAs.
    """
    base, options = runner.model.base, runner.model.fusion.options
    here = base.identity_fingerprint
    if person.base_fingerprint == here:
        return person
    before = _RENEWED.get(person)
    if before is not None and before.base_fingerprint == here:
        return before
    if base.origin is None or person.base_fingerprint not in base.origin.known:
        warnings.warn(
            f"an identity was encoded with the base model {person.base_fingerprint}, and this is "
            f"{here}: what it shows is computed again from its latents, which takes them for this "
            "base's VAE's",
            stacklevel=2,
        )
    empty = base.tokenize([""])
    states = []
    if options.reference == "clean":
        for latents in person.latents:
            given = np.asarray(latents, base.vae.dtype)[None]
            with full_memory_told(
                "the memory does not hold a photo's pass through the UNet; use a 16-bit dtype"
            ):
                states.append(jax.device_get(runner.run(programs.encode_latents, 1, given, empty)))
    joined = {
        layer: np.concatenate([np.asarray(each[layer]) for each in states])
        for layer in (states[0] if states else {})
    }
    again = dataclasses.replace(person, states=joined, base_fingerprint=here)
    _RENEWED[person] = again
    return again
