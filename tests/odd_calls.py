"""Calls of the pipeline with what it does not take, without types being checked at run time.

    python -m tests.odd_calls

Prints a JSON object: the call, and how it ended.
"""

import io
import json

import jax.numpy as jnp
import numpy as np
from PIL import Image

from fusionjax import FusionPipeline, Identity
from tests import tiny

NAN = float("nan")


def calls(pipe):
    """By name, what is called."""
    photo = Image.fromarray(tiny.photo(1))
    identity = pipe.encode_identity(photo, crop="none")
    bad_options = [
        {"height": "64"}, {"height": 64.0}, {"num_inference_steps": 1.5},
        {"num_inference_steps": "2"}, {"num_inference_steps": 10**400}, {"seed": None},
        {"seed": "x"}, {"seed": -1}, {"seed": 1.5}, {"generator": "x"}, {"generator": [1, 2, 3]},
        {"guidance_scale": NAN}, {"guidance_scale": "3"}, {"guidance_scale": 10**400},
        {"scheduler": 3}, {"scheduler": "x"}, {"strength": 0.5, "image": 3},
        {"negative_prompt": 3}, {"prompt_embeds": "x"}, {"prompt_embeds": np.zeros((77, 32))},
        {"negative_prompt_embeds": np.zeros((1, 77, 8))}, {"seed": [1, 2]}, {"seed": [-1]},
        {"prompt_weights": "yes"}, {"long_prompts": "all"}, {"face_strength": [[1.0], 2]},
        {"masks": np.zeros((2, 1, 64, 64))}, {"negative_prompt": ["a", "b", "c"]},
        {"num_images_per_prompt": 0}, {"num_images_per_prompt": 1.5}, {"clip_skip": "1"},
        {"latents": "x"}, {"latents": np.zeros((1, 2, 3))}, {"latents": np.full((1, 8, 8, 4), NAN)},
        {"masks": "x"}, {"masks": np.zeros((3, 3))}, {"image": b"x"}, {"mask_image": photo},
        {"output_type": 3}, {"batch_size": 0}, {"batch_size": "1"}, {"layer_strength": 3},
        {"layer_strength": {"nowhere": 1.0}}, {"face_strength": "x"}, {"face_strength": [1.0, 2.0]},
        {"face_steps": 3}, {"face_steps": (0.5, 0.1)}, {"face_steps": ("a", "b")}, {"unknown": 1},
        {"callback_on_step_end": 3}, {"control_image": photo}, {"faces_in_negative": "yes"},
    ]  # fmt: skip
    found = {}
    for options in bad_options:
        found[f"{options}"[:80]] = lambda o=options: pipe("x", [identity], **o)
    for prompt in (None, 3, [], ["a", None], "x" * 30_000, "\ud800", {"a": 1}):
        found[f"prompt {prompt!r:.20}"] = lambda p=prompt: pipe(p)
    for people in ("face.png", ["face.png"], [None], [photo], 3, [[identity], 3], {"a": 1}):
        found[f"identities {type(people).__name__} {people!r:.20}"] = lambda p=people: pipe("x", p)
    for source in (None, 3, b"abc", io.BytesIO(b"abc"), [], [None], "nowhere.png", {"a": 1},
                   np.zeros((3, 3)), jnp.zeros((64, 64, 3))):  # fmt: skip
        name = f"photo {type(source).__name__} {source!r:.20}"
        found[name] = lambda s=source: pipe.encode_identity(s)
    found["crop"] = lambda: pipe.encode_identity(photo, crop=3)
    found["weights"] = lambda: pipe.encode_identity([photo], weights=["x"], crop="none")
    found["weights of others"] = lambda: pipe.encode_identity([photo], weights=[1, 2], crop="none")
    found["mix"] = lambda: Identity.mix([identity], [NAN])
    found["mix of nothing"] = lambda: Identity.mix([], [])
    found["weighted"] = lambda: identity.weighted("x")
    for words in (None, 3, {"<a>": "x"}, {"a b": [0.0] * 32}, {3: [0.0] * 32}, "nowhere.pt"):
        found[f"inversion {words!r:.20}"] = lambda w=words: pipe.load_textual_inversion(w)
    found["load"] = lambda: Identity.load(3)
    found["from_pretrained"] = lambda: FusionPipeline.from_pretrained(3)
    found["from_pretrained fusion"] = lambda: FusionPipeline.from_pretrained(fusion=3)
    found["from_pretrained dtype"] = lambda: FusionPipeline.from_pretrained(dtype="x")
    found["from_pretrained dtype int"] = lambda: FusionPipeline.from_pretrained(dtype="int32")
    return found


def good_calls(pipe):
    """What is taken, though it is not what most give."""
    photo = tiny.photo(1)
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "PNG")
    content.seek(0)
    identity = pipe.encode_identity(content, crop="none")
    short = {"num_inference_steps": 1}
    return {
        "a JAX array": lambda: pipe.encode_identity(jnp.asarray(photo), crop="none"),
        "NumPy's numbers": lambda: pipe("x", height=np.int64(64), seed=np.int32(3), **short),
        "no width": lambda: pipe("x", width=None, **short),
        "a JAX number": lambda: pipe("x", seed=jnp.asarray(3)[()], **short),
        "no negative prompt": lambda: pipe("x", negative_prompt=None, **short),
        "one identity": lambda: pipe("x", identity, **short),
    }


def end_of(call):
    """How a call ended."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


if __name__ == "__main__":
    params, options = tiny.tiny_fusion()
    pipe = FusionPipeline(tiny.tiny_base(), params, options)
    ends = {name: end_of(call) for name, call in calls(pipe).items()}
    good = {name: end_of(call) for name, call in good_calls(pipe).items()}
    print(json.dumps({"bad": ends, "good": good}))
