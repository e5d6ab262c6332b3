"""Files of random weights of torchvision's classifiers."""

from __future__ import annotations

import torch


def saved(folder, name, seed=0, **more):
    """Return a seeded model of torchvision and the file of its weights.

    BatchNorm's statistics come from two random images; with the initial statistics, the features would vanish.
    """
    from torchvision import models

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = models.get_model(name, weights=None, **more)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.randn(2, 3, 224, 224))
        model.eval()
    torch.save(model.state_dict(), folder / f"{name}.pth")
    return model, folder / f"{name}.pth"
