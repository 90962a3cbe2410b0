/** What both pages do: train, show each epoch, and offer the checkpoint. */

import { encode } from "./checkpoint.mjs";
import { line } from "./digits.mjs";

/**
 * Runs one of the trainings of network.mjs, and shows how it goes; `more` is what it may be told.
 *
 * The number of epochs is that of the page's address, `?epochs=5`, or 10.
 */
export async function run(ort, training, more) {
  const epochs = Number(new URLSearchParams(location.search).get("epochs") ?? 10);
  try {
    offer(encode(await training(ort, read, epochs, reporter(epochs), more)));
    say("trained");
  } catch (error) {
    say(`failed: ${error}`);
    throw error;
  }
}

async function read(name) {
  const response = await fetch(`build/${name}`);
  if (!response.ok) throw new Error(`build/${name}: ${response.statusText}; graphopt demo --javascript writes it`);
  return new Uint8Array(await response.arrayBuffer());
}

function reporter(epochs) {
  const points = { loss: [], accuracy: [] };
  return async (result) => {
    say(line(result));
    const x = (100 * result.epoch) / epochs;
    points.loss.push(`${x},${50 - 20 * Math.min(result.loss, 2.5)}`);
    points.accuracy.push(`${x},${50 - 50 * result.accuracy}`);
    for (const [id, drawn] of Object.entries(points)) {
      document.getElementById(id).setAttribute("points", drawn.join(" "));
    }
    await new Promise((resume) => setTimeout(resume)); // the browser draws
  };
}

function offer(file) {
  const link = document.getElementById("checkpoint");
  link.href = URL.createObjectURL(new Blob([file]));
  link.hidden = false;
}

function say(text) {
  document.getElementById("log").append(`${text}\n`);
}
