"""Train a small convolutional network on scikit-learn's handwritten digits, and write what `optimize` reads.

    python examples/digits/train.py examples/digits/build

writes `digits.pt2` (a `torch.export` program, any batch size), and for its one input `image` ([N, 1, 8, 8] float32, 0
to 1) `evaluation.npz` (719 images that training never saw, with their `labels`) and `calibration.npz` (256 that it
did). The images come inside scikit-learn (the test set of the UCI "Optical Recognition of Handwritten Digits").
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 7
EPOCHS = 30
BATCH = 64
HELD_OUT = 0.4
CALIBRATION = 256


class Digits(nn.Module):
    """Three convolutions with batch normalisation and a linear layer: [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self.block(1, 16), *self.block(16, 32), nn.MaxPool2d(2), *self.block(32, 64), nn.MaxPool2d(2)
        )
        self.classifier = nn.Linear(64 * 2 * 2, 10)

    @staticmethod
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).flatten(1))


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images to train on, images held out, and the labels of each, split evenly over the digits."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    return train_test_split(
        images, digits.target.astype(np.int64), test_size=HELD_OUT, stratify=digits.target, random_state=SEED
    )


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """A trained network in evaluation mode. The same data give the same weights on the same kind of machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # such small layers gain nothing from a second one, and sums keep their order
    model = Digits()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    batches = -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=EPOCHS * batches)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(x)).split(BATCH):
            # Shifts of up to one pixel: 1,078 images are few.
            dx, dy = (int(shift) for shift in torch.randint(-1, 2, (2,)))
            optimizer.zero_grad()
            loss(model(torch.roll(x[indices], (dy, dx), dims=(2, 3))), y[indices]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: Digits, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.inference_mode():
        answers = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    return float((answers == labels).mean())


def write(directory: Path) -> float:
    """Train, write the three files into `directory`, and return the accuracy on the held-out images."""
    directory.mkdir(parents=True, exist_ok=True)
    images, held_out, labels, held_out_labels = load()
    model = train(images, labels)
    np.savez(directory / "evaluation.npz", image=held_out, labels=held_out_labels)
    np.savez(directory / "calibration.npz", image=images[:CALIBRATION])
    example = (torch.from_numpy(images[:2]),)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, example, dynamic_shapes={"image": {0: batch}})
    unfinished = directory / "unfinished.pt2"
    torch.export.save(program, unfinished)
    unfinished.replace(directory / "digits.pt2")
    return accuracy(model, held_out, held_out_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where to write; made if it is not there")
    arguments = parser.parse_args()
    score = write(arguments.directory)
    print(f"{arguments.directory}: digits.pt2 is right on {score:.2%} of the held-out images", file=sys.stderr)


if __name__ == "__main__":
    main()
