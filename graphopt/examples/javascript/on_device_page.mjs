import * as ort from "onnxruntime-web/training";
import { trainDigitsOnDevice } from "./network.mjs";
import { run } from "./page.mjs";

await run(ort, trainDigitsOnDevice);
