"""The tool that kills ranks, with few kills."""

import json
import subprocess
import sys

import pytest

from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
def test_the_others_end_and_the_run_goes_on():
    command = [sys.executable, "-m", "tools.faults.lost_ranks", "--kills", "1", "--epochs", "3"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    outcome = json.loads(done.stdout)
    assert outcome.pop("slowest") < 10
    assert outcome == {"kills": 1, "said": 1, "otherwise": [], "left": 0, "equal": True}
