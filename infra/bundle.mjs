// Writes the program's roles as one file each, with their libraries, into the directory that is its argument. Loading
// hundreds of small modules is most of what a start costs (API 0.5 of 0.65 s of CPU, worker 0.5 of 0.75); bundled it is
// less by half and 25 MB less memory a process. The sources remain what tests and `node src/main.ts` run.
import { mkdirSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
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

/** Of zod's fifty languages we speak one; the others' letters would also double the memory of all code in their file. */
const oneLanguage = {
  name: "one-language",
  load(/** @type {string} */ id) {
    return id.endsWith("/zod/v4/locales/index.js") ? `export { default as en } from "./en.js";` : null;
  },
};

/** Importing node:http reads all that it exports, even what Node loads only then: its own fetch, a tenth of a start. */
const httpInPart = {
  name: "http-in-part",
  resolveId: (/** @type {string} */ id) => (id === "node:http" || id === "http" ? "\0http" : null),
  load: (/** @type {string} */ id) =>
    id === "\0http"
      ? `export const { Agent, IncomingMessage, METHODS, STATUS_CODES, ServerResponse, createServer, get, maxHeaderSize, request } =
          process.getBuiltinModule("node:http");`
      : null,
};

mkdirSync(directory, { recursive: true });
// Each by itself: a file that two share would hold what either needs.
for (const role of ["main", "api", "worker"]) {
  const bundle = await rolldown({
    cwd: root,
    input: { [role]: `src/${role}.ts` },
    platform: "node",
    // Native code is loaded from its package.
    external: ["koffi"],
    plugins: [drizzle, ownPlace, oneLanguage, httpInPart],
  });
  const { output } = await bundle.generate({
    format: "esm",
    entryFileNames: "[name].mjs",
    chunkFileNames: `${role}-[name]-[hash].mjs`,
  });
  for (const chunk of output) {
    if (chunk.type === "chunk") writeFileSync(join(directory, chunk.fileName), ascii(chunk.code));
  }
}

/** One letter beyond Latin-1, even in a comment, would double the memory of all code in its file. */
function ascii(/** @type {string} */ code) {
  return code.replaceAll(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
