"""Calls and commands with prompts as people write them, on a tiny real model."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fusionjax.errors import UserError
from fusionjax.generation.each_prompt import people_of_each, read_texts
from fusionjax.generation.keywords import seeds_of
from fusionjax.pipeline import FusionPipeline
from sample.__main__ import main
from sample.dry_run import text_length
from sample.formats import read_picture
from sample.inputs import Remembered, checksums, find
from sample.job import Job
from sample.options import parse
from tests import tiny

LONG = "a band in the rain and " * 5  # letters are tokens
SIZE = 8, 8
SHORT = {"num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipe()


@pytest.fixture(scope="module")
def person():
    return tiny.tiny_people()[0]


def states_by_hand(base, text, count):
    """Text states of chunks of 75 tokens, each encoded for itself, one behind the other."""
    ids = base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    begin, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    encode = jax.jit(base.encode_text)
    chunks = []
    for i in range(count):
        own = [begin, *ids[i * 75 : (i + 1) * 75], end]
        row = np.full((1, 77), base.tokenizer.pad_token_id, np.int32)
        row[0, : len(own)] = own
        chunks.append(encode(base.params, row))
    return np.concatenate(chunks, 1)


def test_long_short_and_given_prompts_are_the_same_however_they_come(pipe, person):
    """One call with prompts of two lengths, each alone, and the text states in their place."""
    options = {**SHORT, "long_prompts": "chunks", "negative_prompt": "rain"}
    mixed = pipe([LONG, "a dog", LONG[::-1]], person, seed=[4, 5, 9], **options).latents
    dog = pipe("a dog", person, seed=5, **options).latents
    assert np.allclose(mixed[1], dog[0], atol=1e-4)
    cut = pipe(LONG[:20], person, seed=4, **options).latents
    assert np.abs(mixed[0] - cut[0]).max() > 1e-2
    embeds = np.concatenate([states_by_hand(pipe.base, text, 2) for text in (LONG, LONG[::-1])])
    rain = states_by_hand(pipe.base, "rain", 2)
    given = pipe(
        None, person, prompt_embeds=embeds, negative_prompt_embeds=rain, seed=[4, 9], **SHORT
    )
    assert np.allclose(given.latents, mixed[[0, 2]], atol=1e-4)


def test_people_for_each_prompt(pipe, person):
    """Each image follows its own people and their strength, in whatever order they come."""
    other = tiny.tiny_people()[1]
    options = {**SHORT, "seed": [3, 3]}
    both = pipe(["a dog"] * 2, [[person], [other]], face_strength=[[1.0], [0.5]], **options)
    turned = pipe(["a dog"] * 2, [[other], [person]], face_strength=[[0.5], [1.0]], **options)
    assert np.allclose(both.latents, turned.latents[::-1], atol=1e-4)
    weaker = pipe(["a dog"] * 2, [[person], [other]], face_strength=[[1.0], [0.0]], **options)
    assert np.allclose(both.latents[0], weaker.latents[0], atol=1e-4)
    for latents in (both.latents[0], weaker.latents[1]):
        assert np.abs(both.latents[1] - latents).max() > 1e-3


def test_a_learnt_word_in_a_picture(person):
    base = tiny.tiny_base()
    pipe = FusionPipeline(base, *tiny.tiny_fusion(), devices=jax.devices()[:1])
    table = base.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    # The very embedding of a word that the base knows: another name for the same picture.
    known = base.tokenizer("b", add_special_tokens=False).input_ids[0]
    pipe.load_textual_inversion({"<bee>": np.asarray(table[known])})
    learnt = pipe("a <bee>", person, **SHORT).latents
    assert np.allclose(learnt, pipe("a b", person, **SHORT).latents, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, "", None, None), "no prompt is given"),
        (([], "", None, None), "no prompt is given"),
        ((["a", "b"], ["x", "y", "z"], None, None), "3 negative prompts for 2 prompts"),
        (("a", "", np.zeros((1, 77, 32)), None), "prompt and prompt_embeds are both given"),
        (("a", "x", None, np.zeros((1, 77, 32))), "negative_prompt and negative_prompt_embeds are"),
        ((None, "", np.zeros((77, 32)), None), r"prompt_embeds have shape \(77, 32\); they must"),
        ((None, "", "x", None), "prompt_embeds is 'x'; it must hold numbers"),
        ((None, "", np.zeros((3, 77, 32)), np.zeros((2, 77, 32))), "2 negative prompts for 3"),
    ],
)
def test_texts_that_do_not_go_together_are_one_line(given, message):
    with pytest.raises(UserError, match=message):
        read_texts(*given)


def test_texts_are_one_for_each_prompt():
    assert read_texts(["a", "b"], ["x", "y"], None, None) == [
        {"prompt": "a", "negative_prompt": "x"}, {"prompt": "b", "negative_prompt": "y"}
    ]  # fmt: skip
    assert read_texts(["a", "b"], None, None, None)[1] == {"prompt": "b", "negative_prompt": ""}
    (only,) = read_texts(None, "", np.ones((1, 77, 32)), None)
    assert only["prompt_embeds"].shape == (77, 32)


def test_people_are_of_all_prompts_or_of_each():
    shared = people_of_each(["ann", "ben"], [1.0, 2.0], None, 2, SIZE)
    assert (
        shared == [{"identities": ["ann", "ben"], "face_strength": [1.0, 2.0], "masks": None}] * 2
    )
    masks = [np.zeros((1, 8, 8)), np.ones((2, 8, 8))]
    own = people_of_each([["ann"], ["ben", "cleo"]], [[1], [2, 3]], masks, 2, SIZE)
    assert [each["identities"] for each in own] == [["ann"], ["ben", "cleo"]]
    assert [each["face_strength"] for each in own] == [[1], [2, 3]]
    assert [each["masks"].shape for each in own] == [(1, 8, 8), (2, 8, 8)]
    everywhere = people_of_each([["ann"], ["ben"]], 1.0, np.ones((1, 8, 8)), 2, SIZE)
    assert [each["masks"].shape for each in everywhere] == [(1, 8, 8)] * 2
    halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    left, right = people_of_each(["ann", "ben"], 1.0, halves, 1, SIZE)[0]["masks"]
    assert left[:, :4].all()
    assert not left[:, 4:].any()
    np.testing.assert_array_equal(right, 1 - left)
    picture = Image.fromarray(np.uint8(255 * left))
    nested = people_of_each([["ann"], ["ben"]], 1.0, [[picture], [halves[1]]], 2, SIZE)
    np.testing.assert_array_equal([each["masks"][0] for each in nested], [left, right])
    for given, message in (
        ((["ann", ["ben"]], 1.0, None, 2), "identities holds 1 lists of people in 2 entries for 2"),
        (([["ann"], ["ben"]], 1.0, None, 3), "identities holds 2 lists of people in 2 entries for"),
        (([["ann"], ["ben"]], [[1.0]], None, 2), "face_strength holds 1 lists of numbers in 1"),
    ):
        with pytest.raises(UserError, match=message):
            people_of_each(*given, SIZE)


def test_a_list_of_seeds_is_one_for_each_image():
    assert seeds_of([3, 9], 2) == [3, 9]
    with pytest.raises(UserError, match="seed or generator is a list of 2 for 4 images"):
        seeds_of([3, 9], 4)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.tiny_base().save_pretrained(folder, np.float32)
    return folder


def run(base, out, *words, status=0):
    command = [
        "--base",
        base,
        "--no-face",
        "--steps",
        1,
        "--cache",
        base / "cache",
        "--quiet",
        "--output",
        out,
    ]
    assert main([str(word) for word in (*command, *words)]) == status


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
def test_the_command_reads_weights_chunks_and_learnt_words(base_folder, tmp_path, capsys):
    """One picture of all three, repeated from its own text, and refused when the word changes."""
    out = tmp_path / "out"
    out.mkdir()
    learnt = out / "learnt.safetensors"
    rng = np.random.default_rng(0)
    save_file({"emb_params": rng.normal(size=(2, 32)).astype(np.float32)}, learnt)
    run(base_folder, out, "--prompt", LONG + "(<toy>:1.3)", "--prompt-weights", "--long-prompts",
        "chunks", "--textual-inversion", f"{learnt}=<toy>", "--seed", 3)  # fmt: skip
    assert "warning" not in capsys.readouterr().err
    job = read_picture(out / "0001_seed3.png")
    assert (job.prompt_weights, job.long_prompts) == (True, "chunks")
    assert job.textual_inversion == (f"{learnt}=<toy>",)
    again = ["--from", str(out / "0001_seed3.png"), "--trust", "--quiet"]
    again += ["--cache", str(base_folder / "cache")]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    repeated = pixels(tmp_path / "again" / "0001_seed3.png")
    assert np.array_equal(repeated, pixels(out / "0001_seed3.png"))
    save_file({"emb_params": rng.normal(size=(2, 32)).astype(np.float32)}, learnt)
    assert main([*again, "--output", str(tmp_path / "again")]) == 2
    assert "which has changed since" in capsys.readouterr().err


def test_pictures_from_before_are_cut_and_without_weights():
    """Their text does not know the options."""
    job = Job.from_mapping({"prompt": "a (b:1.3)", "seed": 3})
    assert (job.prompt_weights, job.long_prompts, job.textual_inversion) == (False, "cut", ())
    assert job.to_json() == {"prompt": "a (b:1.3)", "seed": 3}  # what resumes a requests file


def test_learnt_words_are_files_that_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a=b.safetensors"
    path.write_bytes(b"x")
    job = Job.from_mapping({"textual_inversion": ["a=b.safetensors", "a=b.safetensors=<c>"]})
    assert job.textual_inversion == (str(path), f"{path}=<c>")
    sums = checksums(job)
    assert set(sums) == {str(path), f"{path}=<c>"}
    assert len(set(sums.values())) == 1

    def found(told, sums):
        how = {"by_path": True, "trust": False, "remembered": Remembered("")}
        return find(tmp_path / "p.png", told, sums, **how)

    told = json.loads(json.dumps(job.to_json()))
    assert found(told, sums) == told | {"textual_inversion": list(job.textual_inversion)}
    far = "/etc/hostname=../../" + str(path)
    for name in ("/etc/hostname", "/etc/hostname=<c>", far):
        with pytest.raises(UserError, match="outside the current folder"):
            found({"textual_inversion": [name]}, {name: "0"})
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        Job.from_mapping({"textual_inversion": "none.pt=<c>"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ["a", "b"]}, r"prompt is \['a', 'b'\]"),
        ({"prompt": "a", "negative_prompt": ["a", "b"]}, r"negative_prompt is \['a', 'b'\]"),
        ({"prompt": "a", "seed": [1, 2]}, r"seed is \[1, 2\]"),
        ({"prompt": "a", "long_prompts": "chunk"}, "did you mean 'chunks'"),
        ({"prompt": "a", "prompt_weights": "yes"}, "prompt_weights is 'yes'"),
        ({"prompt": "a", "people": [[{"faces": "x"}]]}, "a person is"),
    ],
)
def test_lists_in_files_are_one_line(values, message):
    with pytest.raises(UserError, match=message):
        Job.from_mapping(values)


def test_rows_share_their_learnt_words(base_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x", "textual_inversion": ["a.pt"]}\n')
    run(base_folder, tmp_path / "out", "--requests", rows, status=1)
    assert "give it as --textual-inversion" in capsys.readouterr().err


def test_a_dry_run_counts_chunks(base_folder):
    given = parse(["--prompt", LONG, "--long-prompts", "chunks", "--base", str(base_folder)])
    base = tiny.tiny_base()
    assert text_length(given.job(), base, str(base_folder)) == 154
    assert text_length(parse(["--prompt", LONG]).job(), base, str(base_folder)) is None
