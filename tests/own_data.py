"""Data modules as users write them: with loaders of torch, and without the attribute ``splits``."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

SIZES = {"train": 64, "val": 24, "test": 30}


class Stripes(L.LightningDataModule):
    """Images of stripes with noise. The label is the direction and the colour of the stripes.

    Args:
        shape: shape of an image, (C, H, W).
        num_classes: number of classes, or None for data without labels.
        batch_size: images in a batch.
        level: brightness of the stripes.
    """

    used = "stripes"

    def __init__(self, shape=(3, 32, 32), num_classes=None, batch_size=16, level=0.8):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.shape, self.num_classes = tuple(shape), num_classes

    def setup(self, stage):
        self.sets = {}
        for number, (split, n) in enumerate(SIZES.items()):
            generator = torch.Generator().manual_seed(number)
            y = torch.arange(n) % (self.num_classes or 3)
            C, H, W = self.shape
            rows, columns = torch.arange(H)[:, None] // 2 % 2, torch.arange(W)[None] // 2 % 2
            patterns = [rows.expand(H, W), columns.expand(H, W), (rows + columns) % 2]
            x = torch.stack([patterns[int(k) % 3].float() for k in y])[:, None].expand(n, C, H, W).clone()
            x[:, 0] *= 1 - y[:, None, None] / (2 * (self.num_classes or 3))
            x = (self.hparams.level * x + 0.1 * torch.rand(n, C, H, W, generator=generator)).clamp(0, 1)
            self.sets[split] = TensorDataset(*((x,) if self.num_classes is None else (x, y)))

    def train_dataloader(self):
        return DataLoader(self.sets["train"], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.sets["val"], self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.sets["test"], self.hparams.batch_size)


class OnDisk:
    """Images that are no tensor: each slice is made when it is asked for."""

    def __init__(self, images):
        self.images, self.largest = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        found = self.images[index]
        self.largest = max(self.largest, len(found))
        return found.clone()
