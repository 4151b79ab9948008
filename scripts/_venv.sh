# Sourced by the scripts beside it; defines `setup_venv`. Bash, under `set -euo pipefail`.
#
#   setup_venv dev,music    makes .venv in the repository root where it is absent, and installs tfseq into it, editable,
#                           with these extras, where pyproject.toml has changed since they were last installed.
#
# Only .venv is used, by the path of its interpreter; a virtual environment that is active stays as it is. PYTHON names
# the interpreter that makes .venv, for example PYTHON=python3.12. All messages go to standard error.

venv_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv_bin=$venv_root/.venv/bin
venv_stamp=$venv_root/.venv/tfseq-installed # first line: what was installed; the others: extras, one a line

say() { printf '%s\n' "$*" >&2; }

# Whether `$1` runs and is a Python that tfseq supports.
is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        if is_python "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        if [[ $candidate == "${PYTHON:-}" ]]; then break; fi
    done
    say "tfseq needs Python 3.11 or later; ${PYTHON:-python3} is not. Install it, or name it: PYTHON=/path/to/python3.12 $0"
    return 1
}

setup_venv() {
    local extras=$1 python wanted installed='' missing='' extra
    if [[ ! -e $venv_root/.venv ]]; then
        python=$(find_python) || return 1
        say "Making .venv with $("$python" --version 2>&1)"
        if ! "$python" -m venv "$venv_root/.venv" >&2; then
            rm -rf "$venv_root/.venv" # made just now, and unusable
            say "$python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"
            return 1
        fi
    elif ! is_python "$venv_bin/python"; then
        say "$venv_root/.venv has no working Python 3.11 or later. Delete that folder; it is made again."
        return 1
    fi

    # The path counts: an editable install and its commands point at the folder in which they were made.
    wanted=$(cd "$venv_root" && { cksum pyproject.toml; pwd; } | cksum)
    if [[ -f $venv_stamp && $(head -n 1 "$venv_stamp") == "$wanted" ]]; then
        installed=$(tail -n +2 "$venv_stamp" | tr '\n' ,)
    fi
    for extra in ${extras//,/ }; do
        if [[ ,$installed != *,$extra,* ]]; then missing=1; fi
    done
    if [[ -z $missing ]]; then return; fi

    # Extras installed before are brought up to date too: they share one environment.
    if [[ -f $venv_stamp ]]; then extras=$(printf '%s\n' "${extras//,/$'\n'}" "$(tail -n +2 "$venv_stamp")" | sort -u | xargs | tr ' ' ,); fi
    say "Installing tfseq[$extras] into .venv (a few minutes the first time: TensorFlow is large)"
    if ! "$venv_bin/python" -m pip --version >/dev/null 2>&1; then "$venv_bin/python" -m ensurepip >&2; fi
    (cd "$venv_root" && "$venv_bin/python" -m pip install --no-input --disable-pip-version-check --editable ".[$extras]" </dev/null) |
        { grep -v '^Requirement already satisfied' || true; } >&2 # pip's own exit code counts: pipefail
    printf '%s\n' "$wanted" "${extras//,/$'\n'}" >"$venv_stamp"
}
