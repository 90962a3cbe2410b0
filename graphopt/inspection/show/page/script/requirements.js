// What the graph needs, and what runs it.

function showRequirements() {
  const { requirements, targets } = facts;
  const domains = Object.entries(requirements.operators);
  const standard = domains.every(([domain]) => domain === "");
  const opsets = Object.entries(requirements.opsets).map(([domain, version]) => `${domain === "" ? "ONNX" : short(domain)} ${version}`);
  byId("requirements").append(
    el(
      "div",
      { class: "pair" },
      el(
        "div",
        { class: "card stack" },
        el("h3", {}, "What a runtime must support"),
        definitions([
          ["IR version", String(requirements.ir_version)],
          ["Operator sets", opsets.join(", ")],
          ["Standard ONNX", standard ? "yes" : "no"],
        ]),
        domains.map(([domain, operators]) => titled(`Operators of ${domain === "" ? "ONNX" : short(domain)}: ${count(operators.length)}`, chips(operators, 60))),
        requirements.functions.length ? titled("Functions, defined in the file", chips(requirements.functions)) : null,
      ),
      targets.length ? el("div", { class: "card" }, el("h3", {}, "What runs it"), el("ul", { class: "targets" }, targets.map(target))) : null,
    ),
  );
}

function target(entry) {
  return el(
    "li",
    {},
    entry.runs ? badge("✓ runs", "good") : badge("✗ does not", "error"),
    el("div", {}, el("b", {}, short(entry.name)), entry.reasons.map((reason) => el("p", {}, visible(reason)))),
  );
}
