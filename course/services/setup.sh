#!/usr/bin/env bash
# Gradescope runs this once, when it builds the container.
set -euo pipefail
root=${AUTOGRADER:-/autograder}
if python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv "$root/venv"
else  # the container's Python is too old: uv brings a newer one
    apt-get -qq update && apt-get -qq -y install python3-pip
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet uv
    UV_PYTHON_INSTALL_DIR=$root/python python3 -m uv venv --seed --python 3.12 "$root/venv"
fi
"$root/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu \
    -r "$root/source/requirements.txt"
