import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root, run, step } from "./report.mjs";

/** @typedef {{ version?: string, optional?: boolean, os?: string[], cpu?: string[], libc?: string[] }} Locked */

/** @returns {Record<string, Locked>} */
function locked(/** @type {string} */ file) {
  return JSON.parse(readFileSync(join(root, file), "utf8")).packages;
}

/** Whether node_modules holds what the lock file says for this platform (npm keeps its own record of what it did). */
export function dependenciesPresent() {
  if (!existsSync(join(root, "node_modules/.package-lock.json"))) return false;
  const have = locked("node_modules/.package-lock.json");
  const here = (/** @type {Locked} */ { os, cpu, libc }) =>
    (os?.includes("linux") ?? true) && (cpu?.includes(process.arch) ?? true) && (libc?.includes("glibc") ?? true);
  return Object.entries(locked("package-lock.json")).every(
    // An optional package that no platform is named for belongs to another platform's package.
    ([path, wanted]) =>
      path === "" ||
      !here(wanted) ||
      have[path]?.version === wanted.version ||
      (wanted.optional === true && wanted.os === undefined && wanted.cpu === undefined),
  );
}

/** `npm ci`. @returns {Promise<string | null>} what went wrong, in a sentence */
export function installDependencies() {
  return step("dependencies  installing from package-lock.json", async () => {
    const failure = await run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
    return failure === null ? null : `npm ci failed: ${failure}`;
  });
}

/** The pinned Node 24, an ordinary dependency; null where it does not exist for this machine. */
export function pinnedNode() {
  const path = join(root, `node_modules/node-linux-${process.arch}/bin/node`);
  if (!existsSync(path)) return null;
  const { version } = JSON.parse(
    readFileSync(join(root, `node_modules/node-linux-${process.arch}/package.json`), "utf8"),
  );
  return { path, version: `v${version}` };
}
