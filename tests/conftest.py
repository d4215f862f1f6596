"""Tests run from any folder, on two CPU cores, without a network."""
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub is a broken test
torch.set_num_threads(2)
torch.set_flush_denormal(True)  # strong decays of the delta rule make denormal numbers, up to 12 x slower
