"""Prompts with weights, in chunks and with learnt words, against PyTorch and sums written out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusionjax.attention import attention
from fusionjax.errors import UserError
from fusionjax.generation.model import Model
from fusionjax.generation.prompt_weights import likely_weight, read_weights
from fusionjax.generation.prompts import text_arrays, text_kind, texts_of
from fusionjax.generation.request import Request
from fusionjax.generation.scene import Scene
from fusionjax.generation.text_states import text_states
from fusionjax.generation.vocabulary import load_textual_inversion
from fusionjax.interop.textual_inversion import read_embedding
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet
from tests import torch_reference as reference

LONG = "the fan and a band in the rain, " * 6  # letters are tokens: far more than 75
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def torch_pipe(tmp_path_factory):
    return reference.pipeline(tmp_path_factory.mktemp("pipe") / "tokenizer")


@pytest.fixture(scope="module")
def base(torch_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch_pipe.save_pretrained(folder)
    return BaseModel.from_pretrained(folder)


@pytest.fixture
def model(base):
    """A model of its own for each test, so that words learnt by one are unknown to the next."""
    return Model(base, FusionUNet(base.unet))


def states_of(model, *requests, clip_skip=None):
    """What the UNet reads of the requests' negative prompts and prompts."""
    length = model.base.tokenize([""])
    scene = Scene(**text_arrays(requests, model), empty_ids=length, seeds=None, guidance=None,
                  levels=None)  # fmt: skip
    run = jax.jit(lambda params, scene: text_states(model.base, params, scene, clip_skip=clip_skip))
    states = np.asarray(run(model.base.params, scene))
    return states[: len(requests)], states[len(requests) :]


def torch_states(pipe, ids):
    """PyTorch's states of chunks of 77 ids, one chunk behind the other."""
    with torch.no_grad():
        states = pipe.text_encoder(torch.tensor(np.asarray(ids)).long().reshape(-1, 77))[0]
    return states.numpy().reshape(1, -1, states.shape[-1])


def plain_ids(pipe, text):
    return pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def chunk(pipe, ids):
    """Begin, up to 75 tokens, end, and the filler, as transformers pads."""
    words = pipe.tokenizer
    own = [words.bos_token_id, *ids, words.eos_token_id]
    return own + [words.pad_token_id] * (77 - len(own))


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a photo", [("a photo", 1)]),
        ("", []),
        ("a (big) dog", [("a ", 1), ("big", 1.1), (" dog", 1)]),
        ("a (big:1.3) dog", [("a ", 1), ("big", 1.3), (" dog", 1)]),
        ("a [big] dog", [("a ", 1), ("big", 1 / 1.1), (" dog", 1)]),
        ("((big))", [("big", 1.21)]),
        ("(a (big:1.5) dog)", [("a ", 1.1), ("big", 1.65), (" dog", 1.1)]),
        ("(a (big:1.5) dog:2)", [("a ", 2), ("big", 3), (" dog", 2)]),
        ("(a) [b]", [("a", 1.1), (" ", 1), ("b", 1 / 1.1)]),
        ("([b])", [("b", 1)]),
        (r"a \(blurred\) dog", [("a (blurred) dog", 1)]),
        (r"\[a\] \\ \b", [(r"[a] \ b", 1)]),
        ("(unclosed", [("unclosed", 1.1)]),
        ("[unclosed (twice", [("unclosed ", 1 / 1.1), ("twice", 1)]),
        ("closed) twice]", [("closed) twice]", 1)]),
        ("at 12:30, 1:2)", [("at 12:30, 1:2)", 1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(x: +0.5 )(y:-1)(z:.5)", [("x", 0.5), ("y", -1), ("z", 0.5)]),
        ("(a)(b)", [("ab", 1.1)]),
        # The example in AUTOMATIC1111's own documentation of the function.
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55),
             (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
        ),
    ],
)  # fmt: skip
def test_weights_are_read_as_automatic1111_reads_them(prompt, pieces):
    read = read_weights(prompt)
    assert [piece.text for piece in read] == [text for text, _ in pieces]
    assert [piece.weight for piece in read] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("(a:1.2.3)", "the prompt has the weight '1.2.3', which is no number"),
        ("(a:1000)", "gives 'a' the weight 1000; it must be in -100..100"),
        ("[a:b:0.5]", r"the prompt has '\[a:b:0.5\]': prompts that change from step to step"),
        ("[a|b]", "prompts that change from step to step"),
        ("a BREAK b", "the prompt has 'BREAK'"),
    ],
)
def test_what_is_no_weight_is_one_line(prompt, message):
    with pytest.raises(UserError, match=message):
        read_weights(prompt)


