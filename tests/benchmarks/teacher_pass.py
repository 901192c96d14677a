"""Every way to make a cache, beside the bare prefill of the same tokens by the same vLLM engine.

    python tests/benchmarks/teacher_pass.py --teacher MODEL [--data FILE ...] [--json]

Each --data is a mix of its own, the first --tokens of it. Without one, demo:docstrings is used
twice: as it is (long prompts, short responses), and with the response starting after the first
quarter of the tokens.
All paths run in this process, in alternation; each ratio is the median over the rounds of a
path's tokens/s (prompt and response) over that of the bare prefill in the same round. Every path
but the bare prefill is timed to the last published shard. The prefix cache is off, so that a
repetition computes as much as the first time. The first round warms up and does not count.
cpu_ratio_* are the same ratios of processor seconds of this process, which other programs on the
machine disturb less; on a GPU they say nothing. times_public_flat is the hook's rate over that of
public_flat, the fastest route that the public interface has.

    hook_response_only  response rows scored inside the worker: what precompute-logits does
    hook_all_rows       the same with every token but the first as response
    public_flat         prompt_logprobs=k, flat, not detokenized: the route for unknown versions
    public_dict         prompt_logprobs=k with vLLM's defaults: what one writes first
    transformers        the engine of the same name
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.tokenization import Example, TokenizedDataset, tokenize_dataset
from pipeline.generation.vllm_start import set_vllm_environment
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.teacher.engine import WORKER_HOOK, Engine, Scores
from pipeline.teacher.precompute import make_plan
from pipeline.teacher.precompute_config import PrecomputeConfig
from pipeline.teacher.row_spec import RowSpec
from pipeline.teacher.shard_pass import write_shards
from pipeline.teacher.transformers_engine import TransformersEngine
from pipeline.teacher.vllm_engine import VllmEngine
from pipeline.teacher.vllm_hook import HookRoute
from pipeline.teacher.vllm_public import PublicRoute
from pipeline.teacher.worker_extension import RowCollector
from storage_schema import Plan, claim_plan
from storage_schema.plan import fingerprint_examples

PATHS = ("hook_response_only", "hook_all_rows", "public_flat", "public_dict", "transformers")
Parts = dict[str, float]


class DictRoute(PublicRoute):
    """vLLM's default output: a dict of Python objects a row, alternatives detokenized."""

    def sampling(self, number: int, example: Example, again: bool) -> Any:
        """Return SamplingParams as one writes them first."""
        from vllm import SamplingParams

        return SamplingParams(prompt_logprobs=self._k, max_tokens=1, temperature=0)

    def collect(
        self, outputs: list[tuple[int, Example, Any]], is_idle: bool
    ) -> Iterator[tuple[int, Scores | None]]:
        """Sort every row's dict and cut it at k; the label may be the one too many."""
        for number, example, output in outputs:
            rows = output.prompt_logprobs[example.response_start :]
            labels = example.input_ids[example.response_start :].tolist()
            best = [sorted(r.items(), key=lambda item: item[1].rank)[: self._k] for r in rows]
            yield (
                number,
                Scores(
                    np.array([[token for token, _ in row] for row in best], np.int32),
                    np.array([[entry.logprob for _, entry in row] for row in best], np.float32),
                    np.array([r[i].logprob for r, i in zip(rows, labels, strict=True)], np.float32),
                ),
            )


