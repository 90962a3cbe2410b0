"""The tool that kills runs, with few kills."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("how", [[], ["--anew"]], ids=["forked", "by the same command"])
def test_killed_runs_end_as_the_uninterrupted_one(how):
    command = [sys.executable, "-m", "tools.faults.kills", "--kills", "2", "--epochs", "4", *how]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    outcome = json.loads(done.stdout)
    assert outcome.pop("starts") >= outcome.pop("kills") > 0
    assert outcome == {"equal": True, "damaged": [], "left": []}
