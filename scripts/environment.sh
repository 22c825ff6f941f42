# Sourced by the other scripts: finds a Python and makes virtual environments. No command of its own.

# Prints the first Python of at least 3.11 on the PATH; fails with one sentence where there is none.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" > /dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed: install it, or put it on the PATH." >&2
    return 1
}

# make_environment FOLDER: makes a virtual environment there, unless there is a working one.
make_environment() {
    if ! "$1/bin/python" -c 'import pip' > /dev/null 2>&1; then
        "$(find_python)" -m venv --clear "$1"
    fi
}

# install_into FOLDER ARGUMENTS...: pip install, within the versions of constraints.txt.
install_into() {
    local folder=$1
    shift
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python" -m pip install --quiet --prefer-binary \
        --constraint "$root/constraints.txt" "$@"
}
