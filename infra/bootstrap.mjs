// Behind `npm start`, `npm test`, `npm run check` and `npm run down`: sets up what is missing, one line each, then goes
// on under the pinned Node. It runs on any Node >= 20 with nothing installed, so it imports nothing but Node.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import module from "node:module";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { bundle, bundleDirectory, canBundle } from "./setup/bundle.mjs";
import { dependenciesPresent, installDependencies, pinnedNode } from "./setup/dependencies.mjs";
import { distribution, hasApt, isRoot, makeUsers, missingUsers, obstacle } from "./setup/machine.mjs";
import { install, missing, packagesFor } from "./setup/packages.mjs";
import { root } from "./setup/report.mjs";

const mayInstall = process.env.BERTH_NO_INSTALL !== "1";

function end(/** @type {string} */ sentence) {
  console.error(sentence);
  process.exit(1);
}

async function ensureDependencies() {
  if (dependenciesPresent()) return;
  if (!mayInstall) end("  dependencies  missing or out of date: run `npm ci`");
  const failure = await installDependencies();
  if (failure !== null) end(failure);
}

/** Installs packages and users. @returns {Promise<string | null>} why the host can't run containers after that */
async function ensureHost(/** @type {string[]} */ purposes) {
  const why = obstacle();
  if (why !== null) return why;
  const packages = missing(packagesFor(purposes));
  if (packages.length > 0) {
    const names = packages.map((each) => each.name).join(" ");
    if (!mayInstall) return `Missing packages: ${names} (BERTH_NO_INSTALL=1: not installed)`;
    if (!hasApt()) return `Missing packages: ${names}, and ${distribution()} has no apt to install them with`;
    const failure = await install(packages);
    if (failure !== null) return failure;
  }
  const users = missingUsers();
  if (users.length > 0) {
    if (!mayInstall) return `Missing users: ${users.join(" ")} (BERTH_NO_INSTALL=1: not made)`;
    const failure = await makeUsers(users);
    if (failure !== null) return failure;
  }
  return null;
}

/** Goes on as another program of the clone, under the pinned Node: in this process when it is that Node already. */
async function become(/** @type {string} */ script, /** @type {string[]} */ args) {
  const node = pinnedNode();
  if (node === null)
    return end(`node_modules has no Node for ${process.platform}-${process.arch}; Berth runs on Linux, x64 and arm64.`);
  const path = join(root, script);
  if (node.version === process.version) {
    // Compiled code is kept where only this user writes; `npm ci` throws it away with the rest.
    module.enableCompileCache(join(root, "node_modules/.cache/berth"));
    process.argv = [node.path, path, ...args];
    await import(pathToFileURL(path).href);
    return;
  }
  const child = spawn(node.path, [path, ...args], { stdio: "inherit" });
  for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"]))
    process.on(signal, () => child.kill(signal));
  child.on("exit", (code, signal) => process.exit(code ?? (signal === null ? 1 : 128)));
}

async function start() {
  await ensureDependencies();
  const onlyApi = process.env.BERTH_ROLE === "api";
  const why = onlyApi ? null : await ensureHost(["run"]);
  if (why !== null) {
    const works =
      "What still works is the API alone, on a database that you bring: BERTH_DATABASE_URL=postgres://… npm start";
    const remedy = isRoot ? "" : " To run containers: sudo npm start.";
    if ((process.env.BERTH_DATABASE_URL ?? "") === "" || process.env.BERTH_ROLE === "worker") {
      return end(`${why}. ${works}.${remedy}`);
    }
    console.error(
      `${why}. So this is the API alone, on BERTH_DATABASE_URL; another host's worker runs the containers.`,
    );
    process.env.BERTH_ROLE = "api";
  }
  await become(await program(), []);
}

/** What to run: the bundle of the sources, made when there is none yet; the sources where it can't be made. */
async function program() {
  const node = pinnedNode();
  if (node === null || !canBundle()) return "src/main.ts";
  const directory = bundleDirectory();
  if (!existsSync(directory)) {
    const failure = await bundle(directory, node.path);
    if (failure !== null) {
      console.error(failure);
      return "src/main.ts";
    }
  }
  return relative(root, join(directory, "main.mjs"));
}

async function setup() {
  await ensureDependencies();
  const why = await ensureHost(["run"]);
  if (why !== null) end(`${why}.`);
}

async function test(/** @type {string[]} */ args) {
  await ensureDependencies();
  const why = await ensureHost(["run", "test"]);
  const tiers = why === null ? [] : ["unit", "db", "http"].flatMap((tier) => ["--project", tier]);
  if (why !== null) {
    const line = "=".repeat(100);
    console.error(`${line}\nNOT RUN: the host and e2e tiers. ${why}.\n${line}`);
  }
  await become("node_modules/vitest/vitest.mjs", ["run", ...tiers, ...args]);
}

async function check(/** @type {string[]} */ args) {
  await ensureDependencies();
  const tools = missing(packagesFor(["test"]));
  if (tools.length > 0 && mayInstall && hasApt()) {
    const failure = await install(tools);
    if (failure !== null) end(failure);
  }
  await become("infra/check.mjs", args);
}

async function down() {
  if (!dependenciesPresent()) end("Nothing of Berth can run from this clone: its dependencies are not installed.");
  await become("src/down.ts", []);
}

const [verb, ...args] = process.argv.slice(2);
const verbs = { start, setup, test: () => test(args), check: () => check(args), down };
const action = Object.entries(verbs).find(([name]) => name === verb)?.[1];
if (action === undefined) end(`usage: node infra/bootstrap.mjs ${Object.keys(verbs).join("|")}`);
else await action();
