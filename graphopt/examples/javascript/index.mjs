import * as ort from "onnxruntime-web";
import { trainDigits } from "./network.mjs";
import { run } from "./page.mjs";

await run(ort, trainDigits);
