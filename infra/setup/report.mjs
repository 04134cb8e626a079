import { spawn } from "node:child_process";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

/** The clone's directory. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** One line on stdout: what is done, then how long it took. @returns {Promise<string | null>} the work's failure */
export async function step(/** @type {string} */ what, /** @type {() => Promise<string | null>} */ work) {
  const start = performance.now();
  process.stdout.write(`  ${what} …`);
  const failure = await work();
  process.stdout.write(` ${failure === null ? `${((performance.now() - start) / 1000).toFixed(1)} s` : "failed"}\n`);
  return failure;
}

/** Runs a program without showing its output. @returns {Promise<string | null>} null, or the last line that it said */
export function run(/** @type {string} */ program, /** @type {string[]} */ args, env = process.env) {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
    let tail = "";
    const keep = (/** @type {Buffer} */ chunk) => {
      tail = (tail + chunk.toString()).slice(-2000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", (error) => resolve(error.message));
    child.on("close", (code) => {
      const lines = tail.split("\n").filter((line) => line.trim() !== "");
      const telling = lines.findLast((line) => /^(E:|npm error)|error/i.test(line)) ?? lines.at(-1);
      resolve(code === 0 ? null : (telling ?? `it ended with ${code}`));
    });
  });
}
