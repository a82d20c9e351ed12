"""What a compiled program does, read from small programs' texts by hand and from real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.backend.hlo import work
from fusionjax.backend.program import EFFICIENCY, Needs, check_fits, compile_for
from fusionjax.backend.targets import _GPUS
from fusionjax.errors import UserError
from sample.dry_run import to_expect

TEXT = """
HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_slice (p.0: f32[10,100], p.1: s32[]) -> f32[1,100] {
  %p.0 = f32[10,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,100}
}

%body (state: (s32[], f32[10,100])) -> (s32[], f32[10,100]) {
  %state = (s32[], f32[10,100]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %table = f32[10,100]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,100]{1,0} fusion(%table, %index), kind=kLoop, calls=%fused_slice
  %doubled = f32[1,100]{1,0} add(%row, %row)
  ROOT %next = (s32[], f32[10,100]{1,0}) tuple(%index, %table)
}

%condition (state.1: (s32[], f32[10,100])) -> pred[] {
  %state.1 = (s32[], f32[10,100]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[10,100], q: bf16[2,4,8,16]) -> f32[10,100] {
  %x = f32[10,100]{1,0} parameter(0)
  %q = bf16[2,4,8,16]{3,2,1,0} parameter(1)
  %flash = (bf16[2,4,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), <FLASH>
  %start = s32[] constant(0)
  %tuple = (s32[], f32[10,100]{1,0}) tuple(%start, %x)
  %loop = (s32[], f32[10,100]{1,0}) while(%tuple), condition=%condition, body=%body, <TEN TIMES>
  %on.chip = f32[10,100]{1,0:T(8,128)S(1)} copy(%x)
  %begun = (f32[10,100]{1,0}, f32[10,100]{1,0:S(1)}, u32[]) copy-start(%x)
  %ended = f32[10,100]{1,0:S(1)} copy-done(%begun)
  ROOT %out = f32[10,100]{1,0} get-tuple-element(%loop), index=1
}
""".replace("<FLASH>", 'custom_call_target="__cudnn$fmhaSoftmax"').replace(
    "<TEN TIMES>", 'backend_config={"known_trip_count":{"n":"10"}}'
)


def test_work_by_hand():
    done = work(TEXT)
    q = 2 * 4 * 8 * 16 * 2
    row = 4 * 100
    loop = 10 * ((row + 4 + row) + 3 * row)  # the slice's row and index read, the row written; add
    to_the_chip = 2 * 4000  # read twice; what is written there is not in main memory
    assert done.moved_bytes == 4 * q + loop + to_the_chip
    assert done.operations == 1 + 10 * 2 + 1 + 1
    assert done.attention == {"cudnn": 1}


def test_a_text_of_another_form_is_refused():
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        work(TEXT.replace("%", ""))


def test_work_of_a_real_program():
    """A product's factors and result, as often as a loop runs it."""

    def f(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 512), (512, 512))]
    traced = jax.jit(f).trace(*shapes)
    compiled, needs = compile_for(traced, 1, jax.devices()[0], "f", "")
    least = 7 * 4 * (256 * 512 * 2 + 512 * 512)
    assert least <= needs.moved_bytes < 3 * least
    assert needs.flops == 7 * 2 * 256 * 512 * 512
    assert needs.attention == needs.collective_bytes == {}
    assert np.isfinite(compiled(*(np.zeros(s.shape, np.float32) for s in shapes))).all()


NEEDS = Needs(
    arguments_bytes=int(20e9), temporary_bytes=int(30e9), peak_bytes=int(45e9), flops=312e12,
    moved_bytes=int(1555e9), operations=1, attention={}, collective_bytes={}, compile_seconds=0.0,
)  # fmt: skip


def test_seconds_by_hand():
    """A second for the arithmetic, a second for the traffic, at the efficiency assumed."""
    assert NEEDS.seconds(_GPUS["a100"], in_16_bits=True) == pytest.approx(2 / EFFICIENCY)
    assert NEEDS.seconds(_GPUS["a100"], in_16_bits=False) == pytest.approx(3 / EFFICIENCY)


def test_a_picture_to_expect_with_a_person_and_without():
    """Each program takes 2 s at full efficiency: text, ten steps and decoding are 24 of them."""
    needs = dict.fromkeys(("text and faces", "a step", "decode"), NEEDS)
    chip = _GPUS["a100"]
    alone = to_expect(needs, chip, rows=10, photos=0, in_16_bits=True)
    assert alone.startswith(f"to expect: {24 / EFFICIENCY:.2f} s for all pictures at once, 10 st")
    assert "person" not in alone
    three = to_expect(needs, chip, rows=10, photos=0, images=3, in_16_bits=True)
    assert f" {28 / EFFICIENCY:.2f} s" in three  # decoded one after the other
    needs["encode a photo"] = NEEDS
    told = to_expect(needs, chip, rows=10, photos=2, in_16_bits=True)
    assert f"10 steps, and {4 / EFFICIENCY:.2f} s once for the person; by 312 TFLOP/s" in told


def test_what_does_not_fit_says_what_would():
    """20 GB stay, 30 GB are eight pictures': of the 12.2 GB that are left, three have room."""
    told = r"the step needs 50.00 GB of .* 32.21 GB for it .* 8 pictures at once 3 should fit; use"
    with pytest.raises(UserError, match=told):
        check_fits(NEEDS, _GPUS["a100"], "the step", "use remat", images=8)
    check_fits(NEEDS, _GPUS["h100"], "the step", "use remat", images=8)
    with pytest.raises(UserError, match=r"FRACTION\); use remat"):
        check_fits(NEEDS, _GPUS["a100"], "the step", "use remat", images=8, resident=int(40e9))
