// All of an inspection.

function showPage() {
  showOverview();
  showHazards(facts.hazards, "No hazards were found.");
  showOptimizer();
  showGroups();
  showParameters();
  showGraph();
  showMemory();
  showState();
  showInterface();
  showStages();
  showRequirements();
}
