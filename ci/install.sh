#!/bin/sh
# Sets up an environment for one kind of device: ci/install.sh DEVICE DIRECTORY [TORCH]
#
# cpu, cuda: everything to the version, as `make` does. With TORCH, for example 2.11.0, that version of torch and the
# triton that it asks for, since a vendor's compiled files are for one version of torch. rocm: torch and triton are the
# machine's own, since those of the package index are built for CUDA.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: ci/install.sh cpu|cuda|rocm DIRECTORY [TORCH]" >&2
    exit 2
fi
device=$1
directory=$2
torch=${3:-}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

case $device in
    cpu | cuda)
        "$python" -m venv "$directory"
        constraints=$root/ci/constraints.txt
        if [ -n "$torch" ]; then
            grep -v -e '^torch==' -e '^triton==' "$root/ci/constraints.txt" >"$directory/constraints.txt"
            echo "torch==$torch" >>"$directory/constraints.txt"
            constraints=$directory/constraints.txt
        fi
        # torch by its exact version before anything else, so that nothing drags in another build of it.
        "$directory/bin/pip" install --quiet --constraint "$constraints" torch setuptools wheel
        "$directory/bin/pip" install --quiet --constraint "$constraints" --no-build-isolation "$root[aiter]"
        ;;
    rocm)
        if [ -n "$torch" ]; then
            echo "ci/install.sh: on rocm torch is the machine's own; leave out '$torch'" >&2
            exit 2
        fi
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
