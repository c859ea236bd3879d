#!/bin/sh
# Sets up an environment for one kind of device: ci/install.sh DEVICE DIRECTORY
#
# cpu, cuda: everything to the version, as `make` does. rocm: torch and triton are the machine's own, since those of the
# package index are built for CUDA.
set -eu

device=${1:?usage: ci/install.sh cpu|cuda|rocm DIRECTORY}
directory=${2:?usage: ci/install.sh cpu|cuda|rocm DIRECTORY}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

case $device in
    cpu | cuda)
        "$python" -m venv "$directory"
        # torch by its exact version before anything else, so that nothing drags in another build of it.
        "$directory/bin/pip" install --quiet --constraint "$root/ci/constraints.txt" torch setuptools wheel
        "$directory/bin/pip" install --quiet --constraint "$root/ci/constraints.txt" --no-build-isolation "$root[aiter]"
        ;;
    rocm)
        "$python" -m venv --system-site-packages "$directory"
        "$directory/bin/python" -c 'import sys, torch; sys.exit(not torch.version.hip)' || {
            echo "ci/install.sh: torch of $python is no build for ROCm; name another interpreter with PYTHON" >&2
            exit 2
        }
        "$directory/bin/pip" install --quiet "$root"
        ;;
    *)
        echo "ci/install.sh: unknown device '$device'; known are cpu, cuda, rocm" >&2
        exit 2
        ;;
esac
