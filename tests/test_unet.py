"""FusionUNet against the equations, and what must hold of its compiled programs."""

import functools

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from diffusers import FlaxUNet2DConditionModel, UNet2DConditionModel
from diffusers.configuration_utils import flax_register_to_config
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusionjax.backend.param_shapes import param_shapes
from fusionjax.errors import UserError
from fusionjax.faces import Faces
from fusionjax.interop.configs import unet_from_config
from fusionjax.interop.names import to_torch_layout, torch_names
from fusionjax.options import FusionOptions
from fusionjax.unet import FusionUNet
from tests.tiny import random_params

SMALL = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}
SD15 = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
TINY = SMALL | {
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


class World:
    """One random UNet, in both frameworks where there is PyTorch, with all that it is given."""

    def __init__(self, config, *, height, width, references, seed=0):
        self.config = config
        self.unet = unet_from_config(config, "the test UNet")
        self.params = random_params(unflatten_dict(param_shapes(self.unet)), seed)
        self.fused = FusionUNet(self.unet)
        rng = np.random.default_rng(seed)
        self.fusion = jax.tree.map(
            lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32) * x.shape[0] ** -0.5,
            self.fused.init(jax.random.key(0), self.params),
        )
        channels, tokens = config.get("in_channels", 4), config["cross_attention_dim"]
        self.photos = _normal(rng, references, height, height, channels)
        self.latents = _normal(rng, 2, height, width, channels)
        self.text = _normal(rng, 2, 7, tokens)
        self.empty = _normal(rng, 1, 7, tokens)
        self.timesteps = jnp.array([601, 601])
        self._compiled = {}

    @functools.cached_property
    def torch_unet(self):
        torch = pytest.importorskip("torch")
        params = flatten_dict(self.params)
        state = {
            name: torch.tensor(to_torch_layout(path, np.asarray(params[path])))
            for name, (path, _) in torch_names(self.unet).items()
        }
        unet = UNet2DConditionModel(**self.config)
        unet.load_state_dict(state)
        return unet.eval().requires_grad_(False)

    def literal(self, strength, owner=None, masks=None, decoupled=False, photo_timestep=0):
        torch = pytest.importorskip("torch")
        from tests.equations import Literal

        oracle = Literal(
            self.torch_unet,
            {
                name: tuple(torch.tensor(np.asarray(layer[w])).T for w in ("kf", "vf"))
                for name, layer in self.fusion.items()
            },
        )
        with torch.no_grad():
            photos, latents, text, empty = (
                torch.tensor(np.asarray(x))
                for x in (self.photos, self.latents, self.text, self.empty)
            )
            states = oracle.capture(photos.movedim(-1, 1), photo_timestep, empty)
            out = oracle.paint(
                latents.movedim(-1, 1), 601, text, states, strength, owner, masks, decoupled
            )
        return out.movedim(1, -1).numpy()

    def ours(self, strength, owner=None, masks=None, *, fused=None, photo_timestep=0):
        fused = fused or self.fused
        people = (
            _twice(np.array(strength, np.float32)),
            None if masks is None else _twice(masks.astype(np.float32)),
            None if owner is None else _twice(np.array(owner)),
        )
        paint = self._compiled.setdefault(fused, jax.jit(self._generate(fused)))
        photo_timesteps = jnp.full(2, photo_timestep)
        weights = self.params, self.fusion
        return np.asarray(paint(*weights, self.photos, self.latents, *people, photo_timesteps))

    def _generate(self, fused):
        def paint(params, fusion, photos, latents, strength, masks, owner, photo_timesteps):
            photos = jnp.broadcast_to(photos[None], (2, *photos.shape))
            states = fused.reference_states(params, photos, self.empty, photo_timesteps)
            height, width = latents.shape[1:3]
            faces = fused.faces(
                fusion, states, strength, height=height, width=width, masks=masks, owner=owner
            )
            return fused(params, latents, self.timesteps, self.text, faces)

        return paint

    def base(self):
        paint = jax.jit(self.fused)
        return np.asarray(paint(self.params, self.latents, self.timesteps, self.text))

    def states(self):
        photos = _twice(self.photos)
        return jax.jit(self.fused.reference_states)(self.params, photos, self.empty)


def _normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def _twice(x):
    return jnp.broadcast_to(jnp.asarray(x)[None], (2, *x.shape))


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def world():
    return World(SMALL, height=8, width=12, references=3)