@dataclasses.dataclass(frozen=True)
class Mix:
    """Examples with one division into prompt and response."""

    name: str
    dataset: TokenizedDataset

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens together."""
        return sum(len(example.input_ids) for example in self.dataset.examples)

    def starting_at(self, share: float) -> "Mix":
        """Return the same tokens with the response starting after this share of them."""
        examples = [
            Example(e.input_ids, max(1, int(len(e.input_ids) * share)))
            for e in self.dataset.examples
        ]
        fingerprint = fingerprint_examples(example.example_id for example in examples)
        dataset = dataclasses.replace(self.dataset, examples=examples, fingerprint=fingerprint)
        return Mix(self.name, dataset)


def load_mixes(arguments: argparse.Namespace, tokenizer: Any) -> list[Mix]:
    """Return the mixes, each cut to the tokens asked for."""
    mixes = []
    for data in arguments.data or ["demo:docstrings"]:
        dataset = tokenize_dataset(make_config(arguments, data), tokenizer)
        total = np.cumsum([len(example.input_ids) for example in dataset.examples])
        num = int(np.searchsorted(total, arguments.tokens)) + 1
        dataset = dataclasses.replace(dataset, examples=dataset.examples[:num])
        # Without the other examples it is another dataset.
        fingerprint = fingerprint_examples(e.example_id for e in dataset.examples)
        dataset = dataclasses.replace(dataset, fingerprint=fingerprint)
        mixes.append(Mix(Path(data).stem, dataset))
    if not arguments.data:
        mixes = [
            Mix("prompt-heavy", mixes[0].dataset),
            dataclasses.replace(mixes[0].starting_at(0.25), name="response-heavy"),
        ]
    return mixes


def make_config(arguments: argparse.Namespace, data: str) -> PrecomputeConfig:
    """Return the settings of precompute-logits for a mix."""
    return PrecomputeConfig(
        teacher=arguments.teacher,
        data=data,
        output="unused",
        k=arguments.k,
        max_prompt_tokens=1024,
        max_sequence_tokens=1536,
        max_examples=4000,
    )


@contextlib.contextmanager
def measured(parts: Parts) -> Iterator[None]:
    """Add up the seconds inside the stages of the hook route while the block runs."""
    places: list[tuple[Any, str, str]] = [
        (VllmEngine, "_submit", "submitting"),
        (VllmEngine, "_step", "engine steps, scoring included"),
        (RowCollector, "score", "scoring rows, head included"),
        (RowCollector, "_call_head", "head"),
        (HookRoute, "_fetch", "fetching rows"),
    ]
    originals = [(kind, name, getattr(kind, name)) for kind, name, _ in places]

    def timed(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[label] = parts.get(label, 0.0) + time.perf_counter() - start

        return call

    for (kind, name, label), (*_, function) in zip(places, originals, strict=True):
        setattr(kind, name, timed(function, label))
    try:
        yield
    finally:
        for kind, name, function in originals:
            setattr(kind, name, function)


def prefill(engine: VllmEngine, examples: list[Example]) -> None:
    """Submit everything, keep nothing: the floor."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    for example in examples:
        prompt = {"prompt_token_ids": example.input_ids.tolist()}
        engine._llm.enqueue([prompt], sampling, use_tqdm=False)
        engine._num_submitted += 1
    left = len(examples)
    while left:
        left -= sum(output.finished for output in engine._llm.llm_engine.step())


def write(engine: Engine, name: str, plan: Plan, examples: list[Example]) -> None:
    """Score everything and publish the shards of a new cache."""
    plan = dataclasses.replace(plan, engine={**plan.engine, "name": name})
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        claim_plan(cache, plan)
        shards = list(range(plan.num_shards))
        write_shards(engine, cache, plan, examples, shards, lambda _: None, lambda _: None)


class Bench:
    """The engines, started once, and the timing of one path over one mix."""

    def __init__(self, arguments: argparse.Namespace, mixes: list[Mix], tokenizer: Any) -> None:
        """Start vLLM and load the model for transformers."""
        self._arguments, self._tokenizer = arguments, tokenizer
        self._checkpoint = find_checkpoint(arguments.teacher)
        examples = [example for mix in mixes for example in mix.dataset.examples]
        plan = self._plan(mixes[0])
        spec, dtype = RowSpec(arguments.k, plan.vocabulary_size), plan.teacher["dtype"]
        self.vllm = VllmEngine(
            self._checkpoint,
            spec=spec,
            route=WORKER_HOOK,
            dtype=dtype,
            longest=max(len(example.input_ids) for example in examples),
            merged_path=Path(tempfile.gettempdir()) / "unused",
            tensor_parallel_size=1,
            gpu_memory_utilization=0.85,
            trust_remote_code=False,
            vllm_options={"max_logprobs": arguments.k, "enable_prefix_caching": False},
        )
        self._hook, self._flat, self._dict = self.vllm.route, PublicRoute(spec), DictRoute(spec)
        self._transformers = TransformersEngine(
            self._checkpoint, spec=spec, dtype=dtype, batch_tokens=4096, trust_remote_code=False
        )

    def _plan(self, mix: Mix) -> Plan:
        config = make_config(self._arguments, mix.name)
        return make_plan(
            config, self._checkpoint, self._tokenizer, mix.dataset, "vllm", WORKER_HOOK
        )

    def seconds(self, path: str, mix: Mix) -> tuple[float, float, Parts]:
        """Return wall and processor seconds of a path over a mix, and parts of the hook's time."""
        if path == "hook_all_rows":
            mix = mix.starting_at(0.0)
        examples, plan = mix.dataset.examples, self._plan(mix)
        parts: Parts = {}
        start, start_cpu = time.perf_counter(), time.process_time()
        if path == "bare":
            prefill(self.vllm, examples)
        elif path == "transformers":
            write(self._transformers, "transformers", plan, examples)
        else:
            routes = {"public_flat": self._flat, "public_dict": self._dict}
            self.vllm.route = routes.get(path, self._hook)
            with measured(parts):
                write(self.vllm, "vllm", plan, examples)
        return time.perf_counter() - start, time.process_time() - start_cpu, parts


