"""What a whole recipe needs: every stage's rows, steps, disk, memory and time, estimated.

Nothing is downloaded: rows are counted where data and tokenizer are on this disk, and otherwise
taken from the recipe's `run.expected`; shapes come from config.json on this disk, or from the
published ones. Only a model that is neither is looked for on the hub, without its weights.
"""

from pathlib import Path
from typing import Any

from pipeline.cli.config_file import read_section
from pipeline.cli.recipe import RUN_SETTINGS, build_stages
from pipeline.cli.sweep_estimate import estimate_sweep
from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError
from pipeline.estimates import stages
from pipeline.estimates.published import PUBLISHED, published_shape
from pipeline.estimates.shapes import ModelShape, read_shape
from pipeline.estimates.sizes import DataSize, count_tokens, expect_tokens
from pipeline.estimates.text import describe
from pipeline.models.checkpoint import find_checkpoint, read_model_config
from pipeline.teacher.dry_run import estimate_finetuning, estimate_pass

# The model that run.demo_model makes.
DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Prompts that vLLM answers at once; it takes as many as its memory holds, so an assumption.
VLLM_BATCH = 64


def dry_run_recipe(recipe: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Print the estimate of every stage and return them by stage.

    Args:
        recipe: of `pipeline.cli.recipe.read_recipe`.

    Raises:
        ConfigError: rows of a dataset are neither countable here nor stated.
        ModelError: a model's shape is not to be had.
    """
    estimates = estimate_recipe(recipe)
    print(f"{recipe['config']}, a dry run: nothing is loaded or written")
    print("every number is an estimate; docs/recipes.md has the formulas and their errors\n")
    for name, estimate in estimates.items():
        print(describe(name, estimate))
    return estimates


def estimate_recipe(recipe: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the estimate of every stage of a recipe, in their order."""
    path, output = Path(recipe["config"]), recipe["output"]
    models = {name: recipe[name] for name in ("student", "teacher")}
    configs = build_stages(
        path,
        output,
        models,
        recipe["baselines"].split(),
        bool(recipe["finetune"]),
        bool(recipe["generate"]),
    )
    recipe_facts = _Facts(recipe, read_section(path, "run", RUN_SETTINGS).get("expected") or {})
    teacher = models["teacher"]
    if "finetune-teacher" in configs:
        teacher = configs["finetune-teacher"].model
    shape = recipe_facts.shape(teacher)
    found: dict[str, dict[str, Any]] = {}
    if "finetune-teacher" in configs:
        config = configs["finetune-teacher"]
        found["finetune-teacher"] = estimate_finetuning(
            config, shape, recipe_facts.size(config, teacher)
        )
    if "generate-responses" in configs:
        config = configs["generate-responses"]
        found["generate-responses"] = stages.generation(
            shape,
            recipe_facts.size(config, teacher),
            dtype=config.dtype,
            max_new_tokens=config.max_new_tokens,
            batch_size=VLLM_BATCH,
            tensor_parallel=config.tensor_parallel_size,
            paged=True,
        )
    config = configs["precompute-logits"]
    size = recipe_facts.size(config, teacher)
    found["precompute-logits"] = estimate_pass(config, shape, size)
    baselines = {"student": recipe_facts.shape(models["student"]), "teacher": shape}
    names = recipe["baselines"].split()
    return found | estimate_sweep(
        configs["sweep-alpha"],
        size,
        baselines["student"],
        [baselines[name] for name in names],
        lambda data: recipe_facts.size(data, models["student"]),
    )


class _Facts:
    """What is known of a recipe's models and data, each looked up once."""

    def __init__(self, recipe: dict[str, str], expected: Any) -> None:
        if not isinstance(expected, dict):
            raise ConfigError(
                f"{recipe['config']}: run.expected is {expected!r}, expected datasets and for each "
                "[rows, mean tokens of a prompt, mean tokens of a response]"
            )
        self.recipe = recipe
        self.expected = expected
        self._sizes: dict[Any, DataSize] = {}

    def shape(self, name: str) -> ModelShape:
        """Return the shape of a model on this disk, of a published one, or of one on the hub."""
        if Path(name).is_dir():
            return read_shape(read_model_config(find_checkpoint(name)))
        if name == self.recipe["demo_model"]:
            return published_shape(DEMO_MODEL)
        if name in PUBLISHED:
            return published_shape(name)
        return read_shape(read_model_config(find_checkpoint(name, weights=False)))

    def size(self, settings: DataSettings, model: str) -> DataSize:
        """Return the dataset's size, counted with the model's tokenizer where both are here."""
        fields = DataSettings.__dataclass_fields__
        key = (model, *(getattr(settings, name) for name in fields))
        if key not in self._sizes:
            self._sizes[key] = self._size(settings, model)
        return self._sizes[key]

    def _size(self, settings: DataSettings, model: str) -> DataSize:
        here = Path(settings.data).is_file() or settings.data.startswith("demo:")
        if here and Path(model).is_dir():
            from pipeline.data.tokenization import tokenize_dataset
            from pipeline.models.loading import load_tokenizer

            return count_tokens(tokenize_dataset(settings, load_tokenizer(find_checkpoint(model))))
        stated = self.expected.get(settings.data)
        if not isinstance(stated, list):
            raise ConfigError(
                f"{self.recipe['config']}: the rows of {settings.data} cannot be counted here (it "
                f"or {model} is not on this disk): state them in run.expected as "
                f"{settings.data}: [rows, mean tokens of a prompt, mean tokens of a response]"
            )
        return expect_tokens(stated, settings)
