"""Words that captions must not say, and words that somebody is to look at.

A word is what BERT's tokenizer takes for one: without case and accents, cut at white space and punctuation. "Hot Dog"
is a phrase of two words and "t-shirt" one of three. Words are compared whole: of "dog", "dogs" and "doghouse" are
others, so inflections have to be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blip_lite.errors import ConfigError
from blip_lite.processing.processor import SPECIAL_TOKENS, Processor


def read_words(path: str | Path) -> list[str]:
    """A file of one word or phrase a line.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        words = [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: a list of words that cannot be read ({error})") from error
    if not words:
        raise ConfigError(f"{path}: holds no words; write one word or phrase a line")
    return words


def split_words(processor: Processor, text: str) -> list[str]:
    """The words of a text, as the tokenizer sees them."""
    normalizer, pre_tokenizer = processor.tokenizer.normalizer, processor.tokenizer.pre_tokenizer
    text = normalizer.normalize_str(text.lower()) if normalizer else text.lower()
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else text.split()


def split_entries(processor: Processor, entries: Iterable[str]) -> dict[str, list[str]]:
    """The words of each entry of a list. Raises ValueError for an entry without a word."""
    split = {entry: split_words(processor, entry) for entry in entries}
    if empty := [entry for entry, words in split.items() if not words]:
        raise ConfigError(f"a list of words: {empty[0]!r} holds no word")
    return split


def found_words(processor: Processor, text: str, entries: Mapping[str, list[str]]) -> list[str]:
    """Which entries, split by `split_entries`, stand in a text."""
    words = split_words(processor, text)
    return [
        entry
        for entry, wanted in entries.items()
        if any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))
    ]


class BannedWords:
    """Which tokens a caption must not go on with, lest it says a banned word or phrase.

    However a word is spelt in pieces, the piece that would make its text whole is forbidden. So where the vocabulary
    has "doghouse" only as `dog ##house`, banning "dog" bans it too; where it is a token of its own it stays allowed.

    Args:
        processor: for its tokenizer.
        entries: words and phrases.

    Raises:
        ConfigError: an entry without a word.
    """

    def __init__(self, processor: Processor, entries: Sequence[str]) -> None:
        self.processor, vocabulary = processor, processor.tokenizer.get_vocab()
        self.pieces = {id: token for token, id in vocabulary.items() if token not in SPECIAL_TOKENS}
        # Tokens that are the last word of an entry, by the word before it ("" if it is the only one), with all the
        # words before it; as a word, as a piece that begins one, and as a piece that ends the unfinished word of the
        # key.
        self.words: dict[str, list[tuple[list[str], int]]] = {}
        self.first_pieces: dict[str, list[tuple[list[str], int]]] = {}
        self.last_pieces: dict[str, list[tuple[list[str], int]]] = {}
        for *before, last in split_entries(processor, entries).values():
            key = before[-1] if before else ""
            if last in vocabulary:
                self.words.setdefault(key, []).append((before, vocabulary[last]))
            for cut in range(len(last)):
                if (piece := vocabulary.get(f"##{last[cut:]}")) is not None:
                    if cut:
                        self.last_pieces.setdefault(last[:cut], []).append((before, piece))
                    else:
                        self.first_pieces.setdefault(key, []).append((before, piece))

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """The tokens that must not follow `ids`, which begin with the prompt."""
        # Special and unknown tokens are left out of a caption, so they separate nothing.
        text = " ".join(self.pieces[token] for token in ids if token in self.pieces).replace(" ##", "")
        words = split_words(self.processor, text)
        last = words[-1] if words else ""
        forbidden = [t for key in ("", last) for before, t in self.words.get(key, []) if ends(words, before)]
        for key in ("", last):
            for before, token in self.first_pieces.get(key, []):
                # A piece grows the word before it, unless there is none or one of the two is a punctuation mark.
                alone = not words or len(split_words(self.processor, last + self.pieces[token][2:])) > 1
                if alone and ends(words, before):
                    forbidden.append(token)
        forbidden += [t for before, t in self.last_pieces.get(last, []) if ends(words[:-1], before)]
        return forbidden


def ends(words: list[str], with_: list[str]) -> bool:
    return not with_ or words[-len(with_) :] == with_
