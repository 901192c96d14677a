"""The published judges on tiny checkpoints: input formats token by token, loading, long inputs."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judge_factory import (
    make_deberta,
    make_hhem,
    make_minicheck_t5,
    make_nli,
    make_roberta,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForTokenClassification,
)

from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.evaluation.judges import factcg, hhem, minicheck
from pipeline.evaluation.judges.chunks import chunk_lines, group_sentences
from pipeline.evaluation.judges.loading import checked_scores, find_judge, load_judge
from pipeline.evaluation.judges.protocol import JudgeChoice, read_judge_flags
from pipeline.evaluation.judges.sentences import split_lines, split_sentences
from pipeline.evaluation.judges.summac import summac_score

NLI_LABELS = ("contradiction", "entailment", "neutral")
PAIRS = [
    ("The cat sat on the mat. It was raining.", "A cat sat."),
    ("I am in California", "I am in United States."),
    ("One. Two! Three? Four. " * 8, "Four came after three."),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    return {
        "hhem": make_hhem(root / "hhem"),
        "deberta": make_deberta(root / "deberta"),
        "roberta": make_roberta(root / "roberta"),
        "t5": make_minicheck_t5(root / "t5"),
        "nli": make_nli(root / "nli", NLI_LABELS),
    }


def load(kind: str, path: Path, batch_size: int = 2) -> Any:
    found = find_judge(JudgeChoice(kind, kind, str(path)))
    return load_judge(found, batch_size=batch_size, device="cpu")


def tokens(judge: Any, pair: tuple[str, str]) -> list[list[str]]:
    return [
        judge.tokenizer.convert_ids_to_tokens(encoding["input_ids"])
        for encoding in judge.encode(pair)
    ]


def test_hhem_reads_the_published_prompt(checkpoints: dict[str, Path]) -> None:
    judge = load("hhem", checkpoints["hhem"])
    assert hhem.word("{a}", "b") == (
        "<pad> Determine if the hypothesis is true given the premise?\n\nPremise: {a}\n\n"
        "Hypothesis: b"
    )
    (found,) = tokens(judge, ("A cat.", "Two cats."))
    expected = (
        "▁Determine▁if▁the▁hypothesis▁is▁true▁given▁the▁premise?▁Premise:▁A▁cat.▁Hypothesis:▁Two"
        "▁cats."
    )
    assert found == ["<pad>", *expected, "</s>"]
    (encoding,) = judge.encode(("A cat.", "Two cats."))
    assert encoding["attention_mask"] == [1] * len(found)  # the <pad> is read, not padding


def test_hhem_asks_nothing_at_the_terminal(
    checkpoints: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    load("hhem", checkpoints["hhem"])
    assert "custom code" not in "".join(capfd.readouterr())


def test_hhem_scores_like_its_architecture_read_at_the_first_token(
    checkpoints: dict[str, Path],
) -> None:
    path = checkpoints["hhem"]
    judge = load("hhem", path)
    weights = load_file(path / "model.safetensors")
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=256, feed_forward_proj="gated-gelu", num_labels=2, **sizes)
    direct = T5ForTokenClassification(config).eval()
    weights = {name.removeprefix("t5."): tensor for name, tensor in weights.items()}
    weights["transformer.encoder.embed_tokens.weight"] = weights["transformer.shared.weight"]
    direct.load_state_dict(weights)
    expected = []
    for premise, hypothesis in PAIRS:
        text = (
            "<pad> Determine if the hypothesis is true given the premise?\n\n"
            f"Premise: {premise}\n\nHypothesis: {hypothesis}"
        )
        with torch.inference_mode():
            logits = direct(**judge.tokenizer(text, return_tensors="pt")).logits
        expected.append(float(logits[0, 0].softmax(-1)[1]))
    assert judge.score(PAIRS) == pytest.approx(expected, rel=1e-4)
    swapped = judge.score([(hypothesis, premise) for premise, hypothesis in PAIRS])
    assert np.abs(np.array(swapped) - expected).max() > 1e-3
    assert judge.threshold == 0.5
    assert judge.num_truncated == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"x{n}": t for n, t in w.items()}, "expected all behind 't5.'"),
        (lambda w: {n: t for n, t in w.items() if "final_layer" not in n}, "missing weights"),
        (lambda w: {**w, "t5.more": torch.ones(1)}, r"unexpected \['more'\]"),
        (lambda w: {n: t for n, t in w.items() if "wi_0" not in n}, "has no weight '.*wi_0"),
        (lambda w: {**w, "t5.classifier.weight": torch.ones(3, 16)}, "3 labels, expected 2"),
        (lambda w: {**w, "t5.classifier.weight": torch.ones(2, 8)}, "size mismatch"),
    ],
)
def test_other_weights_are_not_taken_for_hhem(
    checkpoints: dict[str, Path], tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "x"
    shutil.copytree(checkpoints["hhem"], path)
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load("hhem", path)


def test_hhem_takes_the_tokenizer_of_its_foundation(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "x"
    shutil.copytree(checkpoints["hhem"], path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"tokenizer of google/flan-t5-base.*loaded from google/flan"
    ):
        load("hhem", path)
    config = json.loads((path / "config.json").read_text())
    foundation = str(checkpoints["t5"])
    (path / "config.json").write_text(json.dumps({**config, "foundation": foundation}))
    whole = load("hhem", checkpoints["hhem"]).score(PAIRS)
    assert load("hhem", path).score(PAIRS) == whole
    header = b'{"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 0]}}'
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="do not load"):
        load("hhem", path)


def test_factcg_reads_the_published_wording(checkpoints: dict[str, Path]) -> None:
    judge = load("factcg", checkpoints["deberta"])
    assert factcg.word("doc", "claim") == (
        'doc\n\nChoose your answer: based on the paragraph above can we conclude that "claim"?\n\n'
        "OPTIONS:\n- Yes\n- No\nI think the answer is "
    )
    (found,) = tokens(judge, ("A cat. It sat.", "B."))
    text = (
        "▁A▁cat.▁It▁sat.▁Choose▁your▁answer:▁based▁on▁the▁paragraph▁above▁can▁we▁conclude▁that"
        '▁"B."?▁OPTIONS:▁-▁Yes▁-▁No▁I▁think▁the▁answer▁is'
    )
    assert [token for token in found if token not in ("▁", "[UNK]")] == [
        "[CLS]",
        *text.replace("▁", ""),
        "[SEP]",
    ]
    direct = AutoModelForSequenceClassification.from_pretrained(checkpoints["deberta"]).eval()
    whole = factcg.word("A cat.\nIt sat.", "B.")  # a sentence a line
    with torch.inference_mode():
        logits = direct(**judge.tokenizer(whole, return_tensors="pt")).logits
    assert judge.score([("A cat. It sat.", "B.")]) == pytest.approx(
        [float(logits[0].softmax(-1)[1])], rel=1e-5
    )


def test_factcg_chunks_hold_550_words() -> None:
    sentence = "word " * 199 + "end."  # 201 Treebank words: the stop is one
    assert factcg.chunk(" ".join([sentence] * 5)) == [
        "\n".join([sentence] * 2),
        "\n".join([sentence] * 2),
        sentence,
    ]
    long = "word " * 600 + "end."
    assert factcg.chunk(f"{long} Short one.") == [long, "Short one."]  # no empty first chunk


def test_a_pair_is_as_supported_as_its_best_chunk(checkpoints: dict[str, Path]) -> None:
    judge = load("minicheck", checkpoints["t5"])
    sentence = "cat " * 299 + "end."
    parts = [sentence, sentence.replace("cat", "dog"), sentence.replace("cat", "fox")]
    alone = [judge.score([(part, "A fox.")])[0] for part in parts]
    assert judge.score([(" ".join(parts), "A fox.")]) == pytest.approx([max(alone)], rel=1e-4)
    assert len(set(alone)) == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t5", "▁predict:▁A▁cat.▁It▁sat.</s>▁B▁sat.</s>"),
        ("roberta", "<s>AĠcat.ĠItĠsat.</s>BĠsat.</s>"),
    ],
)
def test_minicheck_reads_chunk_eos_claim(
    checkpoints: dict[str, Path], name: str, text: str
) -> None:
    judge = load("minicheck", checkpoints[name])
    (found,) = tokens(judge, ("A cat. It sat.", "B sat."))
    joined = "".join(found)
    assert joined == text
    assert found.count("</s>") == 2


def test_minicheck_answers_as_published(checkpoints: dict[str, Path]) -> None:
    judge = load("minicheck", checkpoints["t5"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["t5"])
    direct = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["t5"]).eval()
    batch = tokenizer("predict: A cat. It sat.</s>B sat.", return_tensors="pt")
    with torch.inference_mode():
        logits = direct(**batch, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    expected = float(logits[0, 0, [3, 209]].softmax(-1)[1])
    assert judge.score([("A cat. It sat.", "B sat.")]) == pytest.approx([expected], rel=1e-5)
    for name, limits in (("deberta", (2048, 400)), ("roberta", (512, 400)), ("t5", (2048, 500))):
        loaded = load("minicheck", checkpoints[name])
        kind = json.loads((checkpoints[name] / "config.json").read_text())["model_type"]
        assert (loaded.max_tokens, minicheck.LIMITS[kind][1]) == limits
        assert loaded.threshold == 0.5
    with pytest.raises(ModelError, match="MiniCheck has no model_type 'bert'"):
        load("minicheck", checkpoints["nli"])


def test_minicheck_keeps_line_breaks_and_splits_at_sentences() -> None:
    text = "One two. Three.\nFour five six.\n\nSeven."
    assert chunk_lines(text, lambda s: len(s.split()), 100) == [
        "One two. Three.\nFour five six.\n\n Seven."  # two breaks keep a space, as published
    ]
    assert chunk_lines(text, lambda s: len(s.split()), 3) == [
        "One two. Three.",
        "Four five six.",
        "Seven.",
    ]
    assert chunk_lines("", lambda s: 1, 3) == []
    assert group_sentences(["aaaa", "b", "c"], len, 2, " ") == ["aaaa", "b c"]


def test_a_long_premise_is_cut_and_counted_never_the_hypothesis(
    checkpoints: dict[str, Path],
) -> None:
    judge = load("minicheck", checkpoints["roberta"])
    premise, claim = "x" * 700, "y" * 200
    (encoding,) = judge.encode((premise, claim))
    found = judge.tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    assert found == ["<s>", *"x" * 309, "</s>", *claim, "</s>"]  # 512 in all
    assert judge.num_truncated == 1
    judge.score([(premise, claim), ("short", claim)])
    assert judge.num_truncated == 2
    assert len(judge.encode(("", "y" * 508))[0]["input_ids"]) == 511
    with pytest.raises(DataError, match="hypothesis of 513 tokens.* reads 512 .*never cut"):
        judge.encode((premise, "y" * 510))


def test_batches_do_not_change_scores(checkpoints: dict[str, Path]) -> None:
    for kind, name in (
        ("hhem", "hhem"),
        ("factcg", "deberta"),
        ("minicheck", "roberta"),
        ("minicheck", "t5"),
        ("summac", "nli"),
    ):
        one, many = (load(kind, checkpoints[name], size).score(PAIRS) for size in (1, 16))
        assert one == pytest.approx(many, abs=1e-5), kind
        assert load(kind, checkpoints[name]).score(PAIRS[::-1]) == pytest.approx(many[::-1])
        assert all(0 <= score <= 1 for score in one)
        assert len({round(score, 4) for score in one}) > 1, kind


def test_summac_takes_the_best_source_sentence_for_each_of_the_summary() -> None:
    entailment = np.array([[0.9, 0.2], [0.1, 0.3]])
    contradiction = np.array([[0.0, 0.5], [0.2, 0.1]])
    assert summac_score(entailment, 0 * contradiction) == pytest.approx(0.6)
    assert summac_score(entailment, contradiction) == pytest.approx(0.25)
    assert summac_score(np.zeros((0, 0)), np.zeros((0, 0))) == 0.0


def test_summac_reads_pairs_of_sentences(checkpoints: dict[str, Path]) -> None:
    judge = load("summac", checkpoints["nli"])
    encoding, cut = judge.encode("A cat.", "Two.")
    found = judge.tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    assert found == "[CLS] A c ##a ##t . [SEP] T ##w ##o . [SEP]".split()
    assert encoding["token_type_ids"] == [0] * 7 + [1] * 5
    assert not cut
    document = "The cat sat here. Too short. It was raining outside."
    direct = AutoModelForSequenceClassification.from_pretrained(checkpoints["nli"]).eval()
    claims = ["A cat sat on it.", "Rain fell down."]

    def infer(premise: str, hypothesis: str) -> list[float]:
        batch = judge.tokenizer(premise, hypothesis, return_tensors="pt")
        with torch.inference_mode():
            return direct(**batch).logits[0].softmax(-1).tolist()

    sources = ["The cat sat here.", "Too short.", "It was raining outside."]
    assert len(sources[1]) == 10  # left out, as published
    grid = np.array([[infer(s, c) for c in claims] for s in (sources[0], sources[2])])
    expected = (grid[..., 1].max(0) - grid[..., 0].max(0)).mean()
    assert judge.score([(document, " ".join(claims))]) == pytest.approx(
        [(expected + 1) / 2], abs=1e-6
    )
    assert judge.score([(document, "Tiny.")]) == [0.5]
    assert judge.num_truncated == 0
    many = " ".join(f"Sentence number {n} is here." for n in range(101))
    judge.score([(many, claims[0])])
    assert judge.num_truncated == 1


@pytest.mark.parametrize(
    "labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment", "not_entailment")]
)
def test_unclear_nli_labels_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    make_nli(tmp_path / "x", labels)
    with pytest.raises(ModelError, match=f"labels .*{labels[0].lower()}.*expected three"):
        load("summac", tmp_path / "x")


def test_nli_labels_are_read_not_guessed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["nli"], tmp_path / "x")
    path = tmp_path / "x" / "config.json"
    config = json.loads(path.read_text())
    labels = {"0": "ENTAILMENT", "1": "CONTRADICTION", "2": "NEUTRAL"}
    path.write_text(json.dumps({**config, "id2label": labels}))
    places = (tmp_path / "x", checkpoints["nli"])
    one, other = (load("summac", place).score(PAIRS) for place in places)
    assert one[1] != pytest.approx(other[1], abs=1e-4)


def test_checkpoints_that_are_no_judge_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has 3 labels, expected 2"):
        load("factcg", checkpoints["nli"])
    with pytest.raises(ModelError, match="no model at '/nowhere'"):
        load("factcg", Path("/nowhere"))
    pickled = tmp_path / "pickled"
    shutil.copytree(checkpoints["deberta"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        load("factcg", pickled)
    partial = tmp_path / "partial"
    shutil.copytree(checkpoints["deberta"], partial)
    weights = load_file(partial / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights \['classifier.weight'\]"):
        load("factcg", partial)
    (partial / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer files: all words are unknown"):
        load("factcg", partial)
    (partial / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load("minicheck", partial)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(checkpoints["deberta"])})
    )
    with pytest.raises(ModelError, match="is an adapter, expected a model"):
        load("factcg", adapter)


OWN = """
class WordOverlap:
    threshold = 0.8

    def score(self, pairs):
        return [self.share(*pair) for pair in pairs]

    def share(self, premise, hypothesis):
        known, used = set(premise.lower().split()), hypothesis.lower().split()
        return sum(word in known for word in used) / max(len(used), 1)