@pytest.fixture(scope="module")
def tiny():
    """For what is only compiled."""
    return World(TINY, height=4, width=6, references=2)


MASKS = {
    "apart": [(slice(0, 64), slice(0, 40)), (slice(0, 64), slice(56, 96))],
    "overlapping": [(slice(0, 64), slice(0, 60)), (slice(20, 64), slice(40, 96))],
    "none": [(slice(0, 0), slice(0, 0)), (slice(0, 0), slice(0, 0))],
    "a tiny face": [(slice(9, 11), slice(17, 18)), (slice(32, 64), slice(56, 96))],
}


def masks_of(name, height=64, width=96):
    masks = np.zeros((2, height, width), bool)
    for mask, region in zip(masks, MASKS[name], strict=True):
        mask[region] = True
    return masks


@pytest.mark.parametrize("strength", [(1.0, 1.0, 1.0), (0.3, 0.3, 0.3), (1.0, 0.0, 0.3)])
def test_equals_the_equations(world, strength):
    assert relative(world.ours(strength), world.literal(strength)) < 1e-4


@pytest.mark.slow
def test_one_reference_equals_the_equations():
    world = World(SMALL, height=8, width=8, references=1, seed=5)
    assert relative(world.ours([1.0]), world.literal([1.0])) < 1e-4


@pytest.mark.parametrize("name", MASKS)
def test_two_identities_with_masks_equal_equation_7(world, name):
    masks, strength, owner = masks_of(name), (1.0, 0.3, 1.0), (0, 0, 1)
    ours = world.ours(strength, owner, masks)
    assert relative(ours, world.literal(strength, owner, masks)) < 1e-4
    if name != "none":
        assert relative(ours, world.ours(strength)) > 1e-3, "the masks changed nothing"


@pytest.mark.slow
def test_decoupled_equals_two_softmaxes(world):
    fused = FusionUNet(world.unet, FusionOptions(fusion="decoupled"))
    for strength in ((1.0, 1.0, 1.0), (0.5, 0.5, 0.0)):
        ours = world.ours(strength, fused=fused)
        assert relative(ours, world.literal(strength, decoupled=True)) < 1e-4
    masks, owner = masks_of("overlapping"), (0, 0, 1)
    ours = world.ours((1.0, 1.0, 1.0), owner, masks, fused=fused)
    assert relative(ours, world.literal((1.0, 1.0, 1.0), owner, masks, decoupled=True)) < 1e-4


def test_matched_passes_the_photos_at_the_image_timestep(world):
    strength = (1.0, 1.0, 1.0)
    matched = world.ours(strength, photo_timestep=601)
    assert relative(matched, world.literal(strength, photo_timestep=601)) < 1e-4
    assert relative(matched, world.ours(strength)) > 1e-3


def test_without_faces_it_is_pytorchs_unet(world):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        latents, text = (torch.tensor(np.asarray(x)) for x in (world.latents, world.text))
        theirs = world.torch_unet(latents.movedim(-1, 1), 601, text).sample
    assert relative(world.base(), theirs.movedim(1, -1).numpy()) < 1e-4


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
def test_strength_zero_is_the_base_model(world, fusion):
    options = FusionOptions(fusion=fusion)
    fused = world.fused if options == world.fused.options else FusionUNet(world.unet, options)
    hidden = world.ours((0.0, 0.0, 0.0), fused=fused)
    assert relative(hidden, world.base()) < 3e-5


def test_the_order_of_references_does_not_matter(world):
    strength = (1.0, 0.3, 0.6)
    ours = world.ours(strength)
    photos = world.photos
    try:
        world.photos = photos[::-1]
        swapped = world.ours(strength[::-1])
    finally:
        world.photos = photos
    assert relative(swapped, ours) < 3e-5


@pytest.mark.slow
def test_layer_strength_and_face_logit_bias_scale_lambda(world):
    states, one = world.states(), jnp.ones((2, 3))
    plain = world.ours((0.3, 0.3, 0.3))

    def run(fused, **factors):
        @jax.jit
        def paint(params, fusion, states):
            faces = fused.faces(fusion, states, one, height=8, width=12)
            if factors:
                faces = faces.with_strength(**factors)
            return fused(params, world.latents, world.timesteps, world.text, faces)

        return np.asarray(paint(world.params, world.fusion, states))

    log = float(np.log(0.3))
    every_layer = dict.fromkeys(world.fused.layers, jnp.full(2, log))
    by_layer = run(world.fused, strength=jnp.zeros((2, 3)), layer_strength=every_layer)
    assert relative(by_layer, plain) < 1e-5
    biased = FusionUNet(world.unet, FusionOptions(face_logit_bias=float(np.log(0.3))))
    assert relative(run(biased), plain) < 1e-5
    assert relative(run(world.fused, strength=jnp.full((2, 3), log)), plain) < 1e-5


