"""Claim a place for a cache: write its plan there, or find the same one."""

import json

from storage_schema.documents import differences, write_json
from storage_schema.errors import PlanMismatchError
from storage_schema.layout import PLAN_FILE
from storage_schema.location import Location, locate
from storage_schema.plan import Plan, read_plan, refuse_lost_plan
from storage_schema.publish import writing


def check_place(cache: Location) -> None:
    """Check that a cache may be written, or continued, at a place.

    Raises:
        PlanMismatchError: it is a file, or a directory that holds something else.
        CacheDamagedError: it holds a cache without its plan.
        CacheError: the object store refuses.
    """
    if cache.exists() and not cache.is_dir():
        raise PlanMismatchError(f"{cache} is a file, a cache is a directory; choose another output")
    # Listed before looking for the plan: another process may publish it in between.
    names = [path.name for path in cache.iterdir()] if cache.is_dir() else []
    strangers = sorted(name for name in names if ".tmp-" not in name)
    if not strangers or (cache / PLAN_FILE).exists():
        return
    refuse_lost_plan(cache)
    raise PlanMismatchError(
        f"{cache} is not empty ({', '.join(strangers[:5])}) and holds no {PLAN_FILE}: it is no "
        "logit cache; choose another output"
    )


def claim_plan(cache: str | Location, plan: Plan) -> None:
    """Write the plan into a new cache directory, or check that the same one is there.

    Several processes may claim one directory at once. What is on disk is compared in every
    case, also after writing, so that of different plans all but one are refused.

    Raises:
        PlanMismatchError: another plan is there, every differing field is named; or the path
            holds something that is no cache.
        CacheDamagedError: the path holds a cache without its plan.
        CacheError: the object store refuses.
    """
    cache = locate(cache)
    check_place(cache)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    if not (cache / PLAN_FILE).exists():
        write_json(cache / PLAN_FILE, plan.to_json(), create=True)
    lines = differences(read_plan(cache).to_json(), json.loads(json.dumps(plan.to_json())))
    if lines:
        raise PlanMismatchError(
            f"the cache at {cache} was planned differently:\n  "
            + "\n  ".join(lines)
            + "\nask for what is there, choose another output, or delete that folder to start over"
        )
