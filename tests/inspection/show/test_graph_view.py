"""The drawing of a graph on the page, its list of modules, and the pages of comparisons."""

# ruff: noqa: RUF001  # shapes have multiplication signs

import json
import re

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import checkpoint
from graphopt.examples import digits_cnn
from graphopt.inspection import diff, diff_checkpoints, inspect_checkpoint
from graphopt.inspection.opening import sound_model
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.page import (
    checkpoint_difference_page,
    checkpoint_page,
    difference_page,
    page,
)
from graphopt.inspection.show.page.graph_rows import graph_data
from graphopt.inspection.show.page.times import node_times
from graphopt.module_names import BUCKETS, modules, name_of
from graphopt.schedules import CosineDecayLR
from graphopt.shapes.engine import Shapes
from tests.helpers.page_browser import CONTRAST, visited

pytestmark = pytest.mark.any_runtime

COSINE = CosineDecayLR(0.0, 0.1, 100)


def trained(model=None, **settings):
    """A training graph of the digits network."""
    model = digits_cnn.build() if model is None else model
    parameters = graphopt.parameters(model)
    rest = parameters.without(parameters.matching("conv*"))
    groups = [{"params": parameters.matching("conv*"), "lr": COSINE}, {"params": rest}]
    optimizer = graphopt.RMSProp(groups, **{"learning_rate": 0.1, "momentum": 0.9} | settings)
    return graphopt.training_graph(model, "cross_entropy", optimizer)


class Inspected:
    """What was read and found; a test that fails does not write all of it down."""

    def __init__(self, reading):
        self.reading, self.found = reading, graphopt.inspect(reading)

    def __iter__(self):
        return iter((self.reading, self.found))


@pytest.fixture(scope="module")
def graph():
    return trained()


@pytest.fixture(scope="module")
def digits(graph):
    return Inspected(read(graph))


def as_json(found):
    return json.loads(json.dumps(found.to_dict()))


# ---- Modules ---------------------------------------------------------------------------------


def modules_of(text, stages=None, parameters=(), groups=None):
    graph = read(onnx.parser.parse_model(text)).file.model.graph
    wanted = stages or ["forward"] * len(graph)
    return modules(graph, wanted, parameters, groups or {})


HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x, float[2,2] a, float[2,2] b)'


def test_scopes_in_names_are_modules():
    found = modules_of(f"""{HEAD} => (float[2,2] y) {{
        ["layer1/layer1.0/conv/MatMul"] h = MatMul(x, a)
        ["layer1/layer1.0/act/Relu"] r = Relu(h)
        ["head/MatMul"] y = MatMul(r, b) }}""")
    assert found == [("layer1", "0", "conv"), ("layer1", "0", "act"), ("head",)]


def test_names_of_parameters_are_modules_and_what_is_between_them_is_in_their_common_one():
    inputs = HEAD.replace("float[2,2] a", 'float[2,2] "net.0.w"')
    inputs = inputs.replace("float[2,2] b", 'float[2,2] "net.2.w"')
    found = modules_of(
        f"""{inputs} => (float[2,2] z) {{
        h = MatMul(x, "net.0.w")  r = Relu(h)  y = MatMul(r, "net.2.w")  z = Relu(y) }}""",
        parameters=["net.0.w", "net.2.w"],
    )
    assert found == [("net", "0"), ("net",), ("net", "2"), ("net",)]


def test_the_modules_of_pytorch_are_read_and_the_backward_pass_has_the_same():
    model = onnx.parser.parse_model(
        f"""{HEAD} => (float[2,2] y) {{
        [linear] h = MatMul(x, a)  [gelu] r = Relu(h)  [linear_1] y = MatMul(r, b) }}"""
    )
    for at, node in enumerate(model.graph.node):
        outer = ": net.Net/0: torch.nn.modules.container.Sequential"
        noted = f"{outer}/0.{at}: torch.nn.modules.linear.Linear/{node.name}: aten.linear.default"
        node.metadata_props.add(key="namespace", value=noted)
    for name in ("a", "b"):
        array = np.full((2, 2), 0.5, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    del model.graph.input[1:]
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.1)
    reading = read(graphopt.training_graph(model, "mse", optimizer).model)
    found = graphopt.inspect(reading)
    data = graph_data(reading, found)
    by_stage = {}
    for row in data["nodes"]:
        by_stage.setdefault(row[2], set()).add(tuple(data["modules"][row[3]]))
    layers = {("0", "0"), ("0", "1"), ("0", "2")}
    assert by_stage[0] == layers | {(BUCKETS, "bucket0")}
    assert layers <= by_stage[2]
    assert ("group 0", "bucket0") in by_stage[3]


