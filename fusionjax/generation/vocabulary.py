"""The words that prompts may hold: a base's tokens, and those of textual inversions.

A textual inversion (Gal et al. 2022, arXiv 2208.01618) is a word whose embedding was learnt, often
several of them in a row. They are data: neither the base's tokenizer nor its weights change, and
where a prompt holds no such word nothing is computed of them.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fusionjax.errors import UserError, told
from fusionjax.interop.textual_inversion import Embedding, as_embeddings, read_embedding
from fusionjax.models.base import BaseModel


class Vocabulary:
    """A base's tokens, and more.

    Args:
        base: its tokenizer and its text encoder; neither is changed.

    Attributes:
        vectors: embeddings of the words added, [v, d]. Their ids follow the text encoder's own.
    """

    def __init__(self, base: BaseModel) -> None:
        self._tokenizer: Any = base.tokenizer
        config = base.text_encoder.config
        self.length: int = config.max_position_embeddings
        self.features: int = config.hidden_size
        self.own_words: int = config.vocab_size
        self.vectors: Float[np.ndarray, "v d"] = np.zeros((0, self.features), np.float32)
        self._added: dict[int, list[int]] = {}  # the tokenizer's id → those of its vectors

    def add(self, embedding: Embedding) -> None:
        """Adds a word.

        Raises:
            UserError: if the word is there already, or its vectors are of another width.
        """
        token, vectors = embedding.token, embedding.vectors
        if not token or token != "".join(token.split()):
            raise UserError(f"token is {told(token)}; it must be one word, such as <cat-toy>")
        if token in self._tokenizer.get_vocab():
            raise UserError(
                f"the token {told(token)} of {embedding.source} is a word of the tokenizer "
                "already; give it another name (FILE=token, or token=)"
            )
        if vectors.shape[1] != self.features:
            known = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL"}
            made_for = known.get(vectors.shape[1], "another base")
            raise UserError(
                f"{embedding.source} holds vectors of {vectors.shape[1]} numbers, as for "
                f"{made_for}; this base's text encoder reads {self.features}"
            )
        tokenizer = copy.deepcopy(self._tokenizer)
        tokenizer.add_tokens(token)
        own = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(own) != 1 or own[0] in self._added or own[0] < len(self._tokenizer):
            raise UserError(
                f"the tokenizer does not keep {told(token)} together; give it another name, such "
                "as <cat-toy> (FILE=token, or token=)"
            )
        first = self.own_words + len(self.vectors)
        ids = list(range(first, first + len(vectors)))
        self._added = {**self._added, own[0]: ids}
        self.vectors = np.concatenate([self.vectors, vectors])
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """The ids of a text, however long, without its begin and end."""
        tokens = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
        )["input_ids"]  # fmt: skip
        return [i for token in tokens for i in self._added.get(token, [token])]

    def text(self, ids: Sequence[int]) -> str:
        """What ids say."""
        names = {own: token for token, (own, *_) in self._added.items()}
        known = [names.get(i, i) for i in ids if i < self.own_words or i in names]
        return str(self._tokenizer.decode(known)).strip()

    @property
    def ends(self) -> tuple[int, int, int]:
        """The ids of a text's begin, of its end, and of what fills it up."""
        words = self._tokenizer
        return words.bos_token_id, words.eos_token_id, words.pad_token_id


def load_textual_inversion(
    pipe: Any,
    pretrained_model_name_or_path: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any],
    token: str | Sequence[str] | None = None,
) -> None:
    """Teaches a pipeline words of textual inversions. Names are diffusers'.

    Args:
        pipe: the pipeline. Its base and its adapter stay as they are.
        pretrained_model_name_or_path: a `.safetensors` or `.pt` file, or {token: vectors [d] or
            [n, d]}; or a list of them.
        token: the word, or one for each file; None is the file's own.

    Raises:
        UserError: if a file cannot be read, is made for another base, or its word is there already.
    """
    given: Any = pretrained_model_name_or_path
    sources = list(given) if isinstance(given, list | tuple) else [given]
    words: list[Any] = list(token) if isinstance(token, list | tuple) else [token]
    if len(words) == 1:
        words *= len(sources)
    if len(words) != len(sources) or (token is not None and len(set(words)) < len(words)):
        raise UserError(
            f"{len(set(words))} tokens for {len(sources)} textual inversions; give one for each"
        )
    for source, word in zip(sources, words, strict=True):
        if isinstance(source, Mapping):
            for embedding in as_embeddings(source, word):
                pipe.model.vocabulary.add(embedding)
        else:
            pipe.model.vocabulary.add(read_embedding(source, word))
