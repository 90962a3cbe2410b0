// The drawing of a graph as a file.

const MARGIN = 12;
const LARGEST_SIDE = 8000;
const DRAWN = ["fill", "stroke", "stroke-width", "font-family", "font-size", "font-weight", "text-anchor", "opacity", "stroke-dasharray"];

/** The whole drawing, with all styles written into its elements. */
function standalone(drawing) {
  drawing.render(true);
  const { width, height } = drawing.plan;
  const copy = drawing.world.cloneNode(true);
  const originals = drawing.world.querySelectorAll("rect, path, text");
  copy.querySelectorAll("rect, path, text").forEach((element, at) => {
    const style = getComputedStyle(originals[at]);
    for (const name of DRAWN) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("style");
    element.removeAttribute("class");
  });
  copy.setAttribute("transform", `translate(${MARGIN} ${MARGIN})`);
  const ground = svg("rect", { width: width + 2 * MARGIN, height: height + 2 * MARGIN, fill: getComputedStyle(document.body).backgroundColor });
  const whole = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: width + 2 * MARGIN, height: height + 2 * MARGIN, viewBox: `0 0 ${width + 2 * MARGIN} ${height + 2 * MARGIN}` }, ground, copy);
  drawing.render();
  return whole;
}

function svgText(drawing) {
  return new XMLSerializer().serializeToString(standalone(drawing));
}

/** The drawing painted on a canvas: the page may load no picture, not even its own. */
function painted(drawing) {
  const whole = standalone(drawing);
  const [width, height] = [Number(whole.getAttribute("width")), Number(whole.getAttribute("height"))];
  const scale = Math.min(2, LARGEST_SIDE / Math.max(width, height));
  const canvas = el("canvas", { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  paint(context, whole);
  return canvas;
}

function paint(context, element) {
  const attribute = (name) => element.getAttribute(name);
  context.save();
  const [x, y] = /translate\(([-\d.]+) ([-\d.]+)\)/.exec(attribute("transform") ?? "")?.slice(1).map(Number) ?? [0, 0];
  context.translate(x, y);
  const shape = element.localName === "rect" ? rounded(element) : element.localName === "path" ? new Path2D(attribute("d")) : null;
  const seen = (paint_) => paint_ && paint_ !== "none";
  context.globalAlpha = Number(attribute("opacity") ?? 1);
  if (shape) {
    if (seen(attribute("fill"))) {
      context.fillStyle = attribute("fill");
      context.fill(shape);
    }
    if (seen(attribute("stroke"))) {
      context.strokeStyle = attribute("stroke");
      context.lineWidth = parseFloat(attribute("stroke-width"));
      context.stroke(shape);
    }
  } else if (element.localName === "text") {
    context.fillStyle = attribute("fill");
    context.font = `${attribute("font-weight")} ${attribute("font-size")} ${attribute("font-family")}`;
    context.textAlign = attribute("text-anchor") === "middle" ? "center" : "left";
    context.fillText(element.textContent, Number(attribute("x")), Number(attribute("y")));
  }
  for (const child of element.children) paint(context, child);
  context.restore();
}

function rounded(element) {
  const path = new Path2D();
  path.roundRect(0, 0, Number(element.getAttribute("width")), Number(element.getAttribute("height")), Number(element.getAttribute("rx") ?? 0));
  return path;
}

function saved(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveSvg(drawing, name) {
  saved(new Blob([svgText(drawing)], { type: "image/svg+xml" }), `${name}.svg`);
}

function savePng(drawing, name) {
  painted(drawing).toBlob((blob) => saved(blob, `${name}.png`), "image/png");
}
