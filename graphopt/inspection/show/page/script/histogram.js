// How the values of a tensor are spread.

const BARS = { width: 144, height: 26 };

/** The histogram as bars; a bin that is not empty shows at least a line. */
function histogram(spread) {
  if (!spread) return el("span", { class: "muted" }, "–");
  const most = Math.max(...spread.counts, 1);
  const width = BARS.width / spread.counts.length;
  const bars = spread.counts.map((number, at) => {
    const height = number ? Math.max((number / most) * BARS.height, 1) : 0;
    return svg("rect", { x: (at * width).toFixed(1), y: (BARS.height - height).toFixed(1), width: (width - 0.8).toFixed(1), height: height.toFixed(1) });
  });
  const unit = spread.scale === "log10" ? "log10 of magnitudes, " : "";
  const label = `${unit}${real(spread.low)} to ${real(spread.high)}; counts ${spread.counts.join(" ")}`;
  return svg("svg", { class: "histogram", viewBox: `0 0 ${BARS.width} ${BARS.height}`, width: BARS.width, height: BARS.height, role: "img", "aria-label": label }, svg("title", {}, label), bars);
}
