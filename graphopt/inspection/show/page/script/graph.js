// The graph of an inspection.

let graphView = null;

function showGraph() {
  if (!data.graph) return hide("graph");
  graphView = new GraphView({ packed: data.graph, times: data.times, parameters, name: fileName(facts.model.name) });
  byId("graph").querySelector("h2").append(el("small", {}, "Choose a module or a node; unfold a module with a double click, or in the list with the arrow keys."));
  byId("graph").append(graphView.element);
  graphView.refresh({ fit: true });
  firstFound = () => graphView.first && graphView.chooseNode(graphView.first);
  searchers.push((query) => plural(graphView.search(query), "node"));
}

function showWayOf(parameter) {
  graphView.showWay(parameter);
  byId("graph").scrollIntoView();
}
