# Sourced by the other scripts: finds a Python and makes virtual environments. No command of its own.

# Prints the first Python of at least 3.11 on the PATH that can make environments; fails with one sentence where there is
# none. Some systems ship Python without `ensurepip`.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" > /dev/null 2>&1 &&
            "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer with its venv module is needed: install it, or put it on the PATH." >&2
    return 1
}

# make_environment FOLDER: makes a virtual environment there, unless there is a working one.
make_environment() {
    local python
    if ! "$1/bin/python" -c 'import pip' > /dev/null 2>&1; then
        python=$(find_python)
        "$python" -m venv --clear "$1"
    fi
}

# install_into FOLDER REQUIREMENTS...: pip install, within the versions of constraints.txt. pip installs a folder anew each
# time, so what is installed is what stands there now.
install_into() {
    local folder=$1
    shift
    # setuptools would put files into the wheel that an earlier build left here and that are gone since.
    rm -rf "$root/build"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python" -m pip install -qq --prefer-binary \
        --constraint "$root/constraints.txt" "$@"
}
