"""``graphopt inspect``, ``verify`` and ``diff`` on the command line."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import graphopt
from graphopt import RMSProp
from graphopt.examples import digits_cnn
from graphopt.inspection import diff, diff_checkpoints, inspect_checkpoint
from graphopt.inspection.show.page import checkpoint_page
from tests.helpers.command_line import run, succeed

MODEL = digits_cnn.build()
PARAMETERS = graphopt.parameters(MODEL)
CONV = PARAMETERS.matching("conv*")
GROUPS = [{"params": CONV, "lr": 0.02}, {"params": PARAMETERS.without(CONV)}]


def refused(*arguments):
    """The error, which is one line."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@cache
def built(momentum):
    return graphopt.training_graph(
        MODEL, "cross_entropy", RMSProp(GROUPS, learning_rate=0.01, momentum=momentum)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with two training graphs and two checkpoints of the first."""
    made = tmp_path_factory.mktemp("files")
    built(0.9).save(made / "train.onnx")
    built(0.0).save(made / "other.onnx")
    session = graphopt.Session(made / "train.onnx")
    session.save_checkpoint(made / "start.safetensors")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    session.step({"x": x, "labels": np.arange(4)})
    session.save_checkpoint(made / "later.safetensors")
    return made


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damaged(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("command", ["inspect", "verify", "diff"])
def test_help_has_an_example_of_the_command(command):
    result = succeed(command, "--help")
    assert f"Example: graphopt {command} " in " ".join(result.output.split())


@pytest.mark.any_runtime
@pytest.mark.usefixtures("folder")
class TestInspect:
    @pytest.mark.quick
    def test_tables(self):
        text = succeed("inspect", "train.onnx").stdout
        assert "RMSProp" in text
        assert "conv1.weight" in text
        assert "momentum" in text
        assert max(map(len, text.splitlines())) <= 100
        assert "\x1b" not in text

    def test_json_is_everything(self):
        found = json.loads(succeed("inspect", "train.onnx", "--json").stdout)
        assert found == json.loads(json.dumps(graphopt.inspect("train.onnx").to_dict()))
        assert found["version"] == 1
        assert found["optimizer"]["momentum"] == 0.9

    def test_json_has_no_infinity(self):
        model = onnx.load("train.onnx")
        for entry in model.metadata_props:
            entry.value = entry.value.replace('"epsilon": 1e-10', '"epsilon": Infinity')
        onnx.save(model, "infinite.onnx")

        def refuse(constant):
            raise AssertionError(constant)

        text = succeed("inspect", "infinite.onnx", "--json").stdout
        json.loads(text, parse_constant=refuse)

    def test_arguments_of_the_inspection(self):
        options = ("--steps", 1000, "--batch-size", 4, "--target", "onnxruntime==1.19")
        found = json.loads(succeed("inspect", "train.onnx", "--json", *options).stdout)
        wanted = graphopt.inspect("train.onnx", steps=1000, batch_size=4, target=options[-1])
        assert found == json.loads(json.dumps(wanted.to_dict()))
        assert set(found["memory"]["sizes"].values()) == {4}

    def test_size_of_a_dimension(self):
        (name,) = graphopt.inspect("train.onnx").memory.sizes
        found = json.loads(succeed("inspect", "train.onnx", "--json", "--dim", f"{name}=7").stdout)
        assert found["memory"]["sizes"] == {name: 7}

    def test_filters(self):
        text = succeed("inspect", "train.onnx", "--name", "conv1.*").stdout
        assert "conv1.weight" in text
        assert "dense1.weight" not in text
        text = succeed("inspect", "train.onnx", "--group", 1).stdout
        assert "dense1.weight" in text
        assert "conv1.weight" not in text
        text = succeed("inspect", "train.onnx", "--rows", 1, "--sort", "size").stdout
        assert "dense1.weight" in text
        assert "conv1.bias" not in text
        text = succeed("inspect", "train.onnx", "--rows", 1, "--all").stdout
        assert all(parameter.name in text for parameter in PARAMETERS)

    def test_html(self, folder):
        result = succeed("inspect", "train.onnx", "--html", "page.html")
        assert result.stdout == "page: page.html\n"
        page = (folder / "page.html").read_text(encoding="utf-8")
        assert page.lower().startswith("<!doctype html>")
        assert "conv1.weight" in page

    def test_html_and_json(self, folder):
        result = succeed("inspect", "train.onnx", "--html", "page.html", "--json")
        json.loads(result.stdout)
        assert result.stderr == "page: page.html\n"
        assert (folder / "page.html").exists()

    def test_fail_on(self):
        succeed("inspect", "train.onnx", "--fail-on", "note")
        model = onnx.load("train.onnx")
        for entry in model.metadata_props:
            if entry.key == "graphopt.optimizer":
                entry.value = entry.value.replace('"momentum": 0.9', '"momentum": 0.8')
        onnx.save(model, "differs.onnx")
        assert "error" in {hazard.level for hazard in graphopt.inspect("differs.onnx").hazards}
        for level in ("error", "warning", "note"):
            result = run("inspect", "differs.onnx", "--fail-on", level)
            assert result.exit_code == 1
            assert "momentum" in result.stdout
        succeed("inspect", "differs.onnx")

    def test_fail_on_what_is_less_bad(self):
        steps = ("--steps", 10)
        opt = RMSProp(PARAMETERS, learning_rate=[0.1, 0.2])
        graphopt.training_graph(MODEL, "cross_entropy", opt).save("short.onnx")
        levels = {hazard.level for hazard in graphopt.inspect("short.onnx", steps=10).hazards}
        assert levels
        for level, worse in (("error", {"error"}), ("warning", {"error", "warning"})):
            result = run("inspect", "short.onnx", *steps, "--fail-on", level)
            assert result.exit_code == int(bool(levels & worse))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--dim", "rows"), "--dim: got 'rows', expected NAME=SIZE"),
            (("--dim", "rows=0"), "dims['rows']: got 0"),
            (("--graph", "other.onnx"), "--graph: got it for 'train.onnx'"),
            (("--name", "nothing*"), "nothing*"),
            (("--group", "7"), "7"),
            (("--target", "abacus"), "abacus"),
            (("--html", "nowhere/page.html"), "nowhere"),
            (("--json", "--rows", "3"), "--rows: --json prints everything; leave it out"),
            (("--json", "--all"), "--all: --json prints everything"),
            (("--html", "page.html", "--sort", "order"), "--sort: --html writes everything"),
            (("--html", "page.html", "--name", "conv*"), "--name: --html writes everything"),
            (("--json", "--group", "0"), "--group: --json prints everything"),
        ],
    )
    def test_wrong_options(self, options, told):
        assert told in refused("inspect", "train.onnx", *options)


@pytest.mark.any_runtime
@pytest.mark.usefixtures("folder")
class TestInspectCheckpoint:
    def test_tables(self):
        text = succeed("inspect", "later.safetensors").stdout
        assert text.startswith("later.safetensors: session checkpoint, step 1, ")
        assert "conv1.weight" in text
        assert "Step sizes" in text
        assert "0.02" not in text  # only the graph knows the learning rates
        assert max(map(len, text.splitlines())) <= 100

    def test_rows(self):
        few = succeed("inspect", "later.safetensors", "--rows", 1).stdout
        every = succeed("inspect", "later.safetensors", "--rows", 1, "--all").stdout
        assert "dense2.weight" not in few
        assert "dense2.weight" in every

    @pytest.mark.parametrize("options", [(), ("--graph", "train.onnx")])
    def test_json(self, options):
        found = json.loads(succeed("inspect", "later.safetensors", "--json", *options).stdout)
        graph = graphopt.inspect("train.onnx") if options else None
        wanted = inspect_checkpoint("later.safetensors", graph)
        assert found == json.loads(json.dumps(wanted.to_dict()))

    def test_with_its_graph(self):
        text = succeed("inspect", "later.safetensors", "--graph", "train.onnx").stdout
        assert "0.02" in text

    def test_fail_on(self):
        succeed("inspect", "later.safetensors", "--graph", "train.onnx", "--fail-on", "note")
        result = run("inspect", "later.safetensors", "--graph", "other.onnx", "--fail-on", "note")
        assert result.exit_code == 1
        assert "Problems" in result.stdout

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--steps", 3), ("--target", "onnxruntime==1.19"),
            ("--dim", "rows=3"), ("--name", "conv*"), ("--group", 0), ("--batch-size", 32),
            ("--sort", "size"),
        ],
    )  # fmt: skip
    def test_options_of_graphs(self, option, value):
        line = refused("inspect", "later.safetensors", option, value)
        assert f"{option}: 'later.safetensors' is a checkpoint" in line

    def test_page(self):
        result = succeed(
            *("inspect", "later.safetensors", "--graph", "train.onnx", "--html", "page.html")
        )
        assert result.stdout == "page: page.html\n"
        found = inspect_checkpoint("later.safetensors", graphopt.inspect("train.onnx"))
        assert Path("page.html").read_text(encoding="utf-8") == checkpoint_page(found)


@pytest.mark.usefixtures("folder")
class TestPages:
    @pytest.mark.parametrize(
        ("before", "after"),
        [("train.onnx", "other.onnx"), ("start.safetensors", "later.safetensors")],
    )
    def test_of_two(self, before, after):
        result = succeed("diff", before, after, "--html", "page.html")
        assert result.stdout == "page: page.html\n"
        html = Path("page.html").read_text(encoding="utf-8")
        assert f"<h2>{'Both graphs' if before == 'train.onnx' else 'The same'}</h2>" in html
        result = succeed("diff", before, after, "--html", "page.html", "--json")
        assert json.loads(result.stdout)
        assert result.stderr == "page: page.html\n"
        assert "--rows: --html writes everything" in refused(
            *("diff", before, after, "--html", "page.html", "--rows", 3)
        )
        assert before in refused("diff", before, after, "--html", before)

    def test_with_a_profile(self):
        nodes = [{"name": "conv1", "milliseconds": 2.5}]
        Path("profile.json").write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
        options = ("--html", "page.html", "--profile", "profile.json")
        succeed("inspect", "train.onnx", *options)
        html = Path("page.html").read_text(encoding="utf-8")
        times = json.loads(html.partition('id="facts">')[2].partition("</script>")[0])["times"]
        assert [time for time in times if time is not None] == [2.5]
        line = refused("inspect", "train.onnx", "--profile", "profile.json")
        assert "add --html OUT.html" in line
        line = refused("inspect", "train.onnx", "--html", "page.html", "--profile", "train.onnx")
        assert "'train.onnx' is no profile" in line


@pytest.mark.usefixtures("folder")
class TestVerify:
    @pytest.mark.quick
    def test_verified(self):
        result = succeed("verify", "train.onnx", "--steps", 2, "--seed", 3)
        assert result.stdout.startswith(
            "train.onnx: this graph computes RMSProp (momentum 0.9): 2 steps on random gradients, "
            "the largest deviation is 0."
        )

    def test_gradients_and_values(self):
        _, gradients, values = succeed("verify", "train.onnx", "--steps", 1).stdout.splitlines()
        assert gradients.startswith(
            "  gradients: those of the loss, 8 parameters along 4 directions, "
        )
        assert values.startswith(
            "  values: those of the nodes and the forward model in float64, 10 values at 2 points, "
        )

    def test_data(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 1, 8, 8)).astype(np.float32)
        np.savez("samples.npz", x=x, labels=rng.integers(0, 10, 40))
        lines = succeed("verify", "train.onnx", "--data", "samples.npz").stdout.splitlines()
        assert len(lines) == 3
        np.savez("samples.npz", x=x, labels=rng.integers(10, 20, 40))
        result = run("verify", "train.onnx", "--data", "samples.npz")
        assert result.exit_code == 1
        assert "feed 'labels': got label 1" in result.stderr

    def test_a_graph_that_no_runtime_runs(self):
        model = onnx.load("train.onnx")
        model.graph.node.append(helper.make_node("MatMul", ["x", "labels"], ["dead"]))
        onnx.save(model, "refused.onnx")
        result = run("verify", "refused.onnx", "--steps", 1)
        assert result.exit_code == 1
        lines = result.stdout.splitlines()
        assert lines[0] == "refused.onnx: RMSProp (momentum 0.9), not verified"
        assert "cannot run this training graph" in lines[1]

    def test_wrong_gradients(self):
        model = onnx.load("train.onnx")
        node = next(n for n in model.graph.node if n.op_type == "Relu")
        node.op_type = "Softplus"
        onnx.save(model, "wrong.onnx")
        result = run("verify", "wrong.onnx", "--steps", 1)
        assert result.exit_code == 1
        lines = result.stdout.splitlines()
        assert lines[0] == "wrong.onnx: RMSProp (momentum 0.9), not verified"
        assert "is not what the forward model computes" in lines[1]
        assert not any("gradients: those of the loss" in line for line in lines)

    def test_json(self):
        found = json.loads(succeed("verify", "train.onnx", "--json", "--steps", 2).stdout)
        assert found == json.loads(json.dumps(graphopt.verify("train.onnx", steps=2).to_dict()))
        assert found["verified"] is True

    def differing(self):
        model = onnx.load("train.onnx")
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "decay":
                    attribute.f = 0.8
        onnx.save(model, "differs.onnx")

    def test_not_verified(self):
        self.differing()
        result = run("verify", "differs.onnx")
        assert result.exit_code == 1
        first, second, *rest = result.stdout.splitlines()
        assert first == "differs.onnx: RMSProp (momentum 0.9), not verified"
        assert second == "  decay is 0.9 in the metadata and 0.8 in the nodes"
        assert any(line.startswith("  step 0: ") for line in rest)

    def test_not_verified_in_json(self):
        self.differing()
        result = run("verify", "differs.onnx", "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert found["verified"] is False
        assert found["deviation"] > 1

    def test_not_run(self):
        onnx.save(MODEL, "forward.onnx")
        result = run("verify", "forward.onnx")
        assert result.exit_code == 1
        assert result.stdout == (
            "forward.onnx: no optimizer, not verified\n  no optimizer was recognised in the graph\n"
        )

    def test_names_do_not_steer_the_terminal(self):
        name = "red\x1b[31m\n"
        graph = graphopt.update_graph(RMSProp([graphopt.Parameter(name, (3,))]), layout="separate")
        model = graph.model
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "decay":
                    attribute.f = 0.8
        onnx.save(model, "odd.onnx")
        result = run("verify", "odd.onnx")
        assert result.exit_code == 1
        assert "\x1b" not in result.stdout
        assert len(result.stdout.splitlines()) >= 3

    def test_wrong_provider(self):
        result = run("verify", "train.onnx", "--provider", "AbacusExecutionProvider")
        assert result.exit_code == 1
        assert "AbacusExecutionProvider" in result.output
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("option", ["--steps", "--seed"])
    def test_numbers_out_of_range(self, option):
        result = run("verify", "train.onnx", option, -1)
        assert result.exit_code == 2
        assert option in result.stderr


@pytest.mark.any_runtime
@pytest.mark.usefixtures("folder")
class TestDiff:
    @pytest.mark.quick
    def test_graphs(self):
        text = succeed("diff", "train.onnx", "other.onnx").stdout
        assert text.startswith("train.onnx and other.onnx")
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["momentum"])
        assert row == ["momentum", "0.9", "0"]
        assert "the same: " in text
        assert max(map(len, text.splitlines())) <= 100

    def test_the_same_graph(self):
        assert succeed("diff", "train.onnx", "train.onnx").stdout == (
            "train.onnx and train.onnx\nno difference\n"
        )

    def test_rows(self):
        text = succeed("diff", "train.onnx", "other.onnx", "--rows", 1).stdout
        assert "... and 7 more" in text  # parameters, of which there are eight

    def test_json(self):
        found = json.loads(succeed("diff", "train.onnx", "other.onnx", "--json").stdout)
        wanted = diff(graphopt.inspect("train.onnx"), graphopt.inspect("other.onnx"))
        assert found == json.loads(json.dumps(wanted.to_dict()))

    def test_checkpoints(self):
        text = succeed("diff", "start.safetensors", "later.safetensors").stdout
        assert text.startswith("start.safetensors and later.safetensors: steps 0 and 1, ")
        assert "conv1.weight" in text

    def test_checkpoints_in_json(self):
        arguments = ("start.safetensors", "later.safetensors")
        found = json.loads(succeed("diff", *arguments, "--json").stdout)
        assert found == json.loads(json.dumps(diff_checkpoints(*arguments).to_dict()))

    def test_rows_of_json(self):
        line = refused("diff", "train.onnx", "other.onnx", "--json", "--rows", 3)
        assert "--rows: --json prints everything; leave it out" in line

    def test_one_of_each(self):
        line = refused("diff", "train.onnx", "later.safetensors")
        assert "one is a checkpoint, the other a model" in line


FILES = {
    "missing": None,
    "empty": b"",
    "text": b"it is a text\n" * 40,
    "zip": b"PK\x03\x04" + bytes(100),
    "noise": bytes(range(256)) * 10,
}


@pytest.mark.any_runtime
@pytest.mark.usefixtures("folder")
class TestWrongFiles:
    def commands(self, path):
        return [("inspect", path), ("verify", path), ("diff", path, "train.onnx"),
                ("diff", "train.onnx", path)]  # fmt: skip

    @pytest.mark.parametrize("name", FILES)
    def test_no_model(self, folder, name):
        path = folder / f"{name}.onnx"
        if FILES[name] is not None:
            path.write_bytes(FILES[name])
        for command in self.commands(path.name):
            assert path.name in refused(*command)

    def test_a_folder(self, folder):
        (folder / "folder").mkdir()
        for command in self.commands("folder"):
            assert "folder" in refused(*command)

    def test_truncated_graph(self, folder):
        damaged(folder / "other.onnx")
        for command in self.commands("other.onnx"):
            assert "other.onnx" in refused(*command)

    def test_truncated_checkpoint(self, folder):
        damaged(folder / "later.safetensors")
        assert "later.safetensors" in refused("inspect", "later.safetensors")
        line = refused("diff", "start.safetensors", "later.safetensors")
        assert "later.safetensors" in line

    def test_verify_wants_a_graph(self):
        line = refused("verify", "later.safetensors")
        assert "it is a safetensors file" in line

    def test_the_graph_of_a_checkpoint_is_missing(self):
        line = refused("inspect", "later.safetensors", "--graph", "no.onnx")
        assert "no.onnx" in line

    def test_a_cycle(self):
        nodes = [helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
        value = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2])
        graph = helper.make_graph(nodes, "cycle", [], [value])
        onnx.save(helper.make_model(graph), "cycle.onnx")
        for command in self.commands("cycle.onnx"):
            assert "cycle.onnx" in refused(*command)


@pytest.mark.any_runtime
def test_a_folder_of_checkpoints_stands_for_its_newest(folder):
    for step, name in ((0, "start"), (1, "later")):
        target = folder / "run" / f"step-{step:010}.safetensors"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(f"{name}.safetensors", target)
    newest = str(Path("run") / "step-0000000001.safetensors")
    assert succeed("inspect", "run").stdout == succeed("inspect", newest).stdout
    found = json.loads(succeed("diff", "start.safetensors", "run", "--json").stdout)
    assert found == json.loads(succeed("diff", "start.safetensors", newest, "--json").stdout)
    (folder / "empty").mkdir()
    assert "'empty' is a folder, expected a file" in refused("inspect", "empty")
