"""tokmill: text corpora of any size to token files for training, exactly right, fast, in bounded memory, safe against crashes."""
