"""WordPiece tokens and their words: the published program's words, a slow obvious reference, saving."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medst.config import Behaviour, DataConfig
from medst.data.store import Store
from medst.data.tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    VocabularyError,
    build_tokenizer,
    learn_vocabulary,
    word_slots,
)

VOCABULARY = (*SPECIAL_TOKENS, "large", "small", "left", "effusion", "pneumo", "##thorax", "##s", "no", ".")


def tokenizer(word_aggregation: Behaviour = "corrected") -> Tokenizer:
    return Tokenizer(VOCABULARY, is_lower_case=True, word_aggregation=word_aggregation)


def store_without_data(path: Path) -> Store:
    import pandas as pd

    return Store(path=path, fingerprint="", name="", is_credentialed=False, image_size=8, steps=(),
                 problems=pd.DataFrame(), mimic=None, ms_cxr_t=None, ms_cxr=None, rsna=None, covidx=None)


def test_a_caption_by_hand() -> None:
    encoded = tokenizer().encode_batch(["Large left pneumothorax.", "no effusions"], max_tokens=12)
    pieces = [[VOCABULARY[token] for token in row] for row in encoded.token_ids.tolist()]
    assert pieces == [["[CLS]", "large", "left", "pneumo", "##thorax", ".", "[SEP]"],
                      ["[CLS]", "no", "effusion", "##s", "[SEP]", "[PAD]", "[PAD]"]]
    assert encoded.attention_mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert encoded.word_of_token.tolist() == [[0, 1, 2, 3, 3, 4, 5], [0, 1, 2, 2, 3, -1, -1]]
    assert tokenizer().words(encoded.token_ids[1].numpy(), encoded.word_of_token[1].numpy()) == [
        "[CLS]", "no", "effusions", "[SEP]"]


def test_a_full_caption_loses_its_last_word_only_as_released() -> None:
    text = "large left effusions"  # Six tokens with [CLS] and [SEP].
    assert tokenizer("corrected").encode_batch([text], 6).word_of_token.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert tokenizer("released").encode_batch([text], 6).word_of_token.tolist() == [[0, 1, 2, -1, -1, -1]]
    # With one position to spare both agree.
    for behaviour in ("released", "corrected"):
        assert tokenizer(behaviour).encode_batch([text], 7).word_of_token.tolist() == [[0, 1, 2, 3, 3, 4]]
    # A longer text is cut before [SEP] and fills all positions.
    long = tokenizer("released").encode_batch([f"{text} no no"], 6)
    assert long.word_of_token.tolist() == [[0, 1, 2, -1, -1, -1]]


def test_published_words(repository: Path) -> None:
    folder = Path(os.environ.get("MEDST_GOLDEN", repository.parent / "shared" / "golden"))
    if not (folder / "aggregate.npz").is_file():
        pytest.skip(f"{folder} is absent: words are not compared with the published program's")
    golden = np.load(folder / "aggregate.npz")
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads((folder / "config.json").read_text())["bert"]["vocab_size"] == len(vocabulary)
    own = Tokenizer(vocabulary, is_lower_case=False, word_aggregation="released")
    continues = np.array([piece.startswith("##") for piece in vocabulary])
    slots = word_slots(golden["ids"], continues, own.sep_id, "released")
    is_full = golden["attention_mask"].all(axis=1)
    assert 0 < is_full.sum() < len(is_full)
    for row, (ids, expected) in enumerate(zip(golden["ids"], golden["words"], strict=True)):
        assert own.words(ids, slots[row]) == expected[~golden["word_is_pad"][row]].tolist()
    corrected = word_slots(golden["ids"], continues, own.sep_id, "corrected")
    assert (corrected[is_full] != slots[is_full]).any(axis=1).all()
    assert (corrected[~is_full] == slots[~is_full]).all()


def slow_words(ids: list[int], continues: list[bool], sep: int, behaviour: Behaviour) -> list[list[int]]:
    """Token positions of every word, one token after the other, as the published loop goes."""
    words: list[list[int]] = []
    open_word: list[int] = []
    last = len(ids) - 1 if behaviour == "released" else len(ids)
    for position in range(last):
        token = ids[position]
        if token == sep:
            words += [open_word, [position]]
            return words
        if position > 0 and continues[token]:
            open_word.append(position)
        else:
            if open_word:
                words.append(open_word)
            open_word = [position]
    return words


@given(st.lists(st.integers(5, 9), min_size=1, max_size=10), st.integers(0, 3),
       st.sampled_from(["released", "corrected"]))
def test_words_equal_the_slow_loop(content: list[int], num_padding: int, behaviour: Behaviour) -> None:
    continues = np.array([False] * 7 + [True] * 3)
    ids = [2, *content, 3, *[0] * num_padding]
    slots = word_slots(np.array([ids]), continues, 3, behaviour)[0]
    expected = np.full(len(ids), -1)
    for word, positions in enumerate(slow_words(ids, continues.tolist(), 3, behaviour)):
        expected[positions] = word
    assert slots.tolist() == expected.tolist()


def many_texts() -> list[str]:
    draw = random.Random(1)
    words = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 8))) for _ in range(300)]
    return [" ".join(draw.choice(words) for _ in range(20)) for _ in range(200)]


def test_a_learned_vocabulary_is_the_same_each_time_and_in_another_process() -> None:
    vocabulary = learn_vocabulary(many_texts(), 200)
    assert len(vocabulary) == 200
    for _ in range(3):
        assert learn_vocabulary(many_texts(), 200) == vocabulary
    code = "from test_tokenizer import learn_vocabulary, many_texts; print(learn_vocabulary(many_texts(), 200))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."]), "RAYON_NUM_THREADS": "3"},
                           cwd=Path(__file__).parent.parent)
    assert other.stdout.strip() == repr(vocabulary)


def test_a_learned_vocabulary_has_its_special_tokens_first_and_its_size() -> None:
    texts = ["small left pleural effusion", "large right pleural effusion", "no pneumothorax"] * 5
    vocabulary = learn_vocabulary(texts, 60)
    assert vocabulary[:5] == list(SPECIAL_TOKENS) and len(vocabulary) <= 60
    own = Tokenizer(vocabulary, True, "corrected")
    ids = own.encode_batch(["Pleural EFFUSION"], 20).token_ids[0].tolist()
    assert vocabulary.index("[UNK]") not in ids


def test_saved_and_loaded_tokenizers_agree(tmp_path: Path) -> None:
    own = tokenizer("released")
    own.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.vocabulary, loaded.is_lower_case, loaded.word_aggregation) == (VOCABULARY, True, "released")
    before, after = own.encode_batch(["Large effusions"], 9), loaded.encode_batch(["Large effusions"], 9)
    assert [tensor.tolist() for tensor in before] == [tensor.tolist() for tensor in after]
    with pytest.raises(VocabularyError, match=r"medst_tokenizer\.json"):
        Tokenizer.load(tmp_path / "absent")


def test_vocabularies_from_files_and_folders(tmp_path: Path) -> None:
    store = store_without_data(tmp_path)
    tokenizer().save(tmp_path / "folder")
    (tmp_path / "folder" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    from_file = build_tokenizer(store, DataConfig(vocabulary=str(tmp_path / "folder" / "vocab.txt")), "corrected")
    assert from_file.vocabulary == VOCABULARY and from_file.is_lower_case
    from_folder = build_tokenizer(store, DataConfig(vocabulary=str(tmp_path / "folder")), "corrected")
    assert from_folder.vocabulary == VOCABULARY and not from_folder.is_lower_case
    (tmp_path / "cased.txt").write_text("\n".join((*VOCABULARY, "Large")) + "\n")
    assert not build_tokenizer(store, DataConfig(vocabulary=str(tmp_path / "cased.txt")), "corrected").is_lower_case


def test_a_transformers_folder_with_tokenizer_json(tmp_path: Path) -> None:
    import tokenizers

    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {piece: index for index, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    pieces.save(str(tmp_path / "tokenizer.json"))
    own = build_tokenizer(store_without_data(tmp_path), DataConfig(vocabulary=str(tmp_path)), "corrected")
    assert own.vocabulary == VOCABULARY and not own.is_lower_case


def test_vocabularies_that_cannot_serve_are_errors(tmp_path: Path) -> None:
    store = store_without_data(tmp_path)
    with pytest.raises(VocabularyError, match="download the model and give its folder"):
        build_tokenizer(store, DataConfig(vocabulary="nobody/no-such-model"), "corrected")
    with pytest.raises(VocabularyError, match=r"set data\.vocabulary"):
        build_tokenizer(store, DataConfig(), "corrected")
    with pytest.raises(VocabularyError, match=r"lacks \[MASK\]"):
        Tokenizer(VOCABULARY[:4], True, "corrected")
    with pytest.raises(VocabularyError, match="must be token 0"):
        Tokenizer(VOCABULARY[::-1], True, "corrected")
    with pytest.raises(VocabularyError, match="1 pieces of the vocabulary are repeated"):
        Tokenizer((*VOCABULARY, "large"), True, "corrected")
    with pytest.raises(ValueError, match="max_tokens=2"):
        tokenizer().encode_batch(["large"], 2)
