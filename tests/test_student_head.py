"""The loss inside the head equals the loss of the model's own logits, through any wrapper."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache_factory import random_responses
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from pipeline.errors import ModelError
from pipeline.student.batches import collate_teacher_rows
from pipeline.student.fused_loss import LossInputs, sum_losses
from pipeline.student.head import ResponseHead
from pipeline.student.support import TeacherRows

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}, (1.0, None)),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}, (1.0, None)),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 2.0}, (1.0, 2.0)),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}, (0.25, None)),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}, (0.125, None)),
    "clova": (HyperCLOVAXConfig, HyperCLOVAXForCausalLM, {"logits_scaling": 3.0}, (3.0, None)),
}


def build(name, **changes):
    config, model, options, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    built = model(config(**{**SIZES, **options, **changes}))
    with torch.no_grad():  # far from uniform, so that a cap and a factor show
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return built


@pytest.fixture(scope="module")
def batch():
    return collate_teacher_rows(random_responses(5, vocabulary_size=50, k=6))


def inputs_of(batch, head):
    return LossInputs(
        labels_N=batch["response_labels_N"],
        teacher=TeacherRows(*(batch.get(name) for name in TeacherRows._fields)),
        alphas_N=batch["alpha_weights_N"],
        softcap=head.transform.softcap,
        chunk_rows=7,
    )


def in_the_head(model, batch, call=None):
    head = ResponseHead(model)
    columns = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions = batch["response_positions_N"]
    sums, _ = head.score(
        call if call is not None else model,
        {**columns, "use_cache": False},
        positions,
        inputs_of(batch, head),
    )
    return sums.loss


def from_the_logits(model, batch):
    """CE + KL of the model's own logits at response positions, by automatic differentiation."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    logits = logits.flatten(0, 1)[batch["response_positions_N"]]
    p = batch["entry_logprobs_NK"].softmax(1)
    log_q = logits.log_softmax(1).gather(1, batch["entry_token_ids_NK"])
    kl = (torch.xlogy(p, p) - p * log_q).sum()
    return F.cross_entropy(logits, batch["response_labels_N"], reduction="sum") + kl


def assert_equal(model, batch, call=None):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, expected = in_the_head(model, batch, call), from_the_logits(model, batch)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = [torch.autograd.grad(loss, list(trained.values())) for loss in (ours, expected)]
    for name, found, truth in zip(trained, *pairs, strict=True):
        torch.testing.assert_close(
            found, truth, rtol=1e-3, atol=1e-4 * truth.abs().max().item() + 1e-6, msg=name
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_of_the_models_own_logits(name, batch):
    model = build(name)
    assert tuple(ResponseHead(model).transform) == ARCHITECTURES[name][3]
    assert_equal(model, batch)


def lora(model, **options):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"], **options))


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_through_peft(saved, batch):
    model = lora(build("llama"), modules_to_save=saved)
    assert any("lm_head" in n for n, p in model.named_parameters() if p.requires_grad) == bool(
        saved
    )
    assert_equal(model, batch)


@pytest.mark.slow
def test_through_torch_compile(batch):
    model = build("llama")
    assert_equal(model, batch, torch.compile(model, backend="eager"))


def test_under_autocast(batch):
    model = build("llama")
    with torch.autocast("cpu", torch.bfloat16):
        loss = in_the_head(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(from_the_logits(model, batch).item(), rel=2e-2)
    loss.backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_the_model_is_untouched_afterwards(batch):
    model = build("llama")
    before = model(batch["input_ids"]).logits
    in_the_head(model, batch)
    assert torch.equal(model(batch["input_ids"]).logits, before)
    assert "forward" not in vars(model.lm_head)
    head = ResponseHead(model)
    wrong = torch.tensor([10**6])
    with pytest.raises(IndexError, match="out of range"):
        head.score(model, {"input_ids": batch["input_ids"]}, wrong, inputs_of(batch, head))
    assert "forward" not in vars(model.lm_head)


def test_probing_leaves_training_mode_and_random_state():
    model = build("llama", attention_dropout=0.5).train()
    state = torch.get_rng_state()
    ResponseHead(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_in_lora_is_refused():
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*lora\.layer\.Linear of torch.float32"):
        ResponseHead(model)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="LlamaModel has no output head"):
        ResponseHead(build("llama").model)


def test_an_unknown_change_of_the_logits_is_refused():
    class Shifted(LlamaForCausalLM):
        def forward(self, *arguments, **options):
            outputs = super().forward(*arguments, **options)
            outputs.logits = outputs.logits + 1
            return outputs

    with pytest.raises(ModelError, match=r"Shifted turns logits of \[-200.0, .* into \[-199.0, "):
        ResponseHead(Shifted(LlamaConfig(**SIZES)))


def test_a_head_called_twice_is_refused():
    class Twice(LlamaForCausalLM):
        def forward(self, *arguments, **options):
            super().forward(*arguments, **options)
            return super().forward(*arguments, **options)

    with pytest.raises(ModelError, match=r"Twice calls its output head on \[\(1, 2, 16\), \(1, 2"):
        ResponseHead(Twice(LlamaConfig(**SIZES)))


SHARDED = """
import json, sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_student_head import build, in_the_head
from cache_factory import random_responses
from pipeline.student.batches import collate_teacher_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (size,))
responses = random_responses(6, vocabulary_size=50, k=6)
every = collate_teacher_rows(responses)
result = {}
for name in ("llama", "llama-tied", "gemma2"):
    whole = build(name)
    in_the_head(whole, every).backward()
    for reshard in (None, True):
        model = build(name)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        head_alone = reshard and name == "llama"
        if head_alone:
            fully_shard(model.lm_head, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
        assert isinstance(model.lm_head.weight, DTensor)
        mine = collate_teacher_rows(responses[rank::size])
        in_the_head(model, mine).backward()
        worst = 0.0
        for (key, p), q in zip(model.named_parameters(), whole.parameters()):
            # FSDP averages over processes; the losses are sums.
            worst = max(worst, (p.grad.full_tensor() * size - q.grad).abs().max().item()
                        / q.grad.abs().max().item())
        result[f"{name} {reshard}"] = worst
if rank == 0:
    print(json.dumps(result))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_by_fsdp_over_two_processes(tmp_path):
    """Each process has half of the responses and of every weight, the head's too."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [tmp_path / "sharded.py", tests]
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 6
    assert max(worst.values()) < 1e-4, worst


def test_a_head_in_parts_is_gathered(monkeypatch, batch):
    """A weight that is still a DTensor in the forward pass, as under tensor parallelism."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29781")
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = build("llama")
        expected = in_the_head(model, batch)
        head = ResponseHead(model)
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0].detach()
        weight = distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)])
        model.lm_head.weight = torch.nn.Parameter(weight)
        sums = head._sums(hidden, batch["response_positions_N"], inputs_of(batch, head))
        assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        sums.loss.backward()
        plain_weight = weight.full_tensor().requires_grad_()
        rows = hidden.flatten(0, 1)[batch["response_positions_N"]]
        sum_losses(rows, plain_weight, None, inputs_of(batch, head)).loss.backward()
        gradient = model.lm_head.weight.grad.full_tensor()
        np.testing.assert_allclose(gradient.numpy(), plain_weight.grad.numpy(), atol=1e-5)
    finally:
        dist.destroy_process_group()
