"""WordPiece tokens of captions, and which word each token belongs to.

What lives here: learning and loading of a vocabulary, encoding, aggregation of pieces to words as indices. What
must not: cleaning of report text, the text encoder.

Legend: B texts, W token positions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer as PieceTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from medst.config import Behaviour, DataConfig
from medst.data.store import Store

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class VocabularyError(ValueError):
    """A vocabulary that cannot be used; the message names the remedy."""


class EncodedTexts(NamedTuple):
    """Encoded texts, padded with 0 to the longest."""

    token_ids: Tensor
    """(B, W) int64, [CLS] first, [SEP] last."""
    attention_mask: Tensor
    """(B, W) int64, 1 = token."""
    word_of_token: Tensor
    """(B, W) int64: word slot of every token, -1 for tokens that belong to none."""


@dataclass(frozen=True)
class CaptionArrays:
    """Encoded captions of a whole store, ready to be cut into batches."""

    token_ids: np.ndarray
    """(B, W) int32."""
    word_of_token: np.ndarray
    """(B, W) int16."""
    lengths: np.ndarray
    """(B,) int64 number of tokens."""

    def batch(self, rows: np.ndarray) -> EncodedTexts:
        """Captions `rows`, cut to the longest among them."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        return EncodedTexts(
            torch.from_numpy(self.token_ids[rows, :width].astype(np.int64)),
            torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64)),
            torch.from_numpy(self.word_of_token[rows, :width].astype(np.int64)))


def word_slots(token_ids: np.ndarray, is_continuation: np.ndarray, sep_id: int, behaviour: Behaviour) -> np.ndarray:
    """Word slot of every token: a word is a token and the `##` pieces that follow it.

    [CLS] and [SEP] are words of their own; nothing after the first [SEP] belongs to a word.

    Args:
        token_ids: (B, W) whole numbers; W is the number of positions that a caption can fill.
        is_continuation: (vocabulary,) bool, True for pieces that begin with `##`.
        behaviour: released: the last of the W positions is not visited, so that a caption that fills all of them
            loses its [SEP] and the word before it, still open then.

    Returns:
        (B, W) int64, -1 for tokens that belong to no word.
    """
    num_positions = token_ids.shape[1]
    position = np.arange(num_positions)
    begins = ~is_continuation[token_ids]
    begins[:, 0] = True
    slots = np.cumsum(begins, axis=1) - 1
    is_sep = token_ids == sep_id
    sep_position = np.where(is_sep.any(axis=1), is_sep.argmax(axis=1), num_positions)
    slots[position[None, :] > sep_position[:, None]] = -1
    if behaviour == "released":
        # A word is written down when the next one begins; at the last position visited nothing does.
        is_cut = sep_position >= num_positions - 1
        last_open = slots[:, max(num_positions - 2, 0)]
        slots[is_cut[:, None] & (slots >= last_open[:, None])] = -1
    return slots


