"""tokmill: text corpora of any size to token files for training, exact, fast, in bounded memory, safe against crashes."""

__version__ = "0.1.0"
