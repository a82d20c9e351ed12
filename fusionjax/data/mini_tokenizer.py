"""The mini base's tokenizer: byte-pair encoding learnt from captions, in CLIP's file format.

`transformers.CLIPTokenizer.from_pretrained(folder)` loads what `train_tokenizer` writes, with
CLIP's conventions: text in small letters, `<|startoftext|>` first, `<|endoftext|>` last and as
padding, 77 tokens. The shipped one was made by

    python -m fusionjax.data.mini_tokenizer fusionjax/assets/mini/tokenizer
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fusionjax.command import parser_of, run_command
from fusionjax.mini import captions as words
from fusionjax.mini import people as mini_people

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def mini_captions(count: int, seed: int = 0) -> list[str]:
    """Captions of the mini world, of one person or of several, without drawing the pictures.

    Args:
        count: How many; one in five is of several people.
        seed: The same seed gives the same captions.

    Returns:
        The captions.
    """
    captions = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        number = 1 if rng.random() < 0.8 else int(rng.integers(2, 4))
        persons = [mini_people.random_person(rng, "train") for _ in range(number)]
        circumstances = [mini_people.random_circumstance(rng) for _ in persons]
        if number == 1:
            captions.append(words.caption(persons[0], circumstances[0], rng))
        else:
            captions.append(words.scene_caption(persons, circumstances, rng))
    return captions


def train_tokenizer(
    captions: Iterable[str], folder: str | os.PathLike[str], vocabulary: int = 1024
) -> Path:
    """Learns byte-pair merges and writes CLIP's tokenizer files.

    Args:
        captions: The texts to learn from.
        folder: Where `vocab.json`, `merges.txt` and two files of settings go.
        vocabulary: The largest number of tokens: 512 bytes, merges, two special ones.

    Returns:
        The folder.

    Raises:
        ValueError: If the vocabulary does not even hold the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_and_ends = 2 * len(alphabet)
    if vocabulary < bytes_and_ends + 2:
        raise ValueError(f"vocabulary is {vocabulary}; the bytes alone need {bytes_and_ends + 2}")
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = _clip_words()
    learner.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]

    # CLIP's order: all bytes, all bytes at the end of a word, the merges, the special tokens.
    tokens = [
        *alphabet,
        *(byte + "</w>" for byte in alphabet),
        *("".join(merge) for merge in merges),
    ]
    tokens = [*dict.fromkeys(tokens), START, END]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _write_json(target / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (target / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    _write_json(target / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "do_lower_case": True,
    }
    _write_json(target / "tokenizer_config.json", {**settings, **special})
    return target


def _clip_words() -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: learns the tokenizer from 20,000 captions; returns the exit status."""
    parser = parser_of(
        "python -m fusionjax.data.mini_tokenizer",
        "Learn the mini base's tokenizer from captions of the mini world.",
    )
    parser.add_argument("folder", help="the tokenizer's folder")
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--vocabulary", type=int, default=1024)
    args = parser.parse_args(arguments)

    def body() -> None:
        train_tokenizer(mini_captions(args.captions), args.folder, args.vocabulary)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
