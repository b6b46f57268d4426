"""Tokenizers made from texts, for networks from scratch, and what methods ask of any tokenizer."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from datamodules.sources import atomic, cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BLANK = "_"
"""What stands for a corrupted word; one token of every tokenizer that is made here."""


class TokenizerMaker(ABC):
    """Makes a tokenizer for texts, with distinct tokens for padding, beginning, end and unknown, and one for ``_``.

    Texts begin with ``<s>``, unless tokenised without special tokens.
    """

    def make(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        """The tokenizer for these texts, from the cache folder if it was made before.

        Raises:
            ValueError: if there are no texts.
        """
        texts = list(texts)
        if not texts:
            raise ValueError(f"{type(self).__name__}: there are no texts to make a tokenizer from")
        settings = [type(self).__name__, vars(self), texts]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        file = cache_dir() / "tokenizers" / f"{digest[:24]}.json"
        if not file.is_file():
            with atomic(file) as temporary:
                temporary.write_text(self._train(texts).to_str(), encoding="utf-8")
        return from_json(file.read_text(encoding="utf-8"))

    @abstractmethod
    def _train(self, texts: Sequence[str]) -> "Tokenizer":
        """The tokenizer with the tokens of ``SPECIAL`` and ``BLANK`` in its vocabulary."""


class Words(TokenizerMaker):
    """The most frequent words between white space; all others are unknown.

    Args:
        max_size: size of the vocabulary, the five fixed tokens included.
        lower: make texts lower case.
    """

    def __init__(self, max_size: int = 30_000, lower: bool = False) -> None:
        _check_size("max_size", max_size, len(SPECIAL) + 1)
        self.max_size, self.lower = max_size, lower

    def _train(self, texts: Sequence[str]) -> "Tokenizer":
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        fixed = [*SPECIAL.values(), BLANK]
        counts = Counter(word for text in texts for word in (text.lower() if self.lower else text).split())
        frequent = sorted(counts.keys() - set(fixed), key=lambda word: (-counts[word], word))
        words = [*fixed, *frequent][: self.max_size]
        unknown = SPECIAL["unk_token"]
        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if self.lower:
            made.normalizer = normalizers.Lowercase()
        return _finish(made)


class BytePairs(TokenizerMaker):
    """Byte-level byte pair encoding (GPT-2's), trained on the texts; no text has unknown tokens.

    Args:
        size: of the vocabulary, with the 256 bytes and four special tokens; less where the texts give no more pairs.
    """

    def __init__(self, size: int = 8_000) -> None:
        _check_size("size", size, 256 + len(SPECIAL))
        self.size = size

    def _train(self, texts: Sequence[str]) -> "Tokenizer":
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer, length=len(texts))
        # a byte pair encoding would split " _" where the texts have no such word
        made.add_tokens([AddedToken(BLANK, single_word=True, lstrip=True, normalized=False)])
        return _finish(made)


class Characters(TokenizerMaker):
    """Every character is a token, so that a model sees the digits of a number; other characters are unknown.

    Args:
        ascii: besides the characters of the texts, know all of printable ASCII and the end of line, so that what is
            trained on these texts can be trained on others.
    """

    def __init__(self, ascii: bool = True) -> None:
        self.ascii = ascii

    def _train(self, texts: Sequence[str]) -> "Tokenizer":
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        found = {BLANK, *(character for text in texts for character in text)}
        if self.ascii:
            found |= {"\n", *map(chr, range(32, 127))}
        known = [*SPECIAL.values(), *sorted(found)]
        unknown = SPECIAL["unk_token"]
        made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(known)}, unk_token=unknown))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
        return _finish(made)


def from_json(text: str) -> "PreTrainedTokenizerFast":
    """The tokenizer that ``to_json`` wrote down."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **SPECIAL)


def to_json(tokenizer: Any) -> str:
    """All that makes a tokenizer of a :class:`TokenizerMaker`."""
    text: str = tokenizer.backend_tokenizer.to_str()
    return text


def require_eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that ends a text.

    It may also be the padding token, as Qwen's base models have it: masks are made from places, never from ids.

    Raises:
        ValueError: if there is none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no EOS token, which the method "
            'puts at the end of a text: add "eos_token" to its tokenizer_config.json, or use another tokenizer'
        )
    return int(tokenizer.eos_token_id)


def _check_size(name: str, size: int, least: int) -> None:
    if size <= least:
        raise ValueError(f"{name}={size}: must be more than {least}, the number of fixed tokens")


def _finish(made: "Tokenizer") -> "Tokenizer":
    from tokenizers import processors

    made.add_special_tokens(list(SPECIAL.values()))
    begin = SPECIAL["bos_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, made.token_to_id(begin))]
    )
    return made
