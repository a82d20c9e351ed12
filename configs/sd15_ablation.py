"""The paper's ablation: one softmax for text and faces, two, and the photo noised to the image's
own timestep; all else equal.

    python -m train configs/sd15_ablation.py --base PATH_OF_SD15 --output runs/concat
    python -m train configs/sd15_ablation.py --base PATH_OF_SD15 --output runs/decoupled \
        --fusion.fusion decoupled --fusion.face-logit-bias 0
    python -m train configs/sd15_ablation.py --base PATH_OF_SD15 --output runs/matched \
        --fusion.reference matched

One file and not three: what an arm is, its command line says, nothing else can differ, and each
run's config.json keeps it. The budget is 50,000 steps of 64 pictures: the same pictures in the same
order with the same noise (one seed), the same 24,780,800 weights. The time is not the same:
`matched` shows the photo to the UNet in every step, and in every step of the sampler.

All arms begin with vf at zero and kf as to_q, so that none begins with an advantage: their first
pictures are nearly the base's own. In one softmax the faces take weight from the text, hence e^-4;
in a second one that number would scale what is added, hence 0 there. So it was with the miniature
model, whose arms are

    python -m train mini --output runs/mini_concat
    python -m train mini --output runs/mini_decoupled \
        --fusion.fusion decoupled --fusion.face-logit-bias 0
    python -m train mini --output runs/mini_matched \
        --fusion.reference matched

The first two are the shipped adapters, whose figures the README has. Of Stable Diffusion no arm has
run yet, and e^-4 was chosen for 256 face keys, not for 4,096. docs/evaluation.md says how arms are
compared.
"""

import dataclasses

from fusionjax.options import FusionOptions
from train.presets import STABLE_DIFFUSION_15

config = dataclasses.replace(
    STABLE_DIFFUSION_15,
    name="sd15_ablation",
    batch_size=64,
    fusion=FusionOptions(init="query", face_logit_bias=-4.0),
    optimizer=dataclasses.replace(STABLE_DIFFUSION_15.optimizer, learning_rate=3e-5),
)
