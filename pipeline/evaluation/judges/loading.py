"""Finds a judge before long work starts, says which bytes it is, and loads it when it is due."""

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, MissingPackageError, ModelError
from pipeline.evaluation.judges.protocol import Judge, JudgeChoice, Pair
from pipeline.models.checkpoint import find_checkpoint, fingerprint_checkpoint


@dataclass(frozen=True, slots=True)
class FoundJudge:
    """A judge that was found, not loaded: its choice, where it lies, and its content's SHA-256.

    Of a class of the user's the content is its file, and its name belongs to it.
    """

    choice: JudgeChoice
    path: Path
    fingerprint: str

    @property
    def identity(self) -> dict[str, str]:
        """What determines its scores; stored with them and compared by a rerun."""
        place = self.path.name if self.path.exists() else self.choice.place
        if self.choice.kind == "python":
            place += ":" + self.choice.place.rpartition(":")[2]
        return {"kind": self.choice.kind, "place": place, "fingerprint": self.fingerprint}


def find_judge(choice: JudgeChoice) -> FoundJudge:
    """Return the judge of a --judge value; a hub name is downloaded (safetensors only).

    Raises:
        ModelError: nothing is there, its weights are not safetensors, or the file of a class of the
            user's has no such class.
        MissingPackageError: FactCG's words need nltk, which is not installed.
    """
    if choice.kind == "python":
        path = Path(choice.place.rpartition(":")[0]).expanduser()
        if not path.is_file():
            raise ModelError(
                f"--judge {choice.kind}={choice.place}: no file {str(path)!r}; expected "
                "FILE.py:CLASS"
            )
        name = choice.place.rpartition(":")[2]
        _find_class(path, name)
        content = path.read_bytes() + b"\0" + name.encode()
        return FoundJudge(choice, path, hashlib.sha256(content).hexdigest())
    if choice.kind == "factcg" and importlib.util.find_spec("nltk") is None:
        raise MissingPackageError('FactCG needs the package nltk: pip install "smoothkd[eval]"')
    checkpoint = find_checkpoint(choice.place)
    if checkpoint.adapter_path is not None:
        raise ModelError(f"--judge {choice.kind}={choice.place} is an adapter, expected a model")
    return FoundJudge(choice, checkpoint.model_path, fingerprint_checkpoint(checkpoint))


def load_judge(found: FoundJudge, *, batch_size: int, device: str) -> Judge:
    """Return the judge, its weights on `device`.

    Args:
        found: what to load.
        batch_size: most inputs in one forward pass.
        device: "cpu" or "cuda".

    Raises:
        ModelError: it does not load, or is another kind of checkpoint.
    """
    if found.choice.kind == "python":
        return _load_class(found.path, found.choice.place.rpartition(":")[2])
    module: Any = importlib.import_module(f"pipeline.evaluation.judges.{found.choice.kind}")
    judge: Judge = module.load(found.path, batch_size=batch_size, device=device)
    return judge


def _find_class(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is no Python file: expected FILE.py:CLASS")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(f"{path} has no class {name!r}: expected FILE.py:CLASS")
    return found


def _load_class(path: Path, name: str) -> Judge:
    judge = _find_class(path, name)()
    for part in ("threshold", "score"):
        if not hasattr(judge, part):
            raise ModelError(f"{name} of {path} has no {part}: a judge has threshold and score()")
    made: Judge = judge
    return made


def checked_scores(name: str, judge: Judge, pairs: list[Pair]) -> list[float]:
    """Return the judge's scores of the pairs as floats.

    Raises:
        DataError: not one score a pair, or one that is no number in [0, 1].
    """
    scores = np.asarray(judge.score(pairs), dtype=np.float64)
    if scores.shape != (len(pairs),):
        raise DataError(f"judge {name!r} gave {scores.shape} scores for {len(pairs)} pairs")
    bad = ~((scores >= 0) & (scores <= 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"judge {name!r} gave {scores[row]} for the hypothesis {pairs[row][1][:40]!r}: "
            "expected a number in [0, 1]"
        )
    return [float(score) for score in scores]
