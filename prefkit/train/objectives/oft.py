"""OFT: D3PO on flow models within a box, the online fine-tuning of Science-T2I, Li et al., arXiv 2504.13129.

    as d3po, with log p the mean over elements inside the box around what the prompt is about

over: area       the sum inside the box over the box's number of elements, so that a small subject counts as much
      published  the sum inside the box over all elements

The box comes from `online.mask`: a score alias whose aspects are box_left, box_top, box_right, box_bottom as shares of
the image (a detector). An image without a box counts whole.

Mistakes of the published code that are not copied: the loss there is the mean of a 2 x 2 table of which only one entry
depends on the policy (a quarter of the gradient, and a logged loss that cannot fall below 0.551); its SDE has -x in the
drift where the marginal-preserving form has +x (see online/noise.py, whose `sde` is used here); its optimizer steps at
every timestep unless a run is resumed.
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
    #: ratios are held within 1 - clamp and 1 + clamp
    clamp: float = 0.1
    #: area | published: what the sum inside the box is divided by
    over: Literal["area", "published"] = "area"


class OFT:
    """Loss [G] for pairs of steps at one time against a frozen reference. With policy = reference it is log 2."""

    Options = OFTOptions
    shape = "step_pair"
    reference = "frozen"
    group_relative = False

    def __init__(self, options: OFTOptions) -> None:
        self.options = options

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Steps of [winners; losers], 2 G. Returns the loss [G] and metrics [G] each; old and advantage play no part."""
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
