import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { root, run, step } from "./report.mjs";

const home = join(root, ".cache/berth");
/** A supervisor that still runs an older bundle may start its children from it again. */
const kept = 4;

/** The directory of the bundle of the sources as they are now; their sizes and times tell (a few milliseconds). */
export function bundleDirectory() {
  const hash = createHash("sha256");
  const files = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".ts"))
    .map((path) => join("src", path));
  for (const path of [...files, "package-lock.json", "infra/bundle.mjs"].sort()) {
    const { size, mtimeMs } = statSync(join(root, path));
    hash.update(`${path} ${size} ${mtimeMs}\n`);
  }
  return join(home, hash.digest("hex").slice(0, 16));
}

/** Makes the bundle there. @returns {Promise<string | null>} what went wrong, in a sentence */
export function bundle(/** @type {string} */ directory, /** @type {string} */ node) {
  return step("code          bundling", async () => {
    const fresh = `${directory}.${process.pid}`;
    // Beside its final place, so that paths relative to it hold; whole or not at all.
    const failure = await run(node, [join(root, "infra/bundle.mjs"), fresh]);
    if (failure !== null) {
      rmSync(fresh, { recursive: true, force: true });
      return `bundling failed: ${failure}`;
    }
    settle(fresh, directory);
    // Another start may take one away meanwhile.
    const age = (/** @type {string} */ path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    const old = readdirSync(home)
      .map((name) => join(home, name))
      .sort((a, b) => age(b) - age(a));
    for (const path of old.slice(kept)) rmSync(path, { recursive: true, force: true });
    return null;
  });
}

/** Puts a bundle in its place, unless another start has put its own there. */
function settle(/** @type {string} */ fresh, /** @type {string} */ directory) {
  try {
    renameSync(fresh, directory);
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    if (!existsSync(directory)) throw error;
  }
}

/** Whether this process may write bundles; without them the sources run, only slower to start. */
export function canBundle() {
  try {
    mkdirSync(home, { recursive: true });
    return true;
  } catch {
    return false;
  }
}
