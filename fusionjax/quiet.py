"""Silences one message of diffusers, which it logs while it is imported and at every trace."""

import logging

_DEPRECATION = "Flax classes are deprecated and will be removed in Diffusers"
_DIFFUSERS_MODULES = (
    "attention_flax",
    "controlnets.controlnet_flax",
    "embeddings_flax",
    "modeling_flax_utils",
    "resnet_flax",
    "unets.unet_2d_blocks_flax",
    "unets.unet_2d_condition_flax",
    "vae_flax",
)


def _not_the_deprecation(record: logging.LogRecord) -> bool:
    return _DEPRECATION not in record.getMessage()


def quiet_diffusers() -> None:
    """Silences diffusers' "Flax classes are deprecated" message, and no other.

    The message is logged once per submodule per trace, and pyproject.toml pins the release.
    Calling it again changes nothing.
    """
    for name in _DIFFUSERS_MODULES:
        logging.getLogger(f"diffusers.models.{name}").addFilter(_not_the_deprecation)
