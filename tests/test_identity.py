"""Identities: mixing, saving, and refusing what does not fit."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fusionjax.errors import UserError
from fusionjax.identity import Identity


def make(seed, photos=2, fingerprint="0123456789abcdef", reference="clean", side=8):
    rng = np.random.default_rng(seed)
    return Identity(
        states={
            name: rng.standard_normal((photos, k, d)).astype(ml_dtypes.bfloat16)
            for name, k, d in (("upper", 16, 4), ("lower", 4, 8))
        },
        latents=rng.standard_normal((photos, side, side, 4)).astype(np.float32),
        thumbnails=rng.integers(0, 255, (photos, 16, 16, 3), np.uint8),
        weights=(1.0,) * photos,
        base_fingerprint=fingerprint,
        reference=reference,
    )


def test_saving_keeps_every_bit(tmp_path):
    person = make(1).weighted([0.5, 2.0])
    person.save(tmp_path / "folder" / "person.safetensors")
    again = Identity.load(tmp_path / "folder" / "person.safetensors")
    assert again.weights == (0.5, 2.0)
    assert (again.base_fingerprint, again.reference) == ("0123456789abcdef", "clean")
    for layer, states in person.states.items():
        assert again.states[layer].dtype == ml_dtypes.bfloat16
        assert np.array_equal(again.states[layer], states)
    assert np.array_equal(again.latents, person.latents)
    assert np.array_equal(again.thumbnails, person.thumbnails)


def test_a_mixture_holds_everybodys_photos():
    one, two = make(1, photos=1), make(2, photos=2).weighted([1.0, 0.5])
    mixed = Identity.mix([one, two], [0.25, 0.75])
    assert mixed.weights == (0.25, 0.75, 0.375)
    assert np.array_equal(mixed.states["upper"][:1], one.states["upper"])
    assert np.array_equal(mixed.latents[1:], two.latents)
    assert Identity.mix([one, two]).weights == (1.0, 1.0, 0.5)


def test_weights_must_fit():
    person = make(1)
    assert person.weighted(0.5).weights == (0.5, 0.5)
    with pytest.raises(UserError, match="3 weights are given for 2 photos"):
        person.weighted([1, 1, 1])
    with pytest.raises(UserError, match=r"weight is -0\.5; it must be in 0..1000000"):
        person.weighted([1, -0.5])
    with pytest.raises(UserError, match="1 weights are given for 2 people"):
        Identity.mix([person, person], [1.0])
    with pytest.raises(UserError, match="a mixture of no people"):
        Identity.mix([])


def test_people_of_different_bases_do_not_mix():
    with pytest.raises(UserError, match=r"encoded with the base model f{16}, and this is 0123"):
        Identity.mix([make(1), make(2, fingerprint="f" * 16)])
    with pytest.raises(UserError, match=r"encoded for reference='matched', and the adapter"):
        Identity.mix([make(1), make(2, reference="matched")])
    with pytest.raises(UserError, match="photos of different sizes cannot be mixed"):
        Identity.mix([make(1), make(2, side=16)])


def test_files_that_are_no_identity(tmp_path):
    with pytest.raises(UserError, match=r"nobody\.safetensors"):
        Identity.load(tmp_path / "nobody.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors is not an identity file"):
        Identity.load(tmp_path / "other.safetensors")
    about = {"kind": "identity", "version": 9}
    save_file(
        {"x": np.zeros(3)}, tmp_path / "new.safetensors", metadata={"fusionjax": json.dumps(about)}
    )
    with pytest.raises(UserError, match="identity file of version 9, this release reads version 1"):
        Identity.load(tmp_path / "new.safetensors")
    about["version"] = 1
    save_file(
        {"x": np.zeros(3)}, tmp_path / "bad.safetensors", metadata={"fusionjax": json.dumps(about)}
    )
    with pytest.raises(UserError, match="damaged identity file: Object missing required"):
        Identity.load(tmp_path / "bad.safetensors")
    make(1).save(tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        Identity.load(tmp_path / "cut.safetensors")