class NoThreshold:
    def score(self, pairs):
        return []
"""


def test_a_judge_of_ones_own(tmp_path: Path) -> None:
    from pipeline.evaluation.judges import protocol

    example = textwrap.indent(OWN.split("class NoThreshold")[0].strip(), "    ")
    documented = (protocol.__doc__ or "").replace("  # my_judge.py", "")
    assert example in documented
    path = tmp_path / "my_judge.py"
    path.write_text(OWN)
    judge = load("python", Path(f"{path}:WordOverlap"))
    assert judge.score([("The cat sat", "the dog sat")]) == pytest.approx([2 / 3])
    first = find_judge(JudgeChoice("a", "python", f"{path}:WordOverlap"))
    path.write_text(OWN.replace("0.8", "0.9"))
    assert find_judge(first.choice).identity != first.identity
    with pytest.raises(ModelError, match="has no class 'Other'"):
        load("python", Path(f"{path}:Other"))
    with pytest.raises(ModelError, match="NoThreshold of .* has no threshold"):
        load("python", Path(f"{path}:NoThreshold"))
    with pytest.raises(ModelError, match="no file '/none.py'"):
        load("python", Path("/none.py:X"))


class Says:
    threshold = 0.5

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def score(self, pairs: Any) -> Any:
        return self.scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((0.1,), r"gave \(1,\) scores for 2 pairs"),
        ((0.1, float("nan")), "gave nan for the hypothesis 'second'"),
        ((-0.1, 1.0), "gave -0.1 for the hypothesis 'first'"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(scores: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"judge 'mine' {message}"):
        checked_scores("mine", Says(*scores), [("p", "first"), ("p", "second")])
    assert checked_scores("mine", Says(0.0, 1.0), [("p", "a"), ("p", "b")]) == [0.0, 1.0]


def test_judge_flags() -> None:
    assert read_judge_flags(["hhem=a/b", "m2:minicheck=/x=y", "python=f.py:C"]) == [
        JudgeChoice("hhem", "hhem", "a/b"),
        JudgeChoice("m2", "minicheck", "/x=y"),
        JudgeChoice("python", "python", "f.py:C"),
    ]
    for value, message in (
        ("a/b", "'a/b': expected KIND=PLACE"),
        ("bert=x", "KIND one of hhem, factcg, minicheck, summac, python"),
        ("hhem=", "'hhem=': expected"),
        ("a b:hhem=x", "'a b' cannot name figures"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_judge_flags([value])
    with pytest.raises(ConfigError, match="the name 'hhem' is taken; write NAME:hhem=y"):
        read_judge_flags(["hhem=x", "hhem=y"])


def test_sentences() -> None:
    text = 'Mr. Smith came. He said "Go!" Then J. Doe left.\nA line\nmore. Done'
    assert split_sentences(text) == [
        "Mr. Smith came.",
        'He said "Go!"',
        "Then J. Doe left.",
        "A line\nmore.",
        "Done",
    ]
    assert split_lines("a\nb. c.\n\n") == ["a", "b.", "c."]
    assert split_sentences("  ") == split_lines("") == []
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
