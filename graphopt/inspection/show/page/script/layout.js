// Where the boxes of a graph are.

const BOX = { width: 196, height: 46, gap: 22, drop: 44, head: 26, pad: 16, track: 9, tracks: 10 };
const MOST_IN_ROW = 6;

/** Gives each item in sight a place; modules have theirs inside. */
function arranged(tree, narrow) {
  const edges = [];
  measure(tree.root, tree, edges, narrow);
  tree.root.x = 0;
  tree.root.y = 0;
  settlePlaces(tree.root);
  for (const edge of edges) edge.route = edge.plan();
  return { width: tree.root.width, height: tree.root.height, edges };
}

function settlePlaces(item) {
  for (const child of item.children) {
    child.x += item.x;
    child.y += item.y;
    if (!child.folded) settlePlaces(child);
  }
}

function measure(item, tree, all, narrow) {
  if (item.folded && item !== tree.root) {
    Object.assign(item, { width: BOX.width, height: BOX.height });
    return;
  }
  for (const child of item.children) measure(child, tree, all, narrow);
  const edges = tree.edges(item);
  const rows = item === tree.root && !narrow ? [item.children] : inRows(item.children, edges);
  const level = new Map(rows.flatMap((row, at) => row.map((child) => [child, at])));
  for (const edge of edges) edge.skips = rows.length > 1 && level.get(edge.to) - level.get(edge.from) !== 1;
  const { tracks, used } = tracksOf(edges.filter((edge) => edge.skips), level);
  const top = item === tree.root ? 26 : BOX.head + BOX.pad;
  const widths = rows.map((row) => row.reduce((sum, child) => sum + child.width + BOX.gap, -BOX.gap));
  const inner = Math.max(...widths, BOX.width);
  const left = BOX.pad;
  let y = top;
  rows.forEach((row, at) => {
    let x = left + (inner - widths[at]) / 2;
    for (const child of row) {
      Object.assign(child, { x, y });
      x += child.width + BOX.gap;
    }
    y += Math.max(...row.map((child) => child.height)) + BOX.drop;
  });
  item.width = inner + 2 * BOX.pad + (used ? 8 + used * BOX.track : 0);
  item.height = y - BOX.drop + BOX.pad;
  for (const edge of edges) {
    const side = () => item.x + left + inner + 10 + (tracks.get(edge) ?? 0) * BOX.track;
    edge.plan = () => (rows.length === 1 && item === tree.root ? across(edge) : down(edge, side));
  }
  all.push(...edges);
}

/** Items below all that they read, and beside each other where that is nothing of them. */
function inRows(children, edges) {
  const place = new Map(children.map((child, at) => [child, at]));
  const before = new Map(children.map((child) => [child, []]));
  for (const { from, to } of edges) if (place.get(from) < place.get(to)) before.get(to).push(from);
  const rank = new Map();
  const ranks = [];
  for (const child of children) {
    const own = before.get(child).reduce((most, from) => Math.max(most, rank.get(from) + 1), 0);
    rank.set(child, own);
    (ranks[own] ??= []).push(child);
  }
  const at = new Map();
  const rows = [];
  for (const row of ranks) {
    const middle = (child) => {
      const read = before.get(child);
      return read.length ? read.reduce((sum, from) => sum + at.get(from), 0) / read.length : 0;
    };
    const order = row.map((child) => [middle(child), child]).sort((a, b) => a[0] - b[0]).map(([, child]) => child);
    order.forEach((child, index) => at.set(child, (index + 0.5) / order.length - 0.5));
    for (let first = 0; first < order.length; first += MOST_IN_ROW) rows.push(order.slice(first, first + MOST_IN_ROW));
  }
  return rows.length ? rows : [[]];
}

/** Edges that pass other rows go along tracks beside them; those of one item share one. */
function tracksOf(edges, level) {
  const spans = new Map();
  for (const edge of edges) {
    const span = spans.get(edge.from) ?? { first: Infinity, last: -Infinity, edges: [] };
    span.first = Math.min(span.first, level.get(edge.from), level.get(edge.to));
    span.last = Math.max(span.last, level.get(edge.from), level.get(edge.to));
    span.edges.push(edge);
    spans.set(edge.from, span);
  }
  const ends = [];
  const tracks = new Map();
  for (const span of [...spans.values()].sort((a, b) => a.first - b.first)) {
    let track = ends.findIndex((end) => end <= span.first);
    if (track < 0) track = Math.min(ends.length, BOX.tracks - 1);
    ends[track] = span.last;
    for (const edge of span.edges) tracks.set(edge, track);
  }
  return { tracks, used: ends.length };
}

const middleOf = (item) => item.x + item.width / 2;

/** From stage to stage; what passes one goes over it. */
function across({ from, to }) {
  const { children } = from.parent;
  if (children.indexOf(to) - children.indexOf(from) !== 1) {
    const [start, goal, above] = [from.x + from.width - 24, to.x + 24, Math.min(from.y, to.y) - 20];
    return { line: `M${start} ${from.y}C${start} ${above} ${goal} ${above} ${goal} ${to.y - 5}`, tip: `M${goal} ${to.y}l-4 -7h8z`, x: (start + goal) / 2, y: above, skips: true };
  }
  const [x, y, end, under] = [from.x + from.width, from.y + 20, to.x, to.y + 20];
  return { line: `M${x} ${y}C${x + 14} ${y} ${end - 14} ${under} ${end - 5} ${under}`, tip: `M${end} ${under}l-7 -4v8z`, x: (x + end) / 2, y: y - 8, skips: true };
}

function down(edge, side) {
  const { from, to } = edge;
  const [x, y, end, under] = [middleOf(from), from.y + from.height, middleOf(to), to.y];
  const tip = `M${end} ${under}l-4 -7h8z`;
  if (!edge.skips) {
    return { line: `M${x} ${y}C${x} ${y + 20} ${end} ${under - 24} ${end} ${under - 6}`, tip, x: (x + end) / 2, y: (y + under) / 2 + 3 };
  }
  const far = side();
  const line = `M${x} ${y}C${x} ${y + 22} ${far} ${y} ${far} ${y + 26}V${under - 26}C${far} ${under} ${end} ${under - 30} ${end} ${under - 6}`;
  return { line, tip, x: far, y: (y + under) / 2, skips: true };
}
