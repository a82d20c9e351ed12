"""Prompts as the text encoder reads them: tokens with weights, in chunks of its length.

A text encoder takes 77 tokens, of which 75 are a prompt's. What is longer is cut, which is told,
or with `long_prompts="chunks"` goes through the encoder in chunks of 75, each with its own begin
and end, whose states are put one behind the other, as AUTOMATIC1111's web interface and compel do
it. Both prompts of an image then have as many chunks: the shorter is filled up with empty ones.

Legend: as in `scene.py`; t = 77 · chunks.
"""

import dataclasses
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusionjax.errors import UserError, told
from fusionjax.generation.model import Model
from fusionjax.generation.prompt_weights import likely_weight, read_weights
from fusionjax.generation.vocabulary import Vocabulary
from fusionjax.options import Description

_NAMES = ("the negative prompt", "the prompt")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts(Description):
    """A description with its prompts, as texts or as what a text encoder made of them.

    Attributes:
        prompt_embeds: text states [t, d] in place of the prompt, and
        negative_prompt_embeds: of the negative one.
    """

    prompt: str = ""
    prompt_embeds: np.ndarray | None = None
    negative_prompt_embeds: np.ndarray | None = None


class Tokens(NamedTuple):
    """One prompt, without begin and end."""

    ids: list[int]
    weights: list[float]


class Texts(NamedTuple):
    """The prompts of an image: the negative one, then the prompt.

    Attributes:
        tokens: of each.
        states: in place of each, text states [t, d], where they are given.
        length: t.
    """

    tokens: tuple[Tokens, Tokens]
    states: tuple[np.ndarray | None, np.ndarray | None]
    length: int

    def kind(self, vocabulary: Vocabulary) -> Hashable:
        """Images of one kind may share a batch: their texts have the same shapes."""
        weighted = any(w != 1 for each in self.tokens for w in each.weights)
        added = any(i >= vocabulary.own_words for each in self.tokens for i in each.ids)
        given = tuple(each is not None for each in self.states)
        return self.length, weighted, added and len(vocabulary.vectors), given