def test_attention_shares_sum_to_one_and_follow_lambda(world):
    states = world.states()

    @jax.jit
    def compiled(params, fusion, strength):
        strength = jnp.broadcast_to(jnp.stack(strength)[None], (2, 3))
        faces = world.fused.faces(fusion, states, strength, height=8, width=12)
        return world.fused.attention_share(
            params, world.latents, world.timesteps, world.text, faces
        )

    share = functools.partial(compiled, world.params, world.fusion)

    shares = share((1.0, 0.0, 2.0))
    assert set(shares) == set(world.fused.layers)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert shares[layer].shape == (2, 8, 12, 4)
    for each in shares.values():
        np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)
        assert (each[..., 2] == 0).all()
        assert (each[..., 1] > 0).all()
    assert (share((1.0, 0.0, 4.0))[layer][..., 3] > shares[layer][..., 3]).all()
    faces = Faces({}, {}, {})  # whatever they are
    decoupled = FusionUNet(world.unet, FusionOptions(fusion="decoupled"))
    with pytest.raises(UserError, match="fusion='concat'"):
        decoupled.attention_share(world.params, world.latents, world.timesteps, world.text, faces)


def test_sd15_has_16_layers_and_24_780_800_parameters():
    unet = FlaxUNet2DConditionModel()
    fused = FusionUNet(unet)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(fused.init, key, unflatten_dict(param_shapes(unet)))
    assert len(params) == len(fused.layers) == 16
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 24_780_800


def test_initialisations(world):
    def init(name):
        fused = FusionUNet(world.unet, FusionOptions(init=name))
        return fused.init(jax.random.key(1), world.params)

    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    block = world.params["mid_block"]["attentions_0"]["transformer_blocks_0"]
    attn1 = block["attn1"]
    copied = init("self_attention")[layer]
    np.testing.assert_array_equal(copied["kf"], attn1["to_k"]["kernel"])
    np.testing.assert_array_equal(copied["vf"], attn1["to_v"]["kernel"])
    assert not init("zeros")[layer]["vf"].any()
    np.testing.assert_array_equal(init("zeros")[layer]["kf"], attn1["to_k"]["kernel"])
    assert not init("query")[layer]["vf"].any()
    np.testing.assert_array_equal(init("query")[layer]["kf"], block["attn2"]["to_q"]["kernel"])
    random = init("random")[layer]
    assert abs(float(random["kf"].std()) * 8 - 1) < 0.1  # 64 features
    assert (random["kf"] != random["vf"]).any()


# --- compiled programs ------------------------------------------------------------------------


def train_step(tiny, fused):
    """A plain training step of kf and vf, reference pass included."""

    def step(fusion, params, photos, latents, text, empty, strength):
        def loss(fusion):
            states = fused.reference_states(params, photos, empty)
            faces = fused.faces(fusion, states, strength, height=4, width=6)
            timesteps = jnp.full(len(latents), 10)
            return (fused(params, latents, timesteps, text, faces) ** 2).mean()

        return jax.value_and_grad(loss)(fusion)

    return step


def arguments(tiny, batch):
    rng = np.random.default_rng(1)
    return (
        tiny.fusion,
        tiny.params,
        _normal(rng, batch, 2, 4, 4, 4),
        _normal(rng, batch, 4, 6, 4),
        _normal(rng, batch, 7, 24),
        tiny.empty,
        jnp.ones((batch, 2)),
    )


