"""Tokenizers from texts: their fixed tokens, what they make of words and bytes, cache and restoring."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.language import BytePairs, TokenizerMaker, Words, require_eos
from zoo.language.tokenizers import Characters, from_json, to_json

TEXTS = ["the cat sat on the mat", "The dog sat", "a snake_case word and Zoë's ünïcode"] * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    return tmp_path / "tokenizers"


@pytest.mark.parametrize("maker", [Words(), BytePairs(300), Characters()], ids=["words", "byte_pairs", "characters"])
def test_fixed_tokens_are_distinct_and_restored(maker: TokenizerMaker) -> None:
    made = maker.make(TEXTS)
    ids = [made.pad_token_id, made.bos_token_id, made.eos_token_id, made.unk_token_id]
    assert len({*ids, made.convert_tokens_to_ids("_")}) == 5
    assert made.eos_token == "</s>"
    assert require_eos(made) == made.convert_tokens_to_ids("</s>")
    text = "the cat _ mat"
    assert made(text)["input_ids"][0] == made.bos_token_id
    assert made.bos_token_id not in made(text, add_special_tokens=False)["input_ids"]
    assert made("<s>the", add_special_tokens=False)["input_ids"] == made("the")["input_ids"]
    again = from_json(to_json(made))
    assert again(text)["input_ids"] == made(text)["input_ids"]
    assert [again.pad_token_id, again.bos_token_id, again.eos_token_id, again.unk_token_id] == ids
    assert len(again) == len(made)


def test_words_come_by_frequency_and_the_rest_is_unknown() -> None:
    made = Words(max_size=8).make(TEXTS)  # 5 fixed tokens, then: sat 6 times, the 6 times, The, cat, ... 3 times
    assert made.convert_ids_to_tokens([5, 6, 7]) == ["sat", "the", "The"]
    assert len(made) == 8
    assert made("The cat sat", add_special_tokens=False)["input_ids"] == [7, made.unk_token_id, 5]
    lower = Words(max_size=8, lower=True).make(TEXTS)
    assert lower.convert_ids_to_tokens([5, 6]) == ["the", "sat"]  # 9 times with "The", and 6
    assert lower("THE Sat", add_special_tokens=False)["input_ids"] == [5, 6]


def test_a_corrupted_word_is_one_token() -> None:
    for made in (Words().make(TEXTS), BytePairs(300).make(TEXTS)):
        blank = made.convert_tokens_to_ids("_")
        assert made("_ cat _ _ sat _")["input_ids"].count(blank) == 4
        assert made("_ _ _", add_special_tokens=False)["input_ids"] == [blank] * 3
    # inside of a word, bytes are bytes
    assert made.decode(made("a snake_case word", add_special_tokens=False)["input_ids"]) == "a snake_case word"


def test_byte_pairs_know_all_texts_and_merge_frequent_ones() -> None:
    made = BytePairs(300).make(TEXTS)
    strange = "日本語 \t 🎈 xyz"
    ids = made(strange, add_special_tokens=False)["input_ids"]
    assert made.unk_token_id not in ids
    assert made.decode(ids) == strange
    assert len(made("sat", add_special_tokens=False)["input_ids"]) < 3
    assert len(made) <= 300


def test_every_character_is_a_token_and_comes_back() -> None:
    made = Characters().make(["12+34=46", "é"])
    assert len(made) == 4 + 95 + 1 + 1  # fixed tokens, printable ASCII with "_", the end of line, é
    text = " 12+34=\n  é_#### -46 "
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert made.unk_token_id not in ids
    assert made.decode(ids) == text
    assert made.decode([made.bos_token_id, *ids, made.eos_token_id], skip_special_tokens=True) == text
    assert made("ü")["input_ids"] == [made.bos_token_id, made.unk_token_id]
    few = Characters(ascii=False).make(["12+34=46", "é"])
    assert few.convert_ids_to_tokens(range(4, len(few))) == [*"+12346=_é"]


def test_characters_are_the_same_from_a_saved_folder(tmp_path: Path) -> None:
    from zoo.language import LanguageModel

    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LanguageModel(config={**config, "num_attention_heads": 2}, tokenizer=Characters()).build(["1"])
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    again = LanguageModel(str(tmp_path / "model")).build().tokenizer
    text = " 12 +34 =\n\n  -46 . "
    assert again(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
    assert [again.pad_token, again.bos_token, again.eos_token] == ["<pad>", "<s>", "</s>"]


def test_made_once_for_texts_and_settings(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    train = Words._train
    monkeypatch.setattr(Words, "_train", lambda self, texts: trained.append(texts) or train(self, texts))

    def stream() -> Iterator[str]:
        yield from TEXTS

    first = Words().make(stream())
    assert len(trained) == 1
    assert Words().make(TEXTS).get_vocab() == first.get_vocab()
    assert len(trained) == 1
    Words(lower=True).make(TEXTS)
    Words().make(TEXTS[:1])
    assert len(trained) == 3
    assert len(list(cache.iterdir())) == 3


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="Words: there are no texts"):
        Words().make([])
    with pytest.raises(ValueError, match="max_size=5: must be more than 5"):
        Words(5)
    with pytest.raises(ValueError, match="size=260: must be more than 260"):
        BytePairs(260)
    made = Words().make(TEXTS)
    made.eos_token = None
    with pytest.raises(ValueError, match=r'has no EOS token.*"eos_token" to its tokenizer_config'):
        require_eos(made)
