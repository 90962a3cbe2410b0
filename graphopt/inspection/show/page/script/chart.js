// The curve of a learning rate.

const CHART = { width: 380, height: 150, left: 52, right: 12, top: 10, bottom: 24 };

function chart(points, label) {
  const curve = points.filter(([step, value]) => Number.isFinite(step) && Number.isFinite(value));
  if (!curve.length) return el("p", { class: "empty" }, "Its learning rate is not computed from the step.");
  const values = curve.map(([, value]) => value);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const logarithmic = most > 0 && most / Math.min(...values.filter((value) => value > 0)) >= 20;
  const said = el("output", { "aria-live": "polite" });
  const toggle = el("button", { class: "small-button", type: "button", "aria-pressed": "false", hidden: !logarithmic }, "log");
  const holder = el("div");
  const range = least === most ? real(least) : `${real(least)} to ${real(most)}`;
  const rest = curve.length === 1 ? `${real(least)} at every step` : `${range}, steps ${count(curve[0][0])} to ${count(curve.at(-1)[0])}`;
  const draw = (log) => holder.replaceChildren(plot(curve, log, `${label}: ${rest}`, (text) => (said.textContent = text ?? rest)));
  toggle.addEventListener("click", () => {
    const log = toggle.getAttribute("aria-pressed") === "false";
    toggle.setAttribute("aria-pressed", String(log));
    draw(log);
  });
  said.textContent = rest;
  draw(false);
  return el("figure", { class: "chart" }, el("div", { class: "head" }, said, toggle), holder);
}

/** The drawing; a curve of one point is a line for all steps. */
function plot(curve, log, label, say) {
  const { width, height, left, right, top, bottom } = CHART;
  const points = log ? curve.filter(([, value]) => value > 0) : curve;
  const constant = curve.length === 1;
  const steps = constant ? [0, 1] : [points[0][0], Math.max(points.at(-1)[0], points[0][0] + 1)];
  const ticks = log ? decades(points) : niceTicks(points);
  const level = log ? Math.log10 : (value) => value;
  const [low, high] = [level(ticks[0]), level(ticks.at(-1))];
  const x = (step) => left + ((step - steps[0]) / (steps[1] - steps[0])) * (width - left - right);
  const y = (value) => height - bottom - ((level(value) - low) / (high - low || 1)) * (height - top - bottom);
  const ends = constant ? steps.map((step) => [step, points[0][1]]) : points;
  const path = ends.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const dot = svg("circle", { class: "dot", r: 4 });
  const cursor = svg("g", { visibility: "hidden" }, svg("line", { class: "cursor", y1: top, y2: height - bottom }), dot);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, tabindex: constant ? undefined : 0 },
    ticks.map((tick) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 7, y: y(tick) + 3.5, "text-anchor": "end" }, real(tick)),
    ]),
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    stepTicks(constant, steps).map(([text, step, anchor]) => svg("text", { x: x(step), y: height - 8, "text-anchor": anchor }, text)),
    svg("path", { class: "curve", d: path }),
    cursor,
  );
  if (!constant) followed(drawing, points, x, y, cursor, dot, say);
  return drawing;
}

/** The value under the pointer, or where the arrow keys have gone. */
function followed(drawing, points, x, y, cursor, dot, say) {
  let at = -1;
  const show = (index) => {
    at = index;
    cursor.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index < 0) return say(null);
    const [step, value] = points[index];
    cursor.setAttribute("transform", `translate(${x(step)})`);
    dot.setAttribute("cy", y(value));
    say(`step ${count(step)}: ${real(value)}`);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const here = ((event.clientX - box.left) / box.width) * CHART.width;
    let nearest = 0;
    points.forEach(([step], index) => {
      if (Math.abs(x(step) - here) < Math.abs(x(points[nearest][0]) - here)) nearest = index;
    });
    show(nearest);
  });
  drawing.addEventListener("pointerleave", () => show(-1));
  drawing.addEventListener("blur", () => show(-1));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), points.length - 1));
  });
}

/** Steps of 1, 2 or 5 times a power of ten, about four of them. */
function niceStep(span) {
  const power = 10 ** Math.floor(Math.log10(span / 4));
  return power * [1, 2, 5, 10].find((factor) => span / (factor * power) <= 4.5);
}

function niceTicks(points) {
  const values = points.map(([, value]) => value);
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  const step = niceStep(most - least || 1);
  const first = Math.floor(least / step + 1e-9);
  const last = Math.max(Math.ceil(most / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

function decades(points) {
  const levels = points.map(([, value]) => Math.log10(value));
  const first = Math.floor(Math.min(...levels) + 1e-9);
  const last = Math.max(Math.ceil(Math.max(...levels) - 1e-9), first + 1);
  const every = Math.ceil((last - first) / 5);
  return Array.from({ length: Math.ceil((last - first) / every) + 1 }, (_, at) => 10 ** (first + at * every));
}

function stepTicks(constant, [first, last]) {
  if (constant) return [["every step", 0.5, "middle"]];
  const step = Math.max(1, niceStep(last - first));
  const ticks = [];
  for (let tick = Math.ceil(first / step) * step; tick <= last; tick += step) ticks.push(tick);
  return ticks.map((tick) => [count(tick), tick, tick > last - step / 3 ? "end" : "middle"]);
}
