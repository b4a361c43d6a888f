"""The docs' tests take what stands in for the Hugging Face hub from the models' tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))
