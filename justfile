# decisec: `just` lists the recipes. Everything installs by package name into .venv.

set shell := ["bash", "-euo", "pipefail", "-c"]

python := ".venv/bin/python"

# List the recipes
[private]
default:
    @just --justfile {{ justfile() }} --list --unsorted

# Run the main job on the best hypervisor that works here: 5 VMs, live table, usage report
[group('use')]
demo *args: setup
    {{ python }} -m decisec demo {{ args }}

# Keep the whole stack up until Ctrl-C; prints the API address and a development token
[group('use')]
dev *args: setup
    {{ python }} -m decisec dev {{ args }}

# Fetch the pinned Firecracker test binaries into .decisec/bin, digests checked
[group('use')]
firecracker dest=".decisec/bin": setup
    {{ python }} -m decisec.devkit.firecracker --dest {{ dest }}

# Add a stock Linux (Debian's cloud kernel and busybox, through apt) to the stack's images, for QEMU
[group('use')]
linux-image store=".decisec/agent/images": setup
    {{ python }} -m decisec.devkit.linux --store {{ store }}

# Run every check and every test, then list what was skipped and why; `-n 0`: one test at a time
[group('check')]
test *args: setup system lint types arch
    {{ python }} -m pytest -n auto --maxprocesses 4 --dist worksteal {{ args }}

# Run the unit tests only
[group('check')]
test-fast *args: setup
    {{ python }} -m pytest tests/unit {{ args }}

# Run what is tested with packets: the filter, and crafted frames from a tap
[group('check')]
test-network *args: setup system
    {{ python }} -m pytest -n 0 tests/network {{ args }}

# Check style and formatting
[group('check')]
lint: setup
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .

# Check types, strictly
[group('check')]
types: setup
    {{ python }} -m mypy

# Check that imports between the packages point one way
[group('check')]
arch: setup
    .venv/bin/lint-imports

# Measure what the tests never time: all, or agent, batcher, boot, codecs, collector, gateway, metering, network, scaleout
[group('check')]
bench what="all" *args: setup
    @case "{{ what }}" in \
      all) \
        {{ python }} -m tests.load.bench_collector; \
        {{ python }} -m tests.load.bench_batcher; \
        {{ python }} -m tests.load.bench_codecs; \
        {{ python }} -m tests.load.bench_gateway; \
        {{ python }} -m tests.load.bench_scaleout --json; \
        {{ python }} -m tests.load.bench_boot --json; \
        {{ python }} -m tests.load.bench_agent --json; \
        {{ python }} -m tests.load.bench_network; \
        {{ python }} -m tests.load.bench_fabric ;; \
      network) \
        {{ python }} -m tests.load.bench_network {{ args }}; \
        {{ python }} -m tests.load.bench_fabric ;; \
      agent|batcher|boot|codecs|collector|gateway|metering|scaleout) \
        {{ python }} -m tests.load.bench_{{ what }} {{ args }} ;; \
      *) \
        echo "no benchmark {{ what }}: take all, agent, batcher, boot, codecs, collector, gateway, metering, network or scaleout" >&2; \
        exit 2 ;; \
    esac

# Flood a deployment with metrics, or `commands`, and check what became of each: `just flood --own`
[group('check')]
flood *args: setup
    {{ python }} -m tests.load.flood {{ args }}

# Ask all routes absurd things for some minutes: `just fuzz-api 600 200 SEED`
[group('check')]
fuzz-api seconds="300" examples="100" seed="random": setup
    DECISEC_FUZZ_S={{ seconds }} DECISEC_FUZZ_EXAMPLES={{ examples }} \
      DECISEC_FUZZ_SEED={{ if seed == "random" { "$RANDOM" } else { seed } }} \
      {{ python }} -m pytest -n 0 tests/integration/test_gateway_contract.py

# Kill a part until it is shown to lose nothing: `just chaos agent`, `just chaos network`; exits 1 if it does
[group('check')]
chaos what *args: setup system
    {{ python }} -m tests.chaos.{{ what }} {{ args }}

# Send random frames from a VM, and see that none gets where it must not: `just fuzz-network 1000000 SEED`
[group('check')]
fuzz-network *args: setup system
    {{ python }} -m tests.network.fuzz {{ args }}

# Flood a host from one VM, kind by kind, and see what others feel; prints latencies
[group('check')]
flood-network *args: setup system
    {{ python }} -m tests.network.flood {{ args }}

# Send an agent a million bad messages; exits 1 if it does or loses anything: `--messages 20000`
[group('check')]
fuzz-agent *args: setup system
    {{ python }} -m tests.chaos.fuzz_agent {{ args }}

# Format the code
[group('change')]
format: setup
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# Write docs/openapi.json anew; refuses to where a client could break, `--breaking` writes it all the same
[group('change')]
openapi *args: setup
    {{ python }} -m decisec.devkit.api_contract {{ args }}

# Write docs/asyncapi.json anew; refuses to where somebody on the bus could break, as `just openapi` does
[group('change')]
asyncapi *args: setup
    {{ python }} -m decisec.devkit.bus_contract {{ args }}

# Write docs/network-packets.md anew, from the cases of the packet suite
[group('change')]
network-packets: setup
    {{ python }} -m tests.network.page

# Resolve the dependencies anew into the hashed lock
[group('change')]
lock:
    uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
      --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade -q -o requirements.lock

# Create .venv from the hashed lock; does nothing when it is up to date
[group('change')]
setup:
    @wanted="$(cat requirements.lock pyproject.toml | sha256sum)"; \
    if [ "$(cat .venv/.decisec-lock 2>/dev/null)" != "$wanted" ]; then \
      echo "setting up .venv from requirements.lock ..." >&2; \
      [ -x .venv/bin/python ] || uv venv -q .venv --python ">=3.11"; \
      uv pip sync -q --python .venv --require-hashes requirements.lock; \
      uv pip install -q --python .venv --no-deps --no-build-isolation -e .; \
      echo "$wanted" > .venv/.decisec-lock; \
    fi

# Install the system packages that tests use, when root; tests skip what is missing
[group('change')]
system:
    @missing=""; \
    for pair in qemu-system-x86_64:qemu-system-x86 nsenter:util-linux ip:iproute2 gcc:gcc; do \
      PATH="$PATH:/sbin:/usr/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"; \
    done; \
    PATH="$PATH:/sbin" ldconfig -p 2>/dev/null | grep -q libnftables.so.1 || missing="$missing libnftables1"; \
    if [ -n "$missing" ]; then \
      if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
        echo "installing$missing ..." >&2; \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null \
          || echo "could not install$missing; tests that need them will be skipped" >&2; \
      else \
        echo "missing$missing; tests that need them will be skipped" >&2; \
      fi; \
    fi