def texts_of(request: Prompts, vocabulary: Vocabulary, *, heard: bool = False) -> Texts:
    """Reads an image's prompts.

    Args:
        request: the image.
        vocabulary: what words there are.
        heard: warn of what is left out, and of weights that are not read.

    Raises:
        UserError: if weights are wrong, or states do not fit the text.

    Warns:
        UserWarning: see `heard`.
    """
    states = _states_of(request, vocabulary)
    tokens = [
        _tokens(text, name, request, vocabulary, heard=heard)
        for text, name in zip((request.negative_prompt, request.prompt), _NAMES, strict=True)
    ]
    most = vocabulary.length - 2
    chunks = max(1, *(-(-len(each.ids) // most) for each in tokens))
    length = chunks * vocabulary.length
    given = [each for each in states if each is not None]
    if given:
        length = len(given[0])
        if len(given) == 2 and len(given[1]) != length:
            raise UserError(
                f"negative_prompt_embeds have {len(given[0])} places and prompt_embeds "
                f"{len(given[1])}; they must have as many"
            )
        fits = length % vocabulary.length == 0 and length >= chunks * vocabulary.length
        if len(given) == 1 and not fits:
            name, other = ("prompt", "negative_prompt")[:: 1 if states[0] is None else -1]
            raise UserError(
                f"{name}_embeds have {length} places, and the {other} needs a multiple of "
                f"{vocabulary.length} from {chunks * vocabulary.length} on; give {other}_embeds too"
            )
    return Texts((tokens[0], tokens[1]), states, length)


def text_kind(request: Prompts, model: Model) -> Hashable:
    """Requests of one kind may share a batch, as far as their prompts go."""
    return texts_of(request, model.vocabulary).kind(model.vocabulary)


def text_arrays(requests: Sequence[Prompts], model: Model) -> dict[str, Any]:
    """The fields of a `Scene` that tell of texts.

    Args:
        requests: of one `text_kind`.
        model: what will read them.
    """
    vocabulary = model.vocabulary
    texts = [texts_of(request, vocabulary) for request in requests]
    chunks = max(1, texts[0].length // vocabulary.length)
    fields: dict[str, Any] = {}
    used = 0
    for i, prefix in enumerate(("negative_", "")):
        parts = [_chunked(each.tokens[i], chunks, vocabulary) for each in texts]
        ids = fields[f"{prefix}ids"] = np.stack([ids for ids, _ in parts])
        used = max(used, int(ids.max()) + 1)
        weights = np.stack([weights for _, weights in parts])
        fields[f"{prefix}weights"] = weights
        if given := [states for each in texts if (states := each.states[i]) is not None]:
            fields[f"{prefix}embeds"] = np.stack(given)
    if (fields["weights"] == 1).all() and (fields["negative_weights"] == 1).all():
        del fields["weights"], fields["negative_weights"]
    if used > vocabulary.own_words:
        known = vocabulary.vectors
        room = 1 << (len(known) - 1).bit_length()  # words come within it without compiling
        vectors = np.zeros((1, room, vocabulary.features), np.float32)
        vectors[0, : len(known)] = known
        fields["vectors"] = vectors
    return fields


def _tokens(
    text: str, name: str, request: Prompts, vocabulary: Vocabulary, *, heard: bool
) -> Tokens:
    tokens = Tokens([], [])
    pieces = read_weights(text, name) if request.prompt_weights else [(text, 1.0)]
    for piece, weight in pieces:
        ids = vocabulary.ids(piece)
        tokens.ids.extend(ids)
        tokens.weights.extend([weight] * len(ids))
    if heard and not request.prompt_weights and (likely := likely_weight(text)):
        warnings.warn(
            f"{name} holds {told(likely)}, which is read as plain words; prompt_weights=True "
            "(--prompt-weights) reads it as a weight",
            stacklevel=6,
        )
    most = vocabulary.length - 2
    if request.long_prompts == "chunks" or len(tokens.ids) <= most:
        return tokens
    if heard:
        warnings.warn(
            f"{name} is longer than {most} tokens; left out: “{vocabulary.text(tokens.ids[most:])}”"
            "; long_prompts='chunks' (--long-prompts chunks) reads it all",
            stacklevel=6,
        )
    return Tokens(tokens.ids[:most], tokens.weights[:most])


def _chunked(
    tokens: Tokens, chunks: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, Float[np.ndarray, " t"]]:
    begin, end, filler = vocabulary.ends
    length = vocabulary.length
    ids = np.full((chunks, length), filler, np.int32)
    weights = np.ones((chunks, length), np.float32)
    for row in range(chunks):
        these = slice(row * (length - 2), (row + 1) * (length - 2))
        own = [begin, *tokens.ids[these], end]
        ids[row, : len(own)] = own
        weights[row, 1 : len(own) - 1] = tokens.weights[these]
    return ids.reshape(-1), weights.reshape(-1)


def _states_of(
    request: Prompts, vocabulary: Vocabulary
) -> tuple[np.ndarray | None, np.ndarray | None]:
    given = request.negative_prompt_embeds, request.prompt_embeds
    texts = request.negative_prompt, request.prompt
    for states, text, name in zip(given, texts, ("negative_prompt", "prompt"), strict=True):
        if states is None:
            continue
        if text:
            raise UserError(f"{name} and {name}_embeds are both given; give one of them")
        if states.ndim != 2 or states.shape[1] != vocabulary.features or not len(states):
            raise UserError(
                f"{name}_embeds of an image have shape {states.shape}; they must be "
                f"[{vocabulary.length}, {vocabulary.features}]"
            )
        if not np.isfinite(states).all():
            raise UserError(f"{name}_embeds hold numbers that are not finite")
    return given
