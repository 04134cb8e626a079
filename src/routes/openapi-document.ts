import { readFile, writeFile } from "node:fs/promises";
import { stringify } from "yaml";
import { createApp } from "./app.ts";
import type { Services } from "./context.ts";
import { openapiDocument } from "./openapi.ts";

/**
 * `npm run openapi` writes openapi.yaml from the routes' schemas; with `--check` it only says whether the file is true.
 */
const file = new URL("../../openapi.yaml", import.meta.url);

/** The document needs the routes, not what they use when they are called. */
const document = openapiDocument(createApp({ corsOrigins: [], limits: {} } as unknown as Services));
const text = stringify(document, { aliasDuplicateObjects: false, lineWidth: 120 });

if (!process.argv.includes("--check")) {
  await writeFile(file, text);
} else if ((await readFile(file, "utf8").catch(() => "")) !== text) {
  process.stderr.write("openapi.yaml is not what the routes say: npm run openapi\n");
  process.exit(1);
}
