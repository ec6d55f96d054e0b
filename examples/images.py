"""Encoded images: PNG bytes in a column, decoded on threads, augmented by the rows' seeds.

    python examples/images.py

Pillow lets go of the GIL while it decodes, so threads are enough. The flip of an image is drawn
from ``batch.seeds``, which are the same for a row of an epoch on any number of ranks and after a
resume.
"""

from __future__ import annotations

import io

import made_up
import numpy as np
import torch
from batchloom.samplers import Batch, ManifestLoader
from PIL import Image


def decoded(batch: Batch) -> Batch:
    """Replace the bytes by a tensor of shape (n, 3, 32, 32) in [0, 1], half of it mirrored."""
    pixels = [np.asarray(Image.open(io.BytesIO(b.as_buffer()))) for b in batch["image"]]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mirrored = batch.seeds % 2 == 0
    images[mirrored] = images[mirrored].flip(-1)
    return batch.with_columns(image=images)


def main() -> None:
    """Train one epoch."""
    plan, data = made_up.images(made_up.folder())
    loader = ManifestLoader(plan, data, transform=decoded, transform_threads=2)
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for batch in loader:
        loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stats = loader.stats()
    print(f"{stats.samples} images, the loop waited for {stats.waited:.0%} of the time")
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
