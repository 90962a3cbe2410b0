// What boxes are coloured by.

const METRICS = {
  none: { title: "Stage", of: () => null },
  memory: { title: "Memory", of: (totals) => totals.memory, written: bytes },
  moved: { title: "Bytes moved", of: (totals) => totals.moved, written: bytes },
  flops: { title: "FLOPs", of: (totals) => totals.flops, written: flops },
  time: { title: "Measured time", of: (totals) => totals.time, written: milliseconds },
};

function milliseconds(value) {
  if (value === null) return "unknown";
  return value >= 1 ? `${value.toFixed(2)} ms` : `${(1000 * value).toFixed(1)} µs`;
}

/** The share of an item in the whole graph, by what is coloured; null where nothing is. */
function shareOf(item, tree, metric) {
  const value = METRICS[metric].of(item.totals);
  const whole = METRICS[metric].of(tree.root.totals);
  return value === null || !whole ? null : value / whole;
}

/** How strong the color of a share is, in percent: the root shows small ones too. */
function heat(share, most) {
  return share ? Math.round(8 + 40 * Math.sqrt(share / most)) : 0;
}