@pytest.mark.slow
def test_gradients_reach_kf_and_vf_alone(tiny):
    step = train_step(tiny, tiny.fused)
    args = arguments(tiny, 2)
    _, gradient = jax.jit(step)(*args)
    assert set(gradient) == set(tiny.fused.layers)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    remat, plain = (
        jax.jit(train_step(tiny, FusionUNet(tiny.unet, remat=flag)))(*args)[1]
        for flag in (True, False)
    )
    for ours, theirs in zip(jax.tree.leaves(remat), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def dots_and_convolutions(function, *args):
    """How many are computed; a function that is called twice counts twice."""
    program = jax.jit(function).trace(*args).jaxpr
    used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))

    def count(jaxpr):
        return sum(
            equation.primitive.name in ("dot_general", "conv_general_dilated")
            or sum(map(count, jex.jaxprs_in_params(equation.params)))
            for equation in jaxpr.eqns
        )

    return count(used)


def test_the_step_has_no_gradient_of_frozen_weights_and_no_backward_through_the_references(tiny):
    """Counted in matrix products: a frozen layer needs one forward and one backward, not two."""
    step = train_step(tiny, tiny.fused)
    args = arguments(tiny, 2)

    def with_constant_states(states):
        def loss(fusion, params, latents, text, strength):
            faces = tiny.fused.faces(fusion, states, strength, height=4, width=6)
            out = tiny.fused(params, latents, jnp.full(len(latents), 10), text, faces)
            return (out**2).mean()

        return loss

    photos, latents, text, empty, strength = args[2:]
    shapes = jax.eval_shape(tiny.fused.reference_states, tiny.params, photos, empty)
    states = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    reference_pass = dots_and_convolutions(
        lambda params, photos, empty: tiny.fused.reference_states(params, photos, empty),
        tiny.params, photos, empty,
    )  # fmt: skip
    loss = with_constant_states(states)
    adapter_only = dots_and_convolutions(
        jax.grad(loss), tiny.fusion, tiny.params, latents, text, strength
    )
    everything = dots_and_convolutions(
        jax.grad(loss, argnums=(0, 1)), tiny.fusion, tiny.params, latents, text, strength
    )
    whole = dots_and_convolutions(step, *args)
    assert whole == adapter_only + reference_pass, "the references are passed forward only"
    frozen_kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(tiny.params))
    assert everything - adapter_only > 0.8 * frozen_kernels, "the count would notice"


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_no_all_gather_with_the_batch_sharded(tiny, devices, monkeypatch):
    monkeypatch.setattr(
        "fusionjax.backend.blockwise.DIRECT_SCORES", 0
    )  # the loops, not the short cut
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    batch = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = (replicated, replicated, batch, batch, batch, replicated, batch)
    args = arguments(tiny, devices)
    fused = FusionUNet(tiny.unet)

    def forward(fusion, params, photos, latents, text, empty, strength):
        states = fused.reference_states(params, photos, empty)
        faces = fused.faces(fusion, states, strength, height=4, width=6)
        return fused(params, latents, jnp.full(len(latents), 10), text, faces)

    for function, out, reduces in (
        (forward, batch, False),
        (train_step(tiny, fused), replicated, True),
    ):
        compiled = jax.jit(function, in_shardings=shardings, out_shardings=out)
        text = compiled.lower(*args).compile().as_text()
        assert "all-gather" not in text
        assert "all-to-all" not in text
        assert "collective-permute" not in text
        assert ("all-reduce" in text) == reduces


def test_strength_references_and_masks_do_not_recompile(world):
    owner = (0, 0, 1)
    first = world.ours((1, 1, 1), owner, masks_of("none"))
    compiled = world._compiled[world.fused]
    programs = compiled._cache_size()
    second = world.ours((0.3, 1, 1), owner, masks_of("apart"))
    world.ours((1, 0, 0), owner, masks_of("a tiny face"))
    assert compiled._cache_size() == programs
    assert relative(first, second) > 1e-3


# --- bad input --------------------------------------------------------------------------------


