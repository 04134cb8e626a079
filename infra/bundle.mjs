// Writes the program's roles as one file each, with their libraries, into the directory that is its argument. Loading
// hundreds of small modules is most of what a start costs (API 0.5 of 0.65 s of CPU, worker 0.5 of 0.75); bundled it is
// less by half and 25 MB less memory a process. The sources remain what tests and `node src/main.ts` run.
import { relative } from "node:path";
import { rolldown } from "rolldown";
import { root } from "./setup/report.mjs";

const directory = process.argv[2] ?? "";

/** A module that asks where it is gets the place of its source, wherever the clone is seen. */
const ownPlace = {
  name: "own-place",
  transform(/** @type {string} */ code, /** @type {string} */ id) {
    if (!id.startsWith(`${root}/src/`) || !code.includes("import.meta.url")) return null;
    const place = `new URL(${JSON.stringify(relative(directory, id))}, import.meta.url).href`;
    return { code: code.replaceAll("import.meta.url", place), map: null };
  },
};

/** drizzle is loaded as CommonJS from its many files (src/db/drizzle.ts); bundled, what is used of it is a part of ours. */
const drizzle = {
  name: "drizzle",
  load(/** @type {string} */ id) {
    if (id !== `${root}/src/db/drizzle.ts`) return null;
    return `export { and, eq, or, sql } from "drizzle-orm";
      export { drizzle } from "drizzle-orm/postgres-js";
      export * as pg from "drizzle-orm/pg-core";`;
  },
};

const bundle = await rolldown({
  cwd: root,
  input: Object.fromEntries(["main", "api", "worker"].map((role) => [role, `src/${role}.ts`])),
  platform: "node",
  // Native code is loaded from its package.
  external: ["koffi"],
  plugins: [drizzle, ownPlace],
});
await bundle.write({
  dir: directory,
  format: "esm",
  entryFileNames: "[name].mjs",
  chunkFileNames: "[name]-[hash].mjs",
});
