"""The margin ranking loss: a positive's score is to be 1 above its negative's.

python -m tests.toys.margin drivers.run_ann --loss margin FLAGS…
"""

import sys

import torch

from model.train.objectives import OBJECTIVES, EncodedBatch, Objective, measure_by_margin
from utils.declared.losses import LOSSES, Loss
from utils.program import start

MARGIN = 1.0


def margin_loss(batch: EncodedBatch) -> torch.Tensor:
    return torch.relu(MARGIN - batch.margins()).mean()


@torch.no_grad()
def measure_margin(batch: EncodedBatch) -> torch.Tensor:
    """A triple within the margin falls by 1 for each 1 that its margin grows; one beyond it has no gradient."""
    loss_T = torch.relu(MARGIN - batch.margins())
    return measure_by_margin(batch, loss_T, (loss_T > 0).float())


LOSSES["margin"] = Loss("margin", "hinge on a triple's margin", "RankSVM (Joachims 2002)")
OBJECTIVES["margin"] = Objective(margin_loss, measure_margin)

if __name__ == "__main__":
    start(sys.argv[1:])