def measure(bench: Bench, mix: Mix, paths: list[str], rounds: int) -> dict[str, Any]:
    """Return the keys of one mix: tokens/s of the bare prefill, a ratio for each path."""
    rates: dict[str, list[float]] = {path: [] for path in ("bare", *paths)}
    cpu_rates: dict[str, list[float]] = {path: [] for path in rates}
    parts: dict[str, list[Parts]] = {path: [] for path in paths}
    for number in range(rounds + 1):
        for path in rates:
            seconds, cpu_seconds, found = bench.seconds(path, mix)
            if number:
                rates[path].append(mix.num_tokens / seconds)
                cpu_rates[path].append(mix.num_tokens / cpu_seconds)
                if found:
                    parts[path].append(found)
            print(f"{mix.name}, round {number}, {path}: {seconds:.1f} s", file=sys.stderr)
    result: dict[str, Any] = {
        "num_examples": len(mix.dataset.examples),
        "num_tokens": mix.num_tokens,
        "num_response_tokens": sum(e.num_response_tokens for e in mix.dataset.examples),
        "bare_prefill_tokens_per_s": statistics.median(rates["bare"]),
    }
    for path in paths:
        ratios = [a / b for a, b in zip(rates[path], rates["bare"], strict=True)]
        result[f"ratio_{path}"] = statistics.median(ratios)
        result[f"ratios_{path}"] = ratios
        cpu_ratios = [a / b for a, b in zip(cpu_rates[path], cpu_rates["bare"], strict=True)]
        result[f"cpu_ratio_{path}"] = statistics.median(cpu_ratios)
    if {"hook_response_only", "public_flat"} <= set(paths):
        pairs = zip(rates["hook_response_only"], rates["public_flat"], strict=True)
        result["times_public_flat"] = statistics.median(hook / flat for hook, flat in pairs)
    for path in ("hook_response_only", "hook_all_rows"):
        for label in parts.get(path, [{}])[0] if parts.get(path) else ():
            seconds = statistics.median(p[label] for p in parts[path])
            result.setdefault(f"seconds_{path}", {})[label] = seconds
    return result


def print_table(mixes: dict[str, dict[str, Any]], paths: list[str], file: Any) -> None:
    """Print a line a path, a column a mix."""
    print("\n" + f"{'over the bare prefill':40s}" + "".join(f"{n:>20s}" for n in mixes), file=file)
    for label in ("num_tokens", "num_response_tokens", "bare_prefill_tokens_per_s"):
        values = "".join(f"{mix[label]:>20,.0f}" for mix in mixes.values())
        print(f"{label:40s}{values}", file=file)
    for path in paths:
        values = [mix[f"ratios_{path}"] for mix in mixes.values()]
        cells = [f"{statistics.median(v):.2f} ({min(v):.2f}-{max(v):.2f})" for v in values]
        print(f"{'ratio_' + path:40s}" + "".join(f"{c:>20s}" for c in cells), file=file)
        cells = [f"{mix[f'cpu_ratio_{path}']:.2f}" for mix in mixes.values()]
        print(f"{'  cpu_ratio_' + path:40s}" + "".join(f"{c:>20s}" for c in cells), file=file)
    if all("times_public_flat" in mix for mix in mixes.values()):
        cells = "".join(f"{mix['times_public_flat']:>20.2f}" for mix in mixes.values())
        print(f"{'times_public_flat':40s}{cells}", file=file)
    for path in ("hook_response_only", "hook_all_rows"):
        for label in next(iter(mixes.values())).get(f"seconds_{path}", {}):
            cells = [f"{mix[f'seconds_{path}'][label]:.2f} s" for mix in mixes.values()]
            name = f"  {path.removeprefix('hook_')}: {label}"
            print(f"{name:40s}" + "".join(f"{c:>20s}" for c in cells), file=file)


def main() -> None:
    """Run the benchmark and print its table, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="checkpoint directory")
    parser.add_argument("--data", action="append", help="a mix; may be repeated")
    parser.add_argument("--tokens", type=int, default=6000, help="of each mix, about")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--path", action="append", choices=PATHS, help="only these; repeated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    set_vllm_environment(on_cpu=True)
    tokenizer = load_tokenizer(find_checkpoint(arguments.teacher))
    mixes = load_mixes(arguments, tokenizer)
    paths = arguments.path or list(PATHS)
    with contextlib.redirect_stdout(sys.stderr):
        bench = Bench(arguments, mixes, tokenizer)
        results = {mix.name: measure(bench, mix, paths, arguments.rounds) for mix in mixes}
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "k": arguments.k, "mixes": results}))
    else:
        print_table(results, paths, sys.stdout)


if __name__ == "__main__":
    main()