class Tokenizer:
    """A WordPiece vocabulary with the way in which its pieces make words."""

    def __init__(self, vocabulary: Sequence[str], is_lower_case: bool, word_aggregation: Behaviour) -> None:
        """
        Args:
            vocabulary: pieces; the index is the token id.
            is_lower_case: texts are brought to lower case, without accents, before they are cut.
            word_aggregation: `config.model.text.word_aggregation`.

        Raises:
            VocabularyError: a special token is missing, [PAD] is not token 0, or a piece is repeated.
        """
        self.vocabulary = tuple(vocabulary)
        self.is_lower_case = is_lower_case
        self.word_aggregation: Behaviour = word_aggregation
        ids = {piece: index for index, piece in enumerate(self.vocabulary)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise VocabularyError(f"the vocabulary lacks {', '.join(missing)}; a BERT vocabulary is expected")
        if ids["[PAD]"] != 0:
            raise VocabularyError(f"[PAD] is token {ids['[PAD]']} of the vocabulary; it must be token 0")
        if len(ids) != len(self.vocabulary):
            raise VocabularyError(f"{len(self.vocabulary) - len(ids)} pieces of the vocabulary are repeated")
        self.cls_id, self.sep_id = ids["[CLS]"], ids["[SEP]"]
        self._is_continuation = np.array([piece.startswith("##") for piece in self.vocabulary])
        self._pieces = _piece_tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100),
                                        is_lower_case)
        self._pieces.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)])

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> EncodedTexts:
        """Encode texts, [CLS] and [SEP] included in `max_tokens`; longer ones are cut before [SEP]."""
        arrays = self.encode_captions(texts, max_tokens)
        return arrays.batch(np.arange(len(texts)))

    def encode_captions(self, texts: Sequence[str], max_tokens: int) -> CaptionArrays:
        """Encode many texts to arrays of `max_tokens` positions.

        Raises:
            ValueError: no text, or `max_tokens` leaves no room for a word.
        """
        if not texts:
            raise ValueError("no text to encode")
        if max_tokens < 3:
            raise ValueError(f"max_tokens={max_tokens} leaves no room between [CLS] and [SEP]; 3 or more is needed")
        self._pieces.enable_truncation(max_tokens)
        encodings = self._pieces.encode_batch_fast(list(texts))
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        ids = np.zeros((len(texts), max_tokens), dtype=np.int32)
        ids[np.arange(max_tokens) < lengths[:, None]] = np.concatenate([encoding.ids for encoding in encodings])
        slots = word_slots(ids, self._is_continuation, self.sep_id, self.word_aggregation)
        return CaptionArrays(ids, slots.astype(np.int16), lengths)

    def words(self, token_ids: Sequence[int] | np.ndarray, word_of_token: Sequence[int] | np.ndarray) -> list[str]:
        """Word strings of one text by slot, pieces joined without `##`."""
        words: dict[int, str] = {}
        for token, slot in zip(np.asarray(token_ids).tolist(), np.asarray(word_of_token).tolist(), strict=True):
            if slot >= 0:
                words[slot] = words.get(slot, "") + self.vocabulary[token].removeprefix("##")
        return [words[slot] for slot in sorted(words)]

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt and medst_tokenizer.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"is_lower_case": self.is_lower_case, "word_aggregation": self.word_aggregation})
        for name, text in (("vocab.txt", "\n".join(self.vocabulary) + "\n"), ("medst_tokenizer.json", settings)):
            temporary = folder / f".{name}.new"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            VocabularyError: a file is missing.
        """
        path = Path(folder) / "medst_tokenizer.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise VocabularyError(f"{path}: no such file; a folder that Tokenizer.save wrote is expected") from None
        vocabulary = _read_vocabulary(Path(folder) / "vocab.txt")
        return cls(vocabulary, settings["is_lower_case"], settings["word_aggregation"])


def build_tokenizer(store: Store, data: DataConfig, word_aggregation: Behaviour) -> Tokenizer:
    """The tokenizer that a config means: `data.vocabulary`, or one learned from the training reports.

    Raises:
        VocabularyError: the vocabulary cannot be found or used.
    """
    if data.vocabulary is not None:
        vocabulary, is_lower_case = _find_vocabulary(data.vocabulary)
        return Tokenizer(vocabulary, is_lower_case, word_aggregation)
    if store.mimic is None:
        raise VocabularyError(f"{store.path}: no MIMIC-CXR reports to learn a vocabulary from; set data.vocabulary")
    studies = store.mimic.studies
    reports = studies.loc[studies["split"] == "train", f"report_{data.report_text}"]
    return Tokenizer(learn_vocabulary(reports, data.vocabulary_size), True, word_aggregation)


def learn_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """WordPiece vocabulary of at most `size` pieces, special tokens first ([PAD] is 0); the same for the same texts.

    The trainer numbers the continuing letters in the order of a hash map and breaks ties by number; here they are
    given in sorted order, like special tokens, so that nothing is left to chance.
    """
    texts = list(texts)
    pieces = _piece_tokenizer(models.WordPiece(unk_token="[UNK]"), is_lower_case=True)
    letters = {letter for text in texts for letter in pieces.normalizer.normalize_str(text) if not letter.isspace()}
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in sorted(letters))])
    pieces.train_from_iterator(texts, trainer)
    ids = pieces.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _piece_tokenizer(model: models.WordPiece, is_lower_case: bool) -> PieceTokenizer:
    pieces = PieceTokenizer(model)
    pieces.normalizer = normalizers.BertNormalizer(lowercase=is_lower_case)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return pieces


def _read_vocabulary(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise VocabularyError(f"{path}: no such vocabulary file") from None


def _find_vocabulary(place: str) -> tuple[list[str], bool]:
    """Pieces and case of a vocab.txt, a transformers folder, or a model name (cached or downloaded)."""
    path = Path(place)
    if path.is_file():
        return _with_case(_read_vocabulary(path))
    if path.is_dir():
        if (path / "vocab.txt").is_file():
            return _with_case(_read_vocabulary(path / "vocab.txt"), path / "tokenizer_config.json")
        if (path / "tokenizer.json").is_file():
            return _from_pieces(PieceTokenizer.from_file(str(path / "tokenizer.json")), place)
        raise VocabularyError(f"data.vocabulary={place}: the folder holds neither vocab.txt nor tokenizer.json")
    try:
        return _from_pieces(PieceTokenizer.from_pretrained(place), place)
    except (OSError, ValueError) as error:
        raise VocabularyError(
            f"data.vocabulary={place}: no such file or folder, and no model of that name whose tokenizer.json can be "
            f"had ({type(error).__name__}); download the model and give its folder, or its vocab.txt") from None


def _with_case(vocabulary: list[str], settings: Path | None = None) -> tuple[list[str], bool]:
    """Whether a vocabulary is lower case: as its folder says, else where it has no capital."""
    if settings is not None and settings.is_file():
        stated = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case")
        if stated is not None:
            return vocabulary, bool(stated)
    return vocabulary, all(piece == piece.lower() for piece in vocabulary if not piece.startswith("["))


def _from_pieces(pieces: PieceTokenizer, place: str) -> tuple[list[str], bool]:
    if not isinstance(pieces.model, models.WordPiece):
        raise VocabularyError(f"data.vocabulary={place}: {type(pieces.model).__name__} pieces; a BERT vocabulary "
                              "(WordPiece) is expected")
    ids = pieces.get_vocab()
    vocabulary = sorted(ids, key=ids.__getitem__)
    if isinstance(pieces.normalizer, normalizers.BertNormalizer):
        return vocabulary, pieces.normalizer.lowercase
    return _with_case(vocabulary)
