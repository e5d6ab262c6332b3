"""OFT: D3PO on flow models within a box, the online fine-tuning of Science-T2I, Li et al., arXiv 2504.13129.

    as d3po, with log p the mean over elements inside the box around the prompt's subject

over: area       the sum inside the box divided by the box's number of elements, so that small subjects count equally
      published  the sum inside the box divided by the number of all elements

The box comes from `online.mask`: the name of a score whose aspects are box_left, box_top, box_right and box_bottom as
fractions of the image (a detector). For an image without a box, the full image counts.

Mistakes in the published code that are not copied: its loss is the mean of a 2 x 2 table, and only one entry of the
table depends on the policy (a quarter of the gradient, and a logged loss that cannot fall below 0.551); its SDE has -x
in the drift instead of the +x of the marginal-preserving form (see online/noise.py, whose `sde` is used here); its
optimizer steps at every timestep unless a run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class OFTOptions:
    beta: float = 10.0
    #: ratios are clamped to 1 - clamp .. 1 + clamp
    clamp: float = 0.1
    #: area | published: divisor of the sum inside the box
    over: Literal["area", "published"] = "area"


class OFT:
    """OFT loss [G] for pairs of steps at the same time, against a frozen reference; log 2 where policy = reference."""

    Options = OFTOptions
    shape = "step_pair"
    reference = "frozen"
    group_relative = False

    def __init__(self, options: OFTOptions) -> None:
        self.options = options

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics, each [G]. new, reference: 2 G steps, winners first; the rest is unused."""
        from prefkit.train.objectives.d3po import preferred

        assert reference is not None
        change = new.density() - reference.density()
        if new.mask is None:
            log_ratio = change.flatten(1).mean(1)
        else:
            area = new.mask.flatten(1).sum(1) if self.options.over == "area" else new.mask[0].numel()
            log_ratio = (change * new.mask).flatten(1).sum(1) / area
        return preferred(log_ratio, self.options.beta, self.options.clamp)


plugin = OFT