# ---- The drawing, against the JSON -----------------------------------------------------------

TOTALS = """
    const rows = () => all(".outline li").filter((row) => row.getAttribute("aria-level") === "1");
    const seen = { nodes: rows().map((row) => row.querySelector(".value").textContent) };
    one(".tools input").click();  // the nodes that take buckets apart too
    seen.all = rows().map((row) => [row.querySelector(".label").textContent,
      row.querySelector(".value").textContent]);
    const costs = (name) => {
      for (const row of rows()) if (row.querySelector(".label").textContent === name &&
        row.getAttribute("aria-selected") === "false") row.click();
      return Object.fromEntries(all("#graph .chosen dt").map((term) => [term.textContent,
        term.nextElementSibling.textContent]));
    };
    seen.costs = ["forward", "loss", "backward", "update"].map(costs);
    seen.table = all("#stages tbody tr").map((row) => [...row.children].map((cell) =>
      cell.textContent));
    seen.line = texts("#overview .line > span");
    seen.memory = texts("#memory .card:first-child .bars .number");
    return seen;
"""


def scaled(number, base, units):
    """A number as the page writes it."""
    for unit in units:
        if number < base * 0.9995:
            digits = 0 if unit == units[0] or number >= 100 else 1 if number >= 10 else 2
            return f"{number:.{digits}f} {unit}"
        number /= base
    raise AssertionError


def size(number):
    return scaled(number, 1024, ["B", "KiB", "MiB", "GiB"])


