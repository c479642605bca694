"""Small tokenizers of every family, trained on the spot: published patterns and normalizers, vocabularies of our own.

The truth they are held against is made by Hugging Face tokenizers alone (`truth`), from the file as it was written.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

EOT = "<|endoftext|>"
VOCABULARY = 0
"""Tokens of each tokenizer that is trained from now on; 0: a few hundred, enough to show where pieces end."""
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_WORDS = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
DEEPSEEK = (r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", _DEEPSEEK_WORDS)
PLAIN = ("<tool_call>", "</tool_call>", "<think>", "<\uff5cUser\uff5c>")
"""Added tokens that are not special, as Qwen and DeepSeek have them."""
TEXTS = [
    "It was the best of times, it was the worst of times; don't you think? 1859, 12 345 €. CamelCase HTTPServer\r\n\n",
    "Да, это было так. 你好，世界。これはカタカナ。 한국어 사과 배. हिन्दी भाषा। ภาษาไทย. العربية؟ Ελληνικά; naïve café e\u0301\n",
    "def f(x):\n\treturn {'a': x[0]}  # 3.14\n\n\n<tool_call> </tool_call> <think>hm</think> <s> </s> 🤖👍🏽 \u200d ½ Ⅷ ٣٤٥\n",
]


def byte_level(*patterns: str) -> pre_tokenizers.PreTokenizer:
    if not patterns:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def a_bpe(pre_tokenizer: Any, normalizer: Any = None, *, ignore_merges: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Special tokens beside the vocabulary, as Llama 3 and Qwen have them.
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=VOCABULARY or 700, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([EOT, "<|im_start|>"])
    return made


def with_plain(made: Tokenizer, tokens: tuple[str, ...] = PLAIN) -> Tokenizer:
    made.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return made


def a_sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """As Llama 2: BPE over characters with a mark for spaces, and a token for every byte."""
    trained = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = ["<unk>", "<s>", "</s>"]
    size = VOCABULARY or 900
    trained.train_from_iterator(
        TEXTS[:2] * 3,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=first + [f"<0x{i:02X}>" for i in range(256)], limit_alphabet=120, show_progress=False
        ),
    )
    spec = json.loads(trained.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in first]
    made = Tokenizer.from_str(json.dumps(spec))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def a_unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        TEXTS * 3,
        trainers.UnigramTrainer(vocab_size=VOCABULARY or 300, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return made


def a_wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    # Not BERT's, which parts brackets from words: here a word can be [SEP].
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]", "</s>"]
    made.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=VOCABULARY or 400, special_tokens=special, show_progress=False)
    )
    return made


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
MAKERS = {
    "gpt2": lambda: a_bpe(byte_level()),
    "llama3": lambda: a_bpe(byte_level(LLAMA3), ignore_merges=True),
    "qwen2+nfc": lambda: with_plain(a_bpe(byte_level(QWEN2), normalizers.NFC()), PLAIN[:3]),
    "o200k": lambda: a_bpe(byte_level(O200K)),
    "deepseek_v3": lambda: with_plain(a_bpe(byte_level(*DEEPSEEK), normalizers.Sequence([]))),
    "sentencepiece": lambda: a_sentencepiece(PREPEND, None),
    "metaspace": lambda: a_sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "unigram": a_unigram,
    "wordpiece": a_wordpiece,
}
"""By family; unigram and wordpiece are of none."""
PROVEN = [name for name in MAKERS if name not in ("unigram", "wordpiece")]


@functools.cache
def path_of(name: str) -> Path:
    """The tokenizer.json of a small tokenizer."""
    directory = Path(tempfile.mkdtemp(prefix="tokmill-small-"))
    MAKERS[name]().save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


@functools.cache
def truth(name: str) -> Tokenizer:
    """The reference, with special tokens in text left text."""
    made = Tokenizer.from_file(str(path_of(name)))
    made.encode_special_tokens = True
    return made


def true_ids(name: str, text: str) -> list[int]:
    ids: list[int] = truth(name).encode(text, add_special_tokens=False).ids
    return ids


def rewritten(name: str, directory: Path, **changes: Any) -> Path:
    """A copy of a small tokenizer.json with top-level parts replaced; `model` is merged."""
    spec = json.loads(path_of(name).read_text())
    model = spec["model"] | changes.pop("model", {})
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(spec | changes | {"model": model}))
    return path
