import { createRequire } from "node:module";

/**
 * drizzle-orm, loaded as CommonJS: as ES modules its many small files cost 345 ms and 217 MB a process on Node 24,
 * so 68 ms and 69 MB. Import drizzle from here only; the types are those of the package. In the bundles, which have no files to
 * find, infra/bundle.mjs puts the same names in its place.
 */
const load = createRequire(import.meta.url);

export const { sql, and, or, eq } = load("drizzle-orm") as typeof import("drizzle-orm");
export const { drizzle } = load("drizzle-orm/postgres-js") as typeof import("drizzle-orm/postgres-js");
export const pg = load("drizzle-orm/pg-core") as typeof import("drizzle-orm/pg-core");
export type { SQL } from "drizzle-orm";
