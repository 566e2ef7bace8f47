"""Write scikit-learn's handwritten digits (1,797 images of 8 x 8) to data/digits.npz."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.images[order] / 16.0).astype(np.float32)
targets = digits.target[order].astype(np.int64)
split = 1437

folder = Path(__file__).parent / "data"
folder.mkdir(exist_ok=True)
np.savez(
    folder / "digits.npz",
    train_images=images[:split],
    train_targets=targets[:split],
    test_images=images[split:],
    test_targets=targets[split:],
)
print(f"wrote {folder / 'digits.npz'}: {split} images to train, {len(targets) - split} to test")
