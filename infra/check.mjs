// `npm run check`: every check that needs no running Berth, two at a time; the output of those that fail, and a line each.
// Names as arguments choose among them: `npm run check -- lint types`.
import { spawn } from "node:child_process";
import { join } from "node:path";
import { root } from "./setup/report.mjs";

const shellScripts = [".ci/run", "infra/install-worker.sh", "examples/web/index.cgi", "examples/web/serve"];

/** @type {Record<string, string[]>} */
const checks = {
  lint: ["eslint", "."],
  types: ["tsc", "--noEmit"],
  format: ["biome", "check", "."],
  imports: ["depcruise", "src", "--output-type", "err"],
  "dead code": ["knip"],
  openapi: ["node", "src/routes/openapi-document.ts", "--check"],
  "openapi lint": ["redocly", "lint"],
  "client types": ["openapi-typescript", "--default-non-nullable=false", "--check"],
  shell: ["shellcheck", ...shellScripts],
};

/** @returns {Promise<boolean>} */
function run(/** @type {string} */ name, /** @type {string[]} */ [program = "", ...args]) {
  const begin = performance.now();
  const path = `${join(root, "node_modules/.bin")}:${process.env.PATH ?? ""}`;
  const env = { ...process.env, PATH: path, REDOCLY_TELEMETRY: "off", NO_UPDATE_NOTIFIER: "1" };
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (output += chunk));
    const end = (/** @type {boolean} */ good) => {
      const took = `${((performance.now() - begin) / 1000).toFixed(1)} s`;
      console.log(`${good ? "ok    " : "FAILED"}  ${name.padEnd(12)} ${took}`);
      if (!good) console.log(output.trimEnd());
      resolve(good);
    };
    child.on("error", (error) => {
      output += error.message;
      end(false);
    });
    child.on("close", (code) => end(code === 0));
  });
}

const asked = process.argv.slice(2);
const queue = Object.entries(checks).filter(([name]) => asked.length === 0 || asked.includes(name));
let failed = 0;
async function drain() {
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) if (!(await run(...next))) failed++;
}
await Promise.all([drain(), drain()]);
if (failed > 0) console.log(`${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
