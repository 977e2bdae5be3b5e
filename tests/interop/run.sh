#!/usr/bin/env bash
# Proves RecordIO against real MXNet 1.9.1, installed in an environment of its own when it is missing.
# Needs python3.11 (numpy 1.23.5 has no wheels for newer ones). PYTHON names the project's interpreter,
# MXNET_VENV the folder of MXNet's environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=$(realpath --canonicalize-missing "${MXNET_VENV:-.venv-mxnet}")
python=${PYTHON:-.venv/bin/python}

if ! "$environment/bin/python" -c "import mxnet" 2>/dev/null; then
    echo "creating $environment with mxnet 1.9.1"
    rm -rf "$environment"
    "${PYTHON311:-python3.11}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet mxnet==1.9.1 numpy==1.23.5
fi
SARFACE_MXNET="$environment/bin/python" exec "$python" -m pytest tests/interop -rs "$@"