def test_only_what_looks_like_a_weight_is_told_of():
    assert likely_weight("a (big:1.3) dog") == "(big:1.3)"
    for text in ("a photo (blurred)", "a photo (16:9)", "tea (at 4:30)", "[a]", "1.5"):
        assert likely_weight(text) is None


def test_without_the_option_brackets_are_words(torch_pipe, model):
    plain = Request("a photo (blurred) [fan]", negative_prompt="the (band")
    arrays = text_arrays([plain], model)
    assert arrays.keys() == {"ids", "negative_ids"}
    assert np.array_equal(arrays["ids"], model.base.tokenize([plain.prompt]))
    assert np.array_equal(arrays["negative_ids"], model.base.tokenize([plain.negative_prompt]))
    theirs = torch_pipe.tokenizer(plain.prompt, padding="max_length", max_length=77).input_ids
    assert arrays["ids"][0].tolist() == theirs
    with pytest.warns(UserWarning, match=r"'\(band:1.3\)', which is read as plain words; prompt_w"):
        texts_of(Request("the (band:1.3)"), model.vocabulary, heard=True)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_weights_move_states_away_from_the_empty_prompts(torch_pipe, model, clip_skip):
    """z' = e + w (z − e) with PyTorch's states, in a loop over tokens."""
    request = Request("a (fan:1.5) and [the band]", negative_prompt="(rain:0)", prompt_weights=True)
    ours = states_of(model, request, clip_skip=clip_skip)
    parts = (("rain", 0.0),), (("a ", 1), ("fan", 1.5), (" and ", 1), ("the band", 1 / 1.1))

    def encode(text):
        with torch.no_grad():
            own, _ = torch_pipe.encode_prompt(text, "cpu", 1, False, clip_skip=clip_skip)
        return own[0].numpy()

    empty = encode("")
    for mine, pieces in zip(ours, parts, strict=True):
        expected = encode("".join(text for text, _ in pieces))
        at = 1
        for text, weight in pieces:
            for _ in plain_ids(torch_pipe, text):
                expected[at] = empty[at] + weight * (expected[at] - empty[at])
                at += 1
        assert relative(mine[0], expected) < TOLERANCE
        moved = np.abs(mine[0] - encode("".join(text for text, _ in pieces))).max(-1) > 1e-3
        assert moved.sum() == sum(
            len(plain_ids(torch_pipe, text)) for text, weight in pieces if weight != 1
        )


# --- chunks ---------------------------------------------------------------------------------------


def test_long_prompts_are_encoded_in_chunks_of_75(torch_pipe, model):
    request = Request(LONG, negative_prompt="a band", long_prompts="chunks")
    negative, positive = states_of(model, request)
    ids = plain_ids(torch_pipe, LONG)
    count = -(-len(ids) // 75)
    assert count > 1
    chunks = [chunk(torch_pipe, ids[i * 75 : (i + 1) * 75]) for i in range(count)]
    filled = [
        chunk(torch_pipe, plain_ids(torch_pipe, "a band")),
        *[chunk(torch_pipe, [])] * (count - 1),
    ]
    assert positive.shape == (1, 77 * count, 64)
    assert relative(positive, torch_states(torch_pipe, chunks)) < TOLERANCE
    assert relative(negative, torch_states(torch_pipe, filled)) < TOLERANCE


def test_75_tokens_are_one_chunk_and_76_are_two(model):
    def length(count, **options):
        return texts_of(Request("f " * count, **options), model.vocabulary).length

    assert (length(75, long_prompts="chunks"), length(76, long_prompts="chunks")) == (77, 154)
    assert length(151, long_prompts="chunks") == 231
    assert length(76) == 77


def test_long_prompts_are_cut_unless_asked_for(torch_pipe, model):
    arrays = text_arrays([Request(LONG)], model)
    theirs = torch_pipe.tokenizer(LONG, padding="max_length", max_length=77, truncation=True)
    assert arrays["ids"][0].tolist() == theirs.input_ids
    with pytest.warns(UserWarning, match="left out: “.*”; long_prompts='chunks' .* reads it all"):
        texts_of(Request(LONG), model.vocabulary, heard=True)


def test_weights_go_on_in_the_second_chunk(torch_pipe, model):
    request = Request("f " * 75 + "(fan:2)", prompt_weights=True, long_prompts="chunks")
    _, ours = states_of(model, request)
    plain = torch_states(torch_pipe, [chunk(torch_pipe, plain_ids(torch_pipe, "f " * 75)),
                                      chunk(torch_pipe, plain_ids(torch_pipe, "fan"))])  # fmt: skip
    empty = torch_states(torch_pipe, [chunk(torch_pipe, [])])
    fan = slice(78, 78 + len(plain_ids(torch_pipe, "fan")))
    expected = plain.copy()
    expected[:, fan] = empty[:, 1 : 1 + fan.stop - 78] + 2 * (
        plain[:, fan] - empty[:, 1 : 1 + fan.stop - 78]
    )
    assert relative(ours, expected) < TOLERANCE


def test_texts_of_other_shapes_share_no_batch(model):
    plain, long = Request("a fan"), Request(LONG, long_prompts="chunks")
    weighted = Request("a (fan)", prompt_weights=True)
    kinds = {text_kind(request, model) for request in (plain, long, weighted)}
    assert len(kinds) == 3
    assert text_kind(Request("the band", prompt_weights=True), model) == text_kind(plain, model)


@pytest.mark.parametrize("length", [77, 154, 231])
def test_text_and_faces_share_a_softmax_whatever_the_texts_length(length):
    """Equations 3 to 5 of one image with two photos, with matrices in float64."""
    rng = np.random.default_rng(length)
    shapes = [(1, 6, 1, 8), (1, length, 1, 8), (1, length, 1, 8), (1, 2, 5, 1, 8), (1, 2, 5, 1, 8)]
    q, kc, vc, kf, vf = (rng.normal(size=shape) for shape in shapes)
    bias = np.log([[[0.5, 2.0]]])
    ours = attention(*(jnp.asarray(x, jnp.float32) for x in (q, kc, vc, kf, vf, bias)))
    keys = np.concatenate([kc[0, :, 0], kf[0].reshape(10, 8)])
    values = np.concatenate([vc[0, :, 0], vf[0].reshape(10, 8)])
    logits = q[0, :, 0] @ keys.T / np.sqrt(8)
    logits += np.repeat([0, np.log(0.5), np.log(2.0)], [length, 5, 5])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(ours)[0, :, 0], shares @ values, atol=1e-5)


