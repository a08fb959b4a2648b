"""The same numbers on a mesh of eight devices, in a process that has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("mesh_cases.py")


def run_cases(marked):
    # On a busy machine the devices' threads wait long for each other; XLA gives up after 40 s.
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    devices = "--xla_force_host_platform_device_count=8"
    flags = " ".join((os.environ.get("XLA_FLAGS", ""), devices, patience))
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    settings = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", marked]
    command = [sys.executable, "-m", "pytest", *settings, str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_cases_on_eight_virtual_devices():
    run_cases("not slow")


@pytest.mark.slow
def test_the_slow_cases_on_eight_virtual_devices():
    run_cases("slow")