def work(number):
    return scaled(number, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP"])


def test_the_figures_are_those_of_the_json(digits, shown):
    reading, found = digits
    facts = as_json(found)
    seen = shown(page(found, reading), TOTALS)
    stages = facts["stages"]
    assert seen["all"] == [[s["stage"], f"{s['nodes']} nodes"] for s in stages]
    assert f"{facts['model']['nodes']:,} nodes" in seen["line"]
    assert sum(s["nodes"] for s in stages) == facts["model"]["nodes"]
    for cost, row, stage in zip(seen["costs"], seen["table"], stages, strict=True):
        assert cost["FLOPs"] == work(stage["flops"])
        assert cost["Bytes moved"] == size(stage["bytes"])
        assert row[:4] == [
            stage["stage"],
            f"{stage['nodes']:,}",
            f"{stage['inside']:,}",
            work(stage["flops"]),
        ]
    memory = facts["memory"]
    keys = ("parameters", "frozen", "gradients", "states", "activations")
    assert seen["memory"] == [size(memory[key]) for key in keys]


WALK = """
    const view = one(".view");
    const rows = () => texts(".outline li .label");
    const row = (name, stage) => all(`.outline li.${stage}`).find((item) =>
      item.querySelector(".label").textContent === name);
    const boxes = () => all(".picture .box").length;
    const seen = { first: rows() };
    row("backward", "backward").focus();
    press(page.activeElement, "ArrowRight");
    seen.unfolded = [rows().length, page.activeElement.querySelector(".label").textContent,
      page.activeElement.getAttribute("aria-expanded")];
    press(page.activeElement, "ArrowRight");
    seen.inside = page.activeElement.getAttribute("aria-level");
    press(page.activeElement, "ArrowLeft");
    press(page.activeElement, "ArrowLeft");
    seen.folded = rows();
    press(page.activeElement, "Home");
    seen.home = page.activeElement.querySelector(".label").textContent;
    press(page.activeElement, "End");
    seen.end = page.activeElement.querySelector(".label").textContent;
    seen.stops = all(".outline li[tabindex='0']").length;
    row("conv1", "forward").click();
    seen.card = texts("#graph .chosen h3")[0];
    seen.node = texts("#graph .chosen .tensors li");
    seen.attributes = texts("#graph .chosen dd").join(" | ");
    seen.chosen = all(".picture .chosen").length;
    seen.types = texts(".picture .tensor");
    const before = one(".picture > g").getAttribute("transform");
    press(one(".picture"), "+");
    press(one(".picture"), "ArrowLeft");
    seen.moved = before !== one(".picture > g").getAttribute("transform");
    press(one(".picture"), "0");
    seen.label = one(".picture").getAttribute("aria-label");
    one(".tools .small-button:nth-of-type(4)").click();
    seen.all_folded = rows();
    return seen;
"""


def test_modules_unfold_and_nodes_say_what_they_read(digits, shown):
    reading, found = digits
    seen = shown(page(found, reading), WALK)
    assert seen["first"][:4] == ["forward", "conv1", "relu1", "pool1"]
    assert seen["first"][-3:] == ["loss", "backward", "update"]
    rows, name, expanded = seen["unfolded"]
    assert (rows > len(seen["first"]), name, expanded) == (True, "backward", "true")
    assert seen["inside"] == "2"
    assert seen["folded"] == seen["first"]
    assert (seen["home"], seen["end"], seen["stops"]) == ("forward", "update", 1)
    assert seen["card"] == "Conv"
    assert seen["node"][0].startswith("x batch×1×8×8 float32, 8.00 KiB an input")
    assert seen["node"][1].startswith("conv1.weight 16×1×3×3 float32, 576 B")
    assert any(line.endswith("to relu1 ") for line in seen["node"])
    assert "pads = [1, 1, 1, 1]" in seen["attributes"]
    assert seen["chosen"] == 1
    assert "batch×16×8×8 float32" in seen["types"]
    assert seen["moved"]
    assert "boxes" in seen["label"]
    assert seen["all_folded"] == ["forward", "loss", "backward", "update"]


def test_the_search_finds_tensors_and_operators_and_enter_goes_there(digits, shown):
    reading, found = digits
    script = """
        const seen = {};
        search("op:conv");
        seen.said = one("#found").textContent;
        seen.conv = texts(".results li");
        search("conv2.weight_grad");
        seen.tensor = texts(".results li");
        press(one("#search"), "Enter");
        seen.card = texts("#graph .chosen .head")[0];
        seen.open = all(".outline li[aria-selected=true]").length;
        search("");
        seen.hidden = one(".results").hidden;
        return seen;
    """
    seen = shown(page(found, reading), script)
    convolutions = [n for n in reading.file.model.graph if n.op_type == "Conv"]
    assert seen["said"] == f"2 parameters, {len(convolutions)} nodes"
    assert len(seen["conv"]) == len(convolutions)
    assert "tensor conv2.weight_grad" in seen["tensor"][0]
    assert "backward" in seen["card"]
    assert (seen["open"], seen["hidden"]) == (1, True)


def test_the_way_of_a_parameter(digits, shown):
    reading, found = digits
    script = """
        const toggle = all("#parameters .toggle").find((button) =>
          button.textContent === "conv2.weight");
        toggle.click();
        all("#parameters .detail .link").find((button) =>
          button.textContent.startsWith("Its way")).click();
        const steps = all("#graph .steps > li").map((step) =>
          [step.querySelector("h3").textContent, [...step.querySelectorAll(".chip")].map((chip) =>
            chip.textContent)]);
        return { steps, marked: texts(".outline li.way .label"),
          lines: all(".picture .line.active").length };
    """
    seen = shown(page(found, reading), script)
    steps = dict(seen["steps"])
    assert [*steps] == [
        *("Taken out of its bucket by", "Read by", "Its gradient is made by", "Updated by"),
    ]
    assert steps["Read by"] == ["conv2"]
    bucket = next(p.bucket for p in found.parameters if p.name == "conv2.weight")
    names = {name for step in ("Taken out of its bucket by", "Updated by") for name in steps[step]}
    assert all(name.startswith(f"update/{bucket}/") for name in names)
    maker = next(
        n for n in reading.file.model.graph if "conv2.weight_grad" in [v.name for v in n.outputs]
    )
    assert maker.name in steps["Its gradient is made by"]
    assert "conv2" in seen["marked"]
    assert seen["lines"] > 0


def test_schedules_are_said_by_their_group(digits, shown):
    script = """
        return all("#parameters tbody tr").map((row) => row.children[5].textContent);
    """
    reading, found = digits
    assert shown(page(found, reading), script) == ["of group 0"] * 4 + ["0.1"] * 4


def test_a_forward_model_has_no_empty_columns(shown):
    reading = read(digits_cnn.build())
    found = graphopt.inspect(reading)
    script = """
        const columns = [...one("#parameters").querySelectorAll("thead th")].map((head) =>
          head.textContent);
        const empty = columns.filter((_, at) => all("#parameters tbody tr").every((row) =>
          ["", "–", "0 B"].includes(row.children[at].textContent)));
        return [columns, empty, texts("#overview dt"), texts("#stages tbody th"),
          texts("#memory .card:first-child .label")];
    """
    columns, empty, tiles, stages, memory = shown(page(found, reading), script)
    assert columns == ["Name", "Shape", "Size", "Operator", "Bytes", "Share"]
    assert empty == []
    assert tiles == ["Parameters", "Memory of a step", "Work of a step"]
    assert stages == ["forward"]
    assert memory == ["Parameters", "Activations"]


def test_measured_times_color_the_graph(digits, shown, tmp_path):
    reading, found = digits
    names = [name_of(node) for node in reading.file.model.graph]
    rows = [{"name": name, "milliseconds": 1.0} for name in names[:-1]]
    rows += [{"name": "conv1", "milliseconds": 3.0}, {"name": "inserted", "milliseconds": 9.0}]
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"nodes": rows}), encoding="utf-8")
    times = node_times(file, reading.file.model.graph)
    assert times["conv1"] == 4
    script = """
        one(".tools input").click();
        const select = one(".tools select");
        const titles = [...select.options].map((option) => option.textContent);
        select.value = "time";
        select.dispatchEvent(new Event("change"));
        const top = all(".outline li[aria-level='1']").map((row) =>
          parseFloat(row.querySelector(".value").textContent));
        return [titles, top.reduce((sum, share) => sum + share, 0), texts(".picture .what")];
    """
    titles, together, lines = shown(page(found, reading, times), script)
    assert titles == ["Stage", "Memory", "Bytes moved", "FLOPs", "Measured time"]
    assert together == pytest.approx(100, abs=0.3)
    assert f"4.00 ms, {100 * 4 / (len(names) + 2):.1f} %" in lines
    assert "Measured time" not in shown(page(found, reading), "return texts('.tools option')")


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"nodes": [{"name": 1}]}'])
def test_what_is_no_profile_is_refused(text, digits, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is no profile"):
        node_times(file, digits.reading.file.model.graph)
    file.write_text('{"nodes": [{"name": "other", "milliseconds": 1}]}', encoding="utf-8")
    with pytest.raises(ValueError, match="of another graph"):
        node_times(file, digits.reading.file.model.graph)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_box_whatever_its_color(scheme, digits, tmp_path):
    reading, found = digits
    on_boxes = """const ground = (element) => element?.matches("g.box")
      ? color(style(element.querySelector(":scope > .frame")).fill, ground(element.parentElement))
      : element """
    script = """
        const select = one(".tools select");
        select.value = "flops";
        select.dispatchEvent(new Event("change"));
        all(".outline li")[1].click();
    """
    looked = CONTRAST.replace("const ground = (element) => element", on_boxes)
    assert looked != CONTRAST
    seen = visited(page(found, reading), tmp_path, script + looked, scheme=scheme).result
    assert seen["worst"] == {}
    assert seen["texts"] > 300


def test_pictures_are_saved(digits, shown):
    """What is saved has all boxes, and its styles in itself."""
    script = """
        const inner = frame.contentWindow;
        const blobs = [];
        const made = inner.URL.createObjectURL;
        inner.URL.createObjectURL = (blob) => { blobs.push(blob); return made.call(inner.URL,
          blob); };
        const buttons = all(".tools .small-button");
        buttons.find((button) => button.textContent === "SVG").click();
        buttons.find((button) => button.textContent === "PNG").click();
        for (let at = 0; at < 50 && blobs.length < 2; at += 1) await pause();
        const bytes = new Uint8Array(await blobs[1].arrayBuffer());
        return { text: await blobs[0].text(), png: [...bytes.slice(0, 4)], size: bytes.length,
          boxes: all(".picture .box").length };
    """
    reading, found = digits
    seen = shown(page(found, reading), script)
    assert seen["text"].startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert seen["text"].count('class="box') == 0 or "var(--" not in seen["text"]
    assert "conv1" in seen["text"]
    assert not re.search(r"(href|src)=", seen["text"])
    assert seen["png"] == [0x89, *b"PNG"]
    assert seen["size"] > 5000


def test_thousands_of_nodes_without_modules_are_folded_into_runs(shown):
    nodes = [
        onnx.helper.make_node("Relu", [f"v{at}"], [f"v{at + 1}"], name=f"n{at}")
        for at in range(4_000)
    ]
    values = [onnx.helper.make_tensor_value_info(n, 1, [4]) for n in ("v0", "v4000")]
    graph = onnx.helper.make_graph(nodes, "chain", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    reading = read(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    script = """
        const seen = { boxes: all(".picture .box").length };
        one(".outline li").focus();
        press(page.activeElement, "ArrowRight");
        seen.runs = all(".outline li[aria-level='2']").length;
        search("n3999");
        press(one("#search"), "Enter");
        await pause();
        seen.rows = all(".outline li").length;
        seen.chosen = one(".outline li[aria-selected=true] .label").textContent;
        return seen;
    """
    seen = shown(page(graphopt.inspect(reading), reading), script)
    assert seen["boxes"] < 200
    assert seen["runs"] in (0, 80)  # folded, where it was unfolded
    assert seen["rows"] <= 301
    assert seen["chosen"] == "n3999"


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "__proto__",
    "a\u202eb\u2028c\x00d\x1b[31m",
    "&lt;b&gt; {{facts}} ${1} `'\"\\",
]


def hostile():
    """A graph of which every name would do something, if it were HTML."""
    nodes = [
        onnx.helper.make_node(
            "Relu", [HOSTILE[at - 1] if at else "x"], [name], name=f"{name}/{name}", **{name: name}
        )
        for at, name in enumerate(HOSTILE)
    ]
    x = onnx.helper.make_tensor_value_info("x", 1, [HOSTILE[0], 2])
    y = onnx.helper.make_tensor_value_info(HOSTILE[-1], 1, [HOSTILE[0], 2])
    graph = onnx.helper.make_graph(nodes, HOSTILE[0], [x], [y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_hostile_graphs_run_nothing_and_are_shown(tmp_path):
    reading = read(hostile())
    script = """
        for (const row of all(".outline li")) row.click();
        search("__proto__");
        for (const button of all(".results button")) button.click();
        for (const button of all(".tools .small-button")) button.click();
        return [all("img").length, all("script").length, texts("#found")[0]];
    """
    seen = visited(page(graphopt.inspect(reading), reading), tmp_path, script)
    assert seen.console == []
    assert seen.result[:2] == [0, 2]
    assert seen.addresses <= {"/", "/frame.html", "/page.html", "/favicon.ico"}


# ---- Comparisons and checkpoints -------------------------------------------------------------


def test_two_graphs_beside_each_other(digits, shown):
    model = digits_cnn.build()
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Sigmoid"
    weight = next(t for t in model.graph.initializer if t.name == "conv2.weight")
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    reading, found = digits
    other = read(trained(model, momentum=0.5))
    changed = graphopt.inspect(other)
    difference = diff(found, changed)
    html = difference_page(difference, (found, reading), (changed, other))
    script = """
        const names = (kind) => all(".side > .stack").map((side) =>
          [...side.querySelectorAll(`.outline li.${kind} .label`)].map((label) =>
            label.textContent));
        const seen = { changed: names("changed"), rows: all("#changes tbody tr").map((row) =>
          [...row.children].map((cell) => cell.textContent)) };
        one(".side > .stack .outline li[aria-level='2']").click();
        seen.cards = texts(".chosen .head h3");
        seen.wide = page.documentElement.scrollWidth <= page.documentElement.clientWidth;
        return seen;
    """
    for width in (400, 1400):
        seen = shown(html, script, width=width)
        assert seen["changed"] == [["relu1", "conv2"]] * 2
        assert ["optimizer", "", "momentum", "0.9", "0.5"] in seen["rows"]
        (values,) = (row for row in seen["rows"] if row[0] == "values")
        assert values[1:3] == ["conv2.weight", "values, at most 0.5 apart"]
        assert [c.distance for c in difference.changes if c.part == "values"] == [
            pytest.approx(0.5)
        ]
        assert seen["cards"] == ["Conv", "Conv"]
        assert seen["wide"]


def test_equal_graphs_say_so(digits, shown):
    reading, found = digits
    html = difference_page(diff(found, found), (found, reading), (found, reading))
    assert shown(html, 'return texts("#changes .card")') == ["✓ equalNo difference was found."]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, graph):
    folder = tmp_path_factory.mktemp("checkpoints")
    session = graphopt.Session(graph)
    session.save_checkpoint(folder / "a.safetensors")
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(4, 1, 8, 8)).astype(np.float32), "labels": np.arange(4)}
    session.step(feeds)
    session.save_checkpoint(folder / "b.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


def test_the_page_of_a_checkpoint_has_the_figures_of_its_json(checkpoints, digits, shown):
    found = inspect_checkpoint(checkpoints[1], digits.found)
    facts = as_json(found)
    script = """
        const line = (id) => [...one(`#${id} tbody tr`).children].map((cell) => cell.textContent);
        const counts = Object.fromEntries(["parameters", "states", "others", "steps"].map((id) =>
          [id, all(`#${id} tbody tr`).length]));
        search("conv1.weight");
        return { line: texts("#overview .line > span"), tiles: texts("#overview dd"),
          first: line("parameters"), counts,
          steps: line("steps"),
            bars: all("#parameters tbody tr:first-child .histogram rect").length,
          kept: texts("#parameters tbody th"),
            wide: page.documentElement.scrollWidth <= page.documentElement.clientWidth };
    """
    for width in (400, 1400):
        seen = shown(checkpoint_page(found), script, width=width)
        totals, first = facts["totals"], facts["parameters"][0]
        assert seen["line"][:2] == ["session checkpoint", "step 1"]
        assert seen["tiles"][0].startswith(f"{totals['parameter_elements']:,}in")
        assert seen["tiles"][2].startswith(f"{totals['tensors']:,}")
        assert seen["counts"]["parameters"] == totals["parameters"]
        assert seen["counts"]["states"] == sum(len(p["states"]) for p in facts["parameters"])
        statistics = first["value"]["statistics"]
        assert seen["first"][0] == first["value"]["name"] == "conv1.weight"
        for cell, key in zip(
            seen["first"][3:7], ("minimum", "maximum", "mean", "rms"), strict=True
        ):
            assert float(cell) == pytest.approx(statistics[key], rel=6e-3)
        assert float(seen["steps"][1]) == pytest.approx(COSINE.value(1), rel=6e-3)
        assert seen["bars"] == 24
        assert seen["kept"] == ["conv1.weight"]
        assert seen["wide"]


def test_the_page_of_two_checkpoints_has_the_figures_of_its_json(checkpoints, shown):
    found = diff_checkpoints(*checkpoints)
    facts = as_json(found)
    script = """
        return { line: texts("#overview .line > span"), tiles: texts("#overview dd"),
          rows: all("#changes tbody tr").map((row) => [...row.children].map((cell) =>
            cell.textContent)),
          hidden: all("main > section").filter((section) => section.hidden).map((section) =>
            section.id) };
    """
    seen = shown(checkpoint_difference_page(found), script)
    assert seen["line"][0] == "steps 0 and 1"
    assert seen["tiles"][1] == f"{facts['totals']['different']}other values"
    differing = [t for t in facts["tensors"] if not t["equal"]]
    of = [t["name"].removeprefix(f"{t['kind']}.") for t in differing]
    assert [row[0] for row in seen["rows"]] == of
    assert [row[1] for row in seen["rows"]] == [t["kind"].replace("_", " ") for t in differing]
    for row, tensor in zip(seen["rows"], differing, strict=True):
        assert float(row[3]) == pytest.approx(tensor["largest"], rel=6e-3)
    assert "unfit" in seen["hidden"]


MODULES = """
    const rows = () => all("#modules tbody tr").map((row) => [row.getAttribute("aria-level"),
      row.getAttribute("aria-expanded"), row.querySelector(".name").textContent,
      ...[...row.querySelectorAll("td")].map((cell) => cell.textContent)]);
"""


def test_the_modules_of_a_checkpoint_are_the_sums_of_its_tensors(tmp_path, shown):
    """Names of three levels, of which a number is one: 10 comes behind 2."""
    rng = np.random.default_rng(0)
    names = [f"net.layers.{n}.{part}" for n in (0, 10, 2) for part in ("fc.weight", "fc.bias")]
    values = {name: rng.normal(size=6).astype(np.float32) for name in [*names, "head.weight"]}
    values["net.layers.2.fc.bias"][:2] = 0
    others = {
        name: value + np.float32(0.5 * (name != "head.weight")) for name, value in values.items()
    }
    files = []
    for count, state in enumerate((values, others)):
        files.append(tmp_path / f"{count}.safetensors")
        squares = {f"mean_square.{name}": np.full(6, 1 + count, np.float32) for name in state}
        checkpoint.save(files[-1], state | squares | {"global_step": np.array(count)})
    html = checkpoint_page(inspect_checkpoint(files[0]))
    seen = shown(html, MODULES + "return rows();")
    labels = [(row[0], row[2]) for row in seen if row[1] is not None]
    assert labels == [("1", "net.layers"), *(("2", f"{n}.fc") for n in (0, 2, 10))]
    (whole,) = (row for row in seen if row[2] == "net.layers")
    inside = np.concatenate([values[name] for name in names])
    assert whole[3:5] == ["6", "36"]
    bounds = [inside.min(), inside.max(), np.sqrt(np.mean(inside.astype(float) ** 2))]
    assert [float(cell) for cell in whole[5:8]] == pytest.approx(bounds, rel=6e-3)
    assert whole[8:] == ["5.6 %", "1", "288 B"]
    html = checkpoint_difference_page(diff_checkpoints(*files))
    script = """
        const before = rows();
        one("#modules tr.module").click();
        const folded = rows();
        search("layers.2.");
        return { before, folded, found: rows() };
    """
    seen = shown(html, MODULES + script)
    (whole,) = (row for row in seen["before"] if row[2] == "net.layers")
    moved = 0.5 * np.sqrt(inside.size) / np.linalg.norm(inside.astype(float))
    assert whole[3:6] == ["12", "12", "0.5"]
    assert float(whole[6].removesuffix(" %")) == pytest.approx(100 * moved, rel=6e-3)
    (head,) = (row for row in seen["before"] if row[2] == "head.weight")
    assert head[1:] == [None, "head.weight", "2", "1", "0", "0 %"]
    assert len(seen["folded"]) == 2
    assert [row[2] for row in seen["found"]] == ["net.layers.2.fc", "bias", "weight"]


def test_a_page_infers_no_shapes_that_the_inspection_has(graph, monkeypatch):
    """A large graph takes seconds for it."""
    asked = []

    def counted(model, sizes):
        asked.append(sizes)
        return Shapes(model, sizes)

    monkeypatch.setattr(sound_model, "Shapes", counted)
    reading = read(graph.model)
    found = graphopt.inspect(reading)
    html = page(found, reading)
    assert asked == [found.memory.sizes, None]
    assert html == page(found, read(graph.model))