# --- text states in place of prompts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_embeds": np.zeros((77, 32))}, r"have shape \(77, 32\); they must be \[77, 64\]"),
        ({"prompt_embeds": np.zeros((1, 77, 64))}, "prompt_embeds of an image have shape"),
        ({"prompt_embeds": np.full((77, 64), np.nan)}, "numbers that are not finite"),
        ({"prompt_embeds": np.zeros((76, 64))}, "give negative_prompt_embeds too"),
        (
            {
                "negative_prompt_embeds": np.zeros((77, 64)),
                "prompt": LONG,
                "long_prompts": "chunks",
            },
            "negative_prompt_embeds have 77 places, and the prompt needs a multiple of 77 from",
        ),
        (
            {"prompt_embeds": np.zeros((77, 64)), "negative_prompt_embeds": np.zeros((78, 64))},
            "negative_prompt_embeds have 78 places and prompt_embeds 77; they must have as many",
        ),
        ({"prompt_embeds": np.zeros((77, 64)), "prompt": "x"}, "are both given; give one of them"),
    ],
)
def test_states_that_do_not_fit_are_one_line(model, fields, message):
    with pytest.raises(UserError, match=message):
        texts_of(Request(**fields), model.vocabulary)


def test_states_stand_in_place_of_a_prompt(torch_pipe, model):
    """One of 154 places makes the other prompt two chunks; two of any length go through."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(154, 64)).astype(np.float32)
    negative, positive = states_of(model, Request(prompt_embeds=given, negative_prompt="a band"))
    assert np.array_equal(positive[0], given)
    filled = [chunk(torch_pipe, plain_ids(torch_pipe, "a band")), chunk(torch_pipe, [])]
    assert relative(negative, torch_states(torch_pipe, filled)) < TOLERANCE
    both = Request(prompt_embeds=given[:5], negative_prompt_embeds=given[5:10])
    negative, positive = states_of(model, both)
    assert np.array_equal(positive[0], given[:5])
    assert np.array_equal(negative[0], given[5:10])


# --- textual inversions ---------------------------------------------------------------------------


def vectors(count, seed=0, width=64):
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))


def written(folder, form, values, token="<cat-toy>"):
    """A file as each of the programs writes it."""
    if form == "diffusers":
        path = folder / "learned_embeds.safetensors"
        save_file({token: values[0].clone() if len(values) == 1 else values}, path)
    elif form == "diffusers pickle":
        path = folder / "learned_embeds.bin"
        torch.save({token: values}, path)
    elif form == "emb_params":
        path = folder / f"{token}.safetensors"
        save_file({"emb_params": values}, path)
    else:
        path = folder / "toy.pt"
        about = {"string_to_token": {"*": 265}, "string_to_param": {"*": values}, "name": token,
                 "step": 7, "sd_checkpoint": None, "sd_checkpoint_name": None}  # fmt: skip
        torch.save(about, path)
    return path


class Holder:
    """What `load_textual_inversion` teaches: a pipeline with its model."""

    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize(
    ("form", "count"),
    [("diffusers", 1), ("diffusers pickle", 3), ("emb_params", 3), ("string_to_param", 2)],
)
def test_learnt_words_are_what_diffusers_makes_of_them(base, model, tmp_path, form, count):
    path = written(tmp_path, form, vectors(count))
    theirs = reference.pipeline(tmp_path / "tokenizer")  # the same weights; it is changed below
    token = {"token": "<cat-toy>"} if form == "emb_params" else {}
    theirs.load_textual_inversion(str(path), **token)
    before = base.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    kept, words = np.array(before), len(base.tokenizer)
    load_textual_inversion(Holder(model), path)
    prompts = "the <cat-toy> and a fan", "a band, <cat-toy>."
    negative, positive = states_of(model, Request(prompts[1], negative_prompt=prompts[0]))
    with torch.no_grad():
        expected, _ = theirs.encode_prompt(list(prompts), "cpu", 1, False)
    ours = np.concatenate([negative, positive])
    assert relative(ours, expected.numpy()) < TOLERANCE
    unknown = states_of(Model(base, model.fusion), Request(prompts[1], negative_prompt=prompts[0]))
    assert relative(np.concatenate(unknown), expected.numpy()) > 0.01
    assert len(base.tokenizer) == words
    assert np.array_equal(before, kept)


def test_words_together_in_long_and_weighted_prompts(torch_pipe, model):
    """Two words of two files; the second's ids follow the first's."""
    one, two = vectors(2, 1).numpy(), vectors(1, 2).numpy()
    load_textual_inversion(Holder(model), [{"<one>": one}, {"two": two[0]}], ["<one>", "<two>"])
    ids = [model.vocabulary.own_words + i for i in range(3)]
    assert model.vocabulary.ids("<two> <one>") == [ids[2], ids[0], ids[1]]
    assert model.vocabulary.text([ids[2], ids[0], ids[1]]) == "<two> <one>"
    long = Request("f " * 74 + "(<one>:1.3)", prompt_weights=True, long_prompts="chunks")
    arrays = text_arrays([long], model)
    assert arrays["ids"].shape == (1, 154)
    assert (arrays["ids"][0, 75], arrays["ids"][0, 78]) == (ids[0], ids[1])
    assert arrays["weights"][0, [75, 78]] == pytest.approx(1.3)
    assert arrays["vectors"].shape == (1, 4, 64)  # three, filled up
    assert "vectors" not in text_arrays([Request("f")], model)


def test_what_is_no_textual_inversion_is_one_line(model, tmp_path):
    holder = Holder(model)
    sdxl = tmp_path / "sdxl.safetensors"
    save_file({"clip_l": vectors(1), "clip_g": vectors(1, width=1280)}, sdxl)
    many = tmp_path / "many.safetensors"
    save_file({"a": vectors(1), "b": vectors(1, 1)}, many)
    wide = written(tmp_path, "diffusers", vectors(1, width=1280))
    odd = tmp_path / "odd.safetensors"
    save_file({"emb_params": torch.zeros(1, 2, 64)}, odd)
    evil = tmp_path / "evil.pt"
    torch.save({"string_to_param": {"*": vectors(1)}, "name": re.compile("x")}, evil)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    for given, message in (
        (sdxl, r"textual inversion for SDXL \(clip_l, clip_g\)"),
        (many, r"is no textual inversion: it holds \['a', 'b'\]"),
        (wide, "vectors of 1280 numbers, as for SDXL; this base's text encoder reads 64"),
        (odd, r"an array of shape \(1, 2, 64\)"),
        (evil, "a pickle that holds more than tensors"),
        (tmp_path / "broken.pt", "or is damaged, and is not read"),
        (tmp_path / "none.pt", "none.pt does not exist"),
        ({"<a>": "x"}, "holds no vectors for '<a>'"),
        ({"a b": vectors(1)}, "token is 'a b'; it must be one word"),
        ({"a</w>": vectors(1)}, "a word of the tokenizer already"),
        ({"<a>": np.full((1, 64), np.nan)}, "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            load_textual_inversion(holder, given)
    with pytest.raises(UserError, match="2 tokens for 1 textual inversions"):
        load_textual_inversion(holder, wide, ["<a>", "<b>"])
    load_textual_inversion(holder, {"<a>": vectors(1)})
    with pytest.raises(UserError, match="'<a>' of <a> is a word of the tokenizer already"):
        load_textual_inversion(holder, {"<a>": vectors(1)})
    assert len(model.vocabulary.vectors) == 1


def test_a_word_can_be_named_anew(tmp_path):
    path = written(tmp_path, "emb_params", vectors(2), token="nice")
    assert read_embedding(path).token == "nice"
    assert read_embedding(path, "<mine>").token == "<mine>"