def test_bad_input_is_named(world):
    states, fused = world.states(), world.fused
    one = jnp.ones((2, 3))
    size = {"height": 8, "width": 12}
    masks, owner = _twice(masks_of("apart") * np.float32(1)), _twice(np.array([0, 0, 1]))

    def faces(strength=one, states=states, **kwargs):
        return fused.faces(world.fusion, states, strength, **(size | kwargs))

    with pytest.raises(UserError, match=r"strength is -1; .* ≥ 0"):
        faces(strength=one.at[0, 1].set(-1))
    with pytest.raises(UserError, match="strength is nan"):
        faces(strength=one.at[0, 1].set(jnp.nan))
    with pytest.raises(UserError, match=r"reference states of .* have shape \(2, 3, 64, 32\)"):
        faces(strength=jnp.ones((2, 2)))
    layer = next(iter(states))
    with pytest.raises(UserError, match="lack 1 of 7 layers"):
        faces(states={k: v for k, v in states.items() if k != layer})
    with pytest.raises(UserError, match=r"masks are 60×96 .* no multiple of the latent grid 8×12"):
        faces(masks=masks[:, :, :60], owner=owner)
    with pytest.raises(UserError, match="masks are given without owner"):
        faces(masks=masks)
    with pytest.raises(UserError, match="owner names identity 2, and there are 2 masks"):
        faces(masks=masks, owner=owner + 1)
    with pytest.raises(UserError, match="fusion is 'sum'; choose one of concat, decoupled"):
        FusionOptions(fusion="sum")
    with pytest.raises(UserError, match="option 'colour', which this version does not know"):
        FusionOptions.from_json({"colour": 1})


@pytest.mark.slow
def test_text_tokens_stand_for_the_text(tiny):
    """Kc and Vc worked out once, or in the pass: the same answer."""
    tokens = tiny.fused.text_tokens(tiny.params, tiny.text)
    given, found = (
        tiny.fused(tiny.params, tiny.latents, tiny.timesteps, x) for x in (tokens, tiny.text)
    )
    np.testing.assert_array_equal(given, found)


def test_a_unet_without_self_attention_is_refused(world):
    unet = world.fused.unet.clone(only_cross_attention=True)
    with pytest.raises(UserError, match="only_cross_attention"):
        FusionUNet(unet)


def test_wrong_ranks_and_widths_are_named(world, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    fused, latents, text = world.fused, world.latents, world.text
    timesteps = world.timesteps

    def run(latents=latents, timesteps=timesteps, text=text):
        jax.eval_shape(fused, world.params, latents, timesteps, text)

    with pytest.raises(UserError, match=r"latents has shape \(8, 12, 4\); .* \[b, h, w, 4\]"):
        run(latents=latents[0])
    with pytest.raises(UserError, match=r"latents has shape \(2, 8, 12, 3\)"):
        run(latents=latents[..., :3])
    with pytest.raises(UserError, match=r"timesteps has shape \(3,\); it must be \[2\]"):
        run(timesteps=jnp.zeros(3))
    with pytest.raises(UserError, match=r"text has shape \(2, 7, 23\); it must be \[2, t, 24\]"):
        run(text=text[..., 1:])
    with pytest.raises(UserError, match=r"latents has shape .* \[b, r, h, w, 4\]"):
        fused.reference_states(world.params, latents, world.empty)
    masks, owner = _twice(masks_of("apart") * np.float32(1)), _twice(np.array([0, 0, 1]))
    people = {"height": 8, "width": 12, "masks": masks, "owner": owner}
    for changed, message in (
        ({"strength": jnp.ones(3)}, r"strength has shape \(3,\); it must be \[b, r\]"),
        ({"masks": masks[0]}, r"masks has shape .* \[2, i, h, w\]"),
        ({"owner": owner[:, :2]}, r"owner has shape \(2, 2\); it must be \[2, 3\]"),
    ):
        with pytest.raises(UserError, match=message):
            fused.faces(
                world.fusion, world.states(), **({"strength": jnp.ones((2, 3))} | people | changed)
            )


def test_a_layer_that_is_not_met_is_an_error():
    @flax_register_to_config
    class Unmet(FlaxUNet2DConditionModel):
        """Has the parameters of attn2, and passes them by."""

        def __call__(self, sample, *args, **kwargs):
            if self.is_initializing():
                return super().__call__(sample, *args, **kwargs)
            return (sample,)

    config = {k: v for k, v in SMALL.items() if k != "sample_size"}
    with pytest.raises(RuntimeError, match="7 of 7 cross-attention layers were not intercepted"):
        FusionUNet(Unmet(sample_size=8, **config))


def test_options_round_trip():
    options = FusionOptions(reference="matched", fusion="decoupled", face_logit_bias=-2.0)
    assert FusionOptions.from_json(options.to_json()) == options


@pytest.mark.slow
def test_full_size_equals_the_equations():
    """SD 1.5's own size against PyTorch; about 10 GiB and three minutes."""
    pytest.importorskip("torch")
    world = World(SD15, height=64, width=64, references=1)
    assert relative(world.ours([1.0]), world.literal([1.0])) < 1e-4
