import * as ort from "onnxruntime-web";
import { trainDigits } from "./network.mjs";
import { listen } from "./pad.mjs";
import { run } from "./page.mjs";

const adapter = await navigator.gpu?.requestAdapter();
const provider = adapter ? "webgpu" : "wasm";
const name = adapter ? [adapter.info.vendor, adapter.info.architecture].join(" ").trim() : "";
document.getElementById("provider").textContent = adapter
  ? `on the GPU (${name || "WebGPU"})`
  : "in WebAssembly, on the CPU: this browser offers no WebGPU";

await run(ort, trainDigits, {
  graph: "train_webgpu.onnx",
  options: { executionProviders: [provider] },
  recognize: listen(),
});
