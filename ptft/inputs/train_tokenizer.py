"""Learns a WordPiece vocabulary from texts."""

from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ptft.core import progress
from ptft.core.errors import UserError
from ptft.inputs.tokenizer import SPECIALS, Tokenizer, bert_normalizer, bert_splitter, whole


def train(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = True,
    min_frequency: int = 2,
    limit_alphabet: int | None = None,
) -> Tokenizer:
    """Learns a vocabulary: the special tokens ([PAD] is 0), the alphabet, then whole words and pieces.

    The same texts give the same vocabulary, to the id, on every machine. The library's trainer alone does
    not: it numbers "##x" letters and breaks ties in the alphabet in the order of a hash table. So the words
    are counted and the alphabet is chosen here.

    Args:
      texts: read once; only the counts of distinct words are kept.
      vocab_size: at most so many entries.
      lowercase: also strips accents.
      min_frequency: pieces seen less often are not learned.
      limit_alphabet: at most so many characters; None takes the most frequent ones that make up 99.95% of the
        text. A word with any other character is [UNK].
    Raises:
      UserError: no word in the texts, or no room for any.
    """
    words = _count_words(texts, lowercase)
    if not words:
        raise UserError("cannot train a tokenizer: the texts hold no word; is the data set empty?")
    letters = _alphabet(words, vocab_size - len(SPECIALS), limit_alphabet)
    known = {t for t in letters if len(t) == 1}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIALS, *letters],
        show_progress=False,
    )
    counted = {w: n for w, n in words.items() if known.issuperset(w)}
    with progress.doing(f"training a tokenizer on {len(counted):,} distinct words", watch=True):
        tokenizer.train_from_iterator(_repeat(counted), trainer)
    ids = tokenizer.get_vocab()
    return Tokenizer(sorted(ids, key=ids.__getitem__), lowercase)


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    normalizer, splitter = bert_normalizer(lowercase), bert_splitter()
    chunks: Counter[str] = Counter()
    for text in progress.each(texts, "counting words for a tokenizer", "texts"):
        chunks.update(normalizer.normalize_str(whole(text)).split())
    words: Counter[str] = Counter()
    for chunk, n in chunks.items():
        for word, _ in splitter.pre_tokenize_str(chunk):
            words[word] += n
    return words


def _alphabet(words: Counter[str], room: int, limit: int | None) -> list[str]:
    """The letters "x", then "##x" for those that continue a word, each in the order of code points."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, n in words.items():
        inside.update(word[1:])
        for c in word:
            counts[c] += n
    enough = 0.9995 * counts.total()
    chosen: list[str] = []
    covered = 0
    for c in sorted(counts, key=lambda c: (-counts[c], c)):
        room -= 1 + (c in inside)
        if room < 0 or (limit is None and covered >= enough) or (limit is not None and len(chosen) >= limit):
            break
        chosen.append(c)
        covered += counts[c]
    if not chosen:
        raise UserError(
            "cannot train a tokenizer: vocab_size leaves no room for a single character; a few thousand is "
            "usual"
        )
    return sorted(chosen) + ["##" + c for c in sorted(chosen) if c in inside]


def _repeat(words: dict[str, int]) -> Iterator[str]:
    """Each word as often as it was counted, a few thousand at a time: the trainer takes text, not counts."""
    for word, n in sorted(words.items()):
        for start in range(0, n, 4096):
            yield f"{word} " * min(4096, n - start)
