#!/usr/bin/env bash
# Sets moonlake up in .venv: the packages of requirements.lock, moonlake itself, Delta's jars in Spark's own cache.
# `make` calls it before everything else; when nothing has changed it takes well under a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly UV_VERSION=0.11.0
readonly VENV=.venv
readonly LOG=$VENV/setup.log
readonly STAMP=$VENV/setup.stamp
readonly PYTHON=$VENV/bin/python

fail() {
    echo "error: $*" >&2
    exit 1
}

on_debian_as_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# Debian packages, installed in silence; false if apt-get cannot have them.
apt_install() {
    echo "installing $* with apt-get"
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 && return
    apt-get update -qq >/dev/null 2>&1 || true
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# The Java that Spark's launcher would start (moonlake/spark/java.py says the same), and its major version.
java_executable() { if [ -n "${JAVA_HOME:-}" ]; then echo "$JAVA_HOME/bin/java"; else command -v java || true; fi; }
java_major() { "$1" -version 2>&1 | sed -nE 's/.* version "(1\.)?([0-9]+).*/\2/p' | head -n 1; }

check_java() {
    local get="get Java 17 (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17)"
    local java major
    java=$(java_executable)
    if [ -z "$java" ] && on_debian_as_root; then
        apt_install openjdk-17-jre-headless || apt_install openjdk-21-jre-headless || true
        java=$(java_executable)
    fi
    [ -n "$java" ] || fail "no Java found, and Spark needs one: $get"
    [ -x "$java" ] || fail "JAVA_HOME is $JAVA_HOME, but there is no $java: unset it or $get and point it there"
    major=$(java_major "$java" || true)
    case $major in
        17 | 21) ;;
        "") fail "$java does not say its version, so it is no Java that Spark can start: $get" ;;
        *) fail "$java is Java $major, and Spark needs 17 or 21: $get and set JAVA_HOME to it" ;;
    esac
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

# The first Python 3.11 on the PATH; a shim of pyenv that leads nowhere is passed over.
python_311() {
    local candidate
    for candidate in $(type -ap python3.11 python3 python); do
        if is_python_311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

check_python() {
    # The programs of an environment name its folder: one that was moved is made anew.
    if [ -e "$STAMP" ] && [ "$(head -n 1 "$STAMP")" != "$PWD" ]; then rm -rf "$VENV"; fi
    is_python_311 "$PYTHON" && [ -x "$VENV/bin/pip" ] && return
    local get="get it (Debian 12: apt-get install python3.11-venv; macOS: brew install python@3.11; or pyenv, conda, uv)"
    python=$(python_311)
    if on_debian_as_root && ! "${python:-false}" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3.11-venv || true
        python=$(python_311)
    fi
    [ -n "$python" ] || fail "no Python 3.11 found: $get"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make environments, venv is missing: $get"
    VENV_IS_NEW=yes
}

# One step: what it does, then the command. Its output goes to the log, its seconds or its error to the screen.
step() {
    local what=$1 started=$SECONDS reason
    shift
    echo "$what ..."
    if ! "$@" >"$LOG" 2>&1; then
        reason=$(grep -im 1 '^error' "$LOG" || tail -n 1 "$LOG")
        fail "$what failed ($reason; all of it is in $LOG). Is the registry within reach? A mirror or proxy goes into" \
            "PIP_INDEX_URL, UV_DEFAULT_INDEX or HTTPS_PROXY"
    fi
    echo "$what: $((SECONDS - started)) s"
}

uv() { "$PYTHON" -m uv "$@" --python "$PYTHON"; }

install_packages() {
    # What pip was told about a mirror holds for uv too.
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-}}
    [ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
    if ! "$PYTHON" -m uv --version 2>/dev/null | grep -q "^uv $UV_VERSION "; then
        step "installing uv $UV_VERSION" "$PYTHON" -m pip install --quiet --retries 1 "uv==$UV_VERSION"
    fi
    step "installing the packages of requirements.lock (2.5 GB down the first time)" uv pip sync requirements.lock
    step "installing moonlake" uv pip install --no-deps --editable .
}

check_java
check_python
if [ "${VENV_IS_NEW:-}" ]; then
    echo "making $VENV with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
fi
wanted=$PWD$'\n'$(cat requirements.lock pyproject.toml setup.sh | cksum)
if [ "$(cat "$STAMP" 2>/dev/null)" != "$wanted" ]; then
    rm -f "$STAMP"
    install_packages
    echo "$wanted" >"$STAMP"
fi
"$PYTHON" -m moonlake.spark.jars --present || step "fetching Delta's jars for Spark (87 MB down the first time)" "$PYTHON" -m moonlake.spark.jars
